import { formatSize, hex } from '../../formats/core/units.ts';
import { ALLOCATION_KINDS, type Allocation, type AllocationKind } from './allocation.ts';
import { html, type Markup } from './markup.ts';

/** What each kind is called, where there is room for two or three words. */
export const KIND_LABELS: Readonly<Record<AllocationKind | 'unallocated', string>> = {
  data: 'data of this image alone',
  shared: 'shared with a snapshot',
  compressed: 'compressed',
  zero: 'zeros',
  below: 'from a backing file',
  unallocated: 'unallocated',
};

export const PICTURE_COLUMNS = 64;
const CELL = 14;
const GAP = 2;

/** Light and dark colours by kind, told apart by those who see fewer colours as well; as CSS for a picture or a page. */
export const KIND_COLOURS = `
:root{--data:#2563eb;--shared:#a78bfa;--compressed:#0d9488;--zero:#94a3b8;--below:#d97706;--unallocated:#e2e8f0}
@media(prefers-color-scheme:dark){:root{--data:#60a5fa;--shared:#8b7fd8;--compressed:#2dd4bf;--zero:#64748b;--below:#fbbf24;--unallocated:#1e293b}}
`;

/** The cells of an allocation map: one path for each kind, however many cells there are. */
export function allocationShapes(allocation: Allocation): {
  readonly width: number;
  readonly height: number;
  readonly shapes: Markup;
} {
  const rows = Math.max(1, Math.ceil(allocation.cells / PICTURE_COLUMNS));
  const paths = new Map<string, string>();
  const add = (kind: string, x: number, y: number, height: number): void => {
    const text = `M${x} ${round(y)}h${CELL}v${round(height)}h-${CELL}z`;
    paths.set(kind, (paths.get(kind) ?? '') + text);
  };
  for (let i = 0; i < allocation.cells; i++) {
    const [x, y] = placeOf(i);
    add('unallocated', x, y, CELL);
    const whole = Math.min(allocation.cellSize, allocation.size - i * allocation.cellSize);
    let bottom = y + CELL;
    for (const kind of ALLOCATION_KINDS) {
      const bytes = allocation.bytes[kind][i] as number;
      if (bytes <= 0) continue;
      // A little of something is seen as well.
      const height = Math.min(Math.max((CELL * bytes) / whole, 1.5), bottom - y);
      bottom -= height;
      add(kind, x, bottom, height);
    }
  }
  const shapes = [...paths].map(([kind, d]) => html`<path fill="var(--${kind})" d="${d}"/>`);
  return { width: PICTURE_COLUMNS * (CELL + GAP), height: rows * (CELL + GAP), shapes: html`${shapes}` };
}

function placeOf(cell: number): readonly [x: number, y: number] {
  return [(cell % PICTURE_COLUMNS) * (CELL + GAP), Math.floor(cell / PICTURE_COLUMNS) * (CELL + GAP)];
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

/** What a cell holds, in words. */
export function describeCell(allocation: Allocation, cell: number): string {
  const start = cell * allocation.cellSize;
  const end = Math.min(start + allocation.cellSize, allocation.size);
  const parts = ALLOCATION_KINDS.filter((kind) => (allocation.bytes[kind][cell] as number) > 0).map(
    (kind) => `${KIND_LABELS[kind]} ${formatSize(allocation.bytes[kind][cell] as number)}`,
  );
  const what = parts.length === 0 ? KIND_LABELS.unallocated : parts.join(', ');
  return `${formatSize(start)} to ${formatSize(end)} (at ${hex(start)}): ${what}`;
}

/** Kinds with their colours and sums. */
export function allocationLegend(allocation: Allocation): Markup {
  const kinds = [...ALLOCATION_KINDS, 'unallocated' as const].filter(
    (kind) => allocation.totals[kind] > 0 || kind === 'unallocated',
  );
  return html`<ul class="legend">${kinds.map(
    (kind) =>
      html`<li><i style="background:var(--${kind})"></i>${KIND_LABELS[kind]} <b data-kind="${kind}" data-bytes="${allocation.totals[kind]}">${formatSize(allocation.totals[kind])}</b></li>`,
  )}</ul>`;
}

/** An SVG file that needs no page around it: cells say what they hold when they are pointed at. */
export function renderAllocationSvg(title: string, allocation: Allocation): string {
  const { width, height, shapes } = allocationShapes(allocation);
  const kinds = [...ALLOCATION_KINDS, 'unallocated' as const];
  const cells = Array.from({ length: allocation.cells }, (_, i) => {
    const [x, y] = placeOf(i);
    return html`<rect x="${x}" y="${y}" width="${CELL + GAP}" height="${CELL + GAP}" fill-opacity="0"><title>${describeCell(allocation, i)}</title></rect>\n`;
  });
  const legend = kinds.map((kind, i) => {
    const x = (i % 3) * (width / 3);
    const y = height + 18 + Math.floor(i / 3) * 22;
    return html`<rect x="${x}" y="${y}" width="12" height="12" fill="var(--${kind})"/><text x="${x + 18}" y="${y + 11}">${KIND_LABELS[kind]}: ${formatSize(allocation.totals[kind])}</text>`;
  });
  const { markup } =
    html`<svg xmlns="http://www.w3.org/2000/svg" viewBox="-16 -44 ${width + 32} ${height + 112}" role="img" aria-labelledby="t" font-family="system-ui,sans-serif" font-size="13">
<title id="t">Allocation of ${title}</title>
<style>${{ markup: KIND_COLOURS }}text{fill:#0f172a}.page{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#e2e8f0}.page{fill:#0b1120}}</style>
<rect class="page" x="-16" y="-44" width="100%" height="100%"/>
<text y="-18" font-size="18" font-weight="600">${title}, ${formatSize(allocation.size)}</text>
${shapes}
${cells}${legend}
</svg>`;
  return `${markup}\n`;
}
