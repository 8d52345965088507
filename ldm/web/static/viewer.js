// The photo and what became of it, in one frame, with a slide between them.
// Its value is {before, after, words, tag}: two files or data URLs; words describe the result.
let last = null;  // the finished picture, while sketches are in its place
let photo = 0, dragging = false;  // percent of the width that shows the photo, from the left
const address = (file) => typeof file === 'string' ? file : file ? file.url : '';

function place() {
  const frame = element.querySelector('.af-viewer-frame');
  frame.style.setProperty('--photo', `${photo}%`);
  element.querySelector('input').value = photo;
}

function show(value = props.value || {}) {
  const viewer = element.querySelector('.af-viewer');
  const after = element.querySelector('.af-viewer-after'), before = element.querySelector('.af-viewer-before');
  viewer.dataset.state = value.after ? (value.before ? 'both' : 'after') : 'empty';
  viewer.dataset.tag = value.tag || '';
  element.querySelector('.af-viewer-tag').textContent = value.tag || '';
  if (value.after && !value.tag) last = value;
  viewer.toggleAttribute('data-back', last !== null);
  if (value.tag && !dragging) photo = 0;
  if (!value.after) return;
  if (after.src !== address(value.after)) after.src = address(value.after);
  after.onload = () => {
    element.querySelector('.af-viewer-frame').style.setProperty('--aspect', after.naturalWidth / after.naturalHeight);
  };
  after.alt = value.words || 'The painted picture';
  if (value.before && before.src !== address(value.before)) before.src = address(value.before);
  place();
}

function follow(event) {
  const box = element.querySelector('.af-viewer-frame').getBoundingClientRect();
  photo = Math.min(100, Math.max(0, Math.round((event.clientX - box.left) / box.width * 100)));
  place();
}

element.addEventListener('input', (event) => { photo = Number(event.target.value); place(); });
element.addEventListener('pointerdown', (event) => {
  if (event.target.closest('button') || !event.target.closest('.af-viewer-frame') || !(props.value || {}).before) return;
  event.preventDefault();
  dragging = true;
  element.setPointerCapture(event.pointerId);
  follow(event);
});
element.addEventListener('pointermove', (event) => { if (dragging) follow(event); });
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => { dragging = false; });
element.addEventListener('click', (event) => { if (event.target.closest('.af-viewer-back')) show(last); });
watch('value', () => show());
show();
