// A square with a point in it. Its value is {content, style}: the two guidance scales, 0 to MOST.
const MOST = 2, STEP = 0.1, FROM_KEYS = {ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0]};
const clamped = (x) => Math.min(MOST, Math.max(0, Math.round(x * 20) / 20));
let dragging = false;

function show() {
  const pad = element.querySelector('.af-pad'), dot = element.querySelector('.af-pad-dot');
  const {content, style} = props.value;
  dot.style.left = `${Math.min(style, MOST) / MOST * 100}%`;
  dot.style.bottom = `${Math.min(content, MOST) / MOST * 100}%`;
  pad.setAttribute('aria-valuenow', content);
  pad.setAttribute('aria-valuetext', `content scale ${content}, style scale ${style}`);
}

function set(content, style) {
  const value = {content: clamped(content), style: clamped(style)};
  if (value.content === props.value.content && value.style === props.value.style) return;
  props.value = value;
  show();
  trigger('input');
}

function follow(event) {
  const box = element.querySelector('.af-pad').getBoundingClientRect();
  set((box.bottom - event.clientY) / box.height * MOST, (event.clientX - box.left) / box.width * MOST);
}

element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.af-pad')) return;
  dragging = true;
  element.setPointerCapture(event.pointerId);
  follow(event);
});
element.addEventListener('pointermove', (event) => { if (dragging) follow(event); });
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => { dragging = false; });
element.addEventListener('keydown', (event) => {
  const way = FROM_KEYS[event.key];
  if (!way) return;
  event.preventDefault();
  set(props.value.content + way[1] * STEP, props.value.style + way[0] * STEP);
});
watch('value', () => { if (!dragging) show(); });
show();
