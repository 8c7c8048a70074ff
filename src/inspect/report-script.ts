/**
 * What makes pages answer: tooltips for what carries them, and for the cells of the map, by mouse, touch and keyboard. Texts are put
 * in as text, never as markup.
 */
export const PAGE_SCRIPT = `
(() => {
  'use strict';
  const tip = document.getElementById('tip');
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + 'px';
    tip.style.top = (y + 20 + box.height > innerHeight ? y - box.height - 12 : y + 18) + 'px';
  };
  const hide = () => { tip.hidden = true; };
  const carrier = (node) => (node instanceof Element ? node.closest('[data-tip]') : null);
  document.addEventListener('pointermove', (event) => {
    const found = carrier(event.target);
    if (found) show(found.dataset.tip, event.clientX, event.clientY);
    else if (!(event.target instanceof Element && event.target.closest('#map'))) hide();
  });
  document.addEventListener('focusin', (event) => {
    const found = carrier(event.target);
    if (!found) return;
    const box = found.getBoundingClientRect();
    show(found.dataset.tip, box.left + box.width / 2, box.bottom - 12);
  });
  document.addEventListener('focusout', hide);
  document.addEventListener('keydown', (event) => { if (event.key === 'Escape') hide(); });

  const map = document.getElementById('map');
  const source = document.getElementById('cells');
  if (!map || !source) return;
  const data = JSON.parse(source.textContent);
  const mark = document.getElementById('mark');
  const pitch = data.pitch;
  let current = 0;
  const point = (cell) => {
    if (cell < 0 || cell >= data.texts.length) return;
    current = cell;
    const x = (cell % data.columns) * pitch;
    const y = Math.floor(cell / data.columns) * pitch;
    mark.setAttribute('x', x - 1);
    mark.setAttribute('y', y - 1);
    mark.removeAttribute('visibility');
    return [x, y];
  };
  map.addEventListener('pointermove', (event) => {
    const box = map.getBoundingClientRect();
    const scale = map.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale) / pitch);
    const row = Math.floor(((event.clientY - box.top) * scale) / pitch);
    const cell = row * data.columns + column;
    if (column < 0 || column >= data.columns || !point(cell)) return hide();
    show(data.texts[cell], event.clientX, event.clientY);
  });
  const leave = () => { mark.setAttribute('visibility', 'hidden'); hide(); };
  map.addEventListener('pointerleave', leave);
  map.addEventListener('blur', leave);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.columns, ArrowDown: data.columns };
  const walk = (cell) => {
    const place = point(cell);
    if (!place) return;
    const box = map.getBoundingClientRect();
    const scale = box.width / map.viewBox.baseVal.width;
    show(data.texts[cell], box.left + place[0] * scale, box.top + place[1] * scale);
    map.setAttribute('aria-valuetext', data.texts[cell]);
    map.setAttribute('aria-valuenow', String(cell));
  };
  map.addEventListener('focus', () => walk(current));
  map.addEventListener('keydown', (event) => {
    const by = step[event.key];
    const to = event.key === 'Home' ? 0 : event.key === 'End' ? data.texts.length - 1 : by === undefined ? undefined : current + by;
    if (to === undefined) return;
    event.preventDefault();
    walk(to);
  });
})();
`;
