// Marks parts of a photo. Its value is {photo, drawing}: a file, and a PNG as a data URL, black but
// for what is marked: red, green and blue are three purposes. What is seen is a tinted copy of it.
const MARKS = document.createElement('canvas'), LONGER = 640;
const MARKS_2D = MARKS.getContext('2d', {willReadFrequently: true});
let mark = '#ff0000', last = null;
const at = (selector) => element.querySelector(selector);

function begin() {
  const photo = (props.value || {}).photo;
  at('.af-drawing').dataset.state = photo ? 'photo' : 'empty';
  if (!photo) return;
  const image = at('img');
  image.onload = () => {
    const scale = LONGER / Math.max(image.naturalWidth, image.naturalHeight);
    for (const canvas of [MARKS, at('canvas')]) {
      canvas.width = Math.round(image.naturalWidth * scale);
      canvas.height = Math.round(image.naturalHeight * scale);
    }
    const drawing = props.value.drawing;
    if (!drawing) { clear(); return; }
    const old = new Image();
    old.onload = () => { clear(); MARKS_2D.drawImage(old, 0, 0, MARKS.width, MARKS.height); tint(); };
    old.src = drawing;
  };
  image.src = photo.url;
}

function clear() {
  MARKS_2D.fillStyle = '#000000';
  MARKS_2D.fillRect(0, 0, MARKS.width, MARKS.height);
  tint();
}

function tint() {
  const canvas = at('canvas'), seen = canvas.getContext('2d');
  const pixels = MARKS_2D.getImageData(0, 0, MARKS.width, MARKS.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [r, g, b] = pixels.data.subarray(i, i + 3);
    pixels.data[i + 3] = 0.6 * Math.max(r, g, b);
    pixels.data[i] = r ? 255 : g ? 40 : 60; pixels.data[i + 1] = r ? 215 : g ? 200 : 110; pixels.data[i + 2] = r ? 60 : g ? 120 : 255;
  }
  seen.putImageData(pixels, 0, 0);
}

function point(event) {
  const box = at('canvas').getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * MARKS.width, (event.clientY - box.top) / box.height * MARKS.height];
}

function stroke(event) {
  const [x, y] = point(event);
  MARKS_2D.strokeStyle = mark;
  MARKS_2D.lineCap = MARKS_2D.lineJoin = 'round';
  MARKS_2D.lineWidth = Number(at('input').value) / 100 * Math.max(MARKS.width, MARKS.height);
  MARKS_2D.beginPath();
  MARKS_2D.moveTo(...(last || [x, y]));
  MARKS_2D.lineTo(x, y);
  MARKS_2D.stroke();
  last = [x, y];
  tint();
}

function keep(drawing) { props.value = {...props.value, drawing}; trigger('input'); }

element.addEventListener('pointerdown', (event) => {
  if (event.target !== at('canvas')) return;
  event.preventDefault();
  element.setPointerCapture(event.pointerId);
  last = null;
  stroke(event);
});
element.addEventListener('pointermove', (event) => { if (last) stroke(event); });
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => {
  if (!last) return;
  last = null;
  keep(MARKS.toDataURL('image/png'));
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.matches('.af-drawing-clear')) { clear(); keep(null); return; }
  mark = button.dataset.mark;
  for (const other of element.querySelectorAll('[role=radio]')) other.setAttribute('aria-checked', String(other === button));
});
watch('value', begin);
begin();
