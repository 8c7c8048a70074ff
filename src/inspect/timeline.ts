import { html, type Markup } from './markup.ts';

export interface TimelinePoint {
  readonly timeMs: number;
  readonly label: string;
  /** What the circle's area stands for. */
  readonly weight: number;
  readonly colour: string;
  readonly tip: string;
}

const WIDTH = 1000;
const MARGIN = 46;
const MIN_GAP = 16;
const MAX_RADIUS = 24;
const MIN_RADIUS = 5;
const MAX_LETTERS = 16;
/** About the width of a letter. */
const LETTER = 7;
const MIDDLE = 82;
/** Where names are written, above and below the circles. */
const LANES = [46, 126, 28, 144, 10];

/** Points in time as circles on a line that ends now. Points that lie close are moved apart: their order stays. */
export function renderTimeline(points: readonly TimelinePoint[], nowMs: number): Markup {
  const ordered = [...points].sort((a, b) => a.timeMs - b.timeMs);
  const first = Math.min(nowMs, ordered[0]?.timeMs ?? nowMs);
  const span = Math.max(nowMs - first, 1);
  const room = WIDTH - 2 * MARGIN;
  const gap = Math.min(MIN_GAP, room / (ordered.length + 1));
  const places = ordered.map(({ timeMs }) => MARGIN + (room * Math.min(Math.max(timeMs - first, 0), span)) / span);
  for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i] as number, (places[i - 1] as number) + gap);
  // What was pushed behind now moves back.
  let limit = WIDTH - MARGIN - gap;
  for (let i = places.length - 1; i >= 0 && (places[i] as number) > limit; i--) {
    places[i] = limit;
    limit -= gap;
  }
  const most = Math.max(1, ...ordered.map(({ weight }) => weight));
  // The rightmost letter so far on each line of names.
  const lanes = LANES.map(() => 0);
  const circles = ordered.map(({ weight, colour, tip, label }, i) => {
    const radius = Math.max(MIN_RADIUS, MAX_RADIUS * Math.sqrt(weight / most));
    const x = places[i] as number;
    const letters = [...label];
    const short = letters.length > MAX_LETTERS ? `${letters.slice(0, MAX_LETTERS - 1).join('')}…` : label;
    const half = ([...short].length * LETTER) / 2;
    const lane = lanes.findIndex((end) => x - half > end);
    if (lane >= 0) lanes[lane] = x + half + LETTER;
    // Where there is no room the tooltip alone tells.
    const text =
      lane < 0
        ? ''
        : html`<text x="${Math.max(x, half).toFixed(1)}" y="${LANES[lane]}" text-anchor="middle">${short}</text>`;
    return html`<circle cx="${x.toFixed(1)}" cy="${MIDDLE}" r="${radius.toFixed(1)}" fill="${colour}" fill-opacity=".85" tabindex="0" role="img" aria-label="${tip}" data-tip="${tip}"/>${text}`;
  });
  const day = (ms: number): string => (Math.abs(ms) < 8e15 ? new Date(ms).toISOString().slice(0, 10) : '');
  return html`<svg viewBox="0 0 ${WIDTH} 178" aria-label="Snapshots over time" role="group"><line x1="${MARGIN}" x2="${WIDTH - MARGIN}" y1="${MIDDLE}" y2="${MIDDLE}" stroke="var(--line)" stroke-width="3" stroke-linecap="round"/><circle cx="${WIDTH - MARGIN}" cy="${MIDDLE}" r="6" fill="var(--accent)"/>${circles}<text x="${MARGIN}" y="172">${day(first)}</text><text x="${WIDTH - MARGIN}" y="172" text-anchor="end">${day(nowMs)}, now</text></svg>`;
}
