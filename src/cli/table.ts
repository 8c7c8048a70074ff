import type { Output } from './context.ts';
import { oneLine } from './exit.ts';

export interface Column {
  readonly title: string;
  /** Numbers stand at the right. */
  readonly right?: boolean;
  /** Is cut short when the terminal is too narrow for the table. */
  readonly cut?: boolean;
}

const GAP = '  ';
/** What is left of a cut column at least. */
const MIN_WIDTH = 8;

/** The width that text for people may take: the terminal's. What goes elsewhere is not cut. */
export function widthOf(output: Output): number {
  return output.isTerminal ? (output.columns ?? 80) : Number.POSITIVE_INFINITY;
}

/**
 * A table with a title over each column. What is in the cells may come from an image: it stays on its line.
 *
 * @param width of the terminal, characters
 * @returns lines without ends
 */
export function renderTable(columns: readonly Column[], rows: readonly (readonly string[])[], width: number): string[] {
  const cells = [columns.map(({ title }) => title), ...rows.map((row) => row.map(oneLine))];
  const widths = columns.map((_, i) => Math.max(...cells.map((row) => lengthOf(row[i] ?? ''))));
  let over = widths.reduce((sum, each) => sum + each, 0) + GAP.length * (columns.length - 1) - width;
  // The widest of those that may be cut gives first.
  while (over > 0) {
    let widest = -1;
    for (const [i, { cut }] of columns.entries()) {
      const own = widths[i] as number;
      if (cut === true && own > MIN_WIDTH && (widest < 0 || own > (widths[widest] as number))) widest = i;
    }
    if (widest < 0) break;
    widths[widest] = (widths[widest] as number) - 1;
    over--;
  }
  return cells.map((row) =>
    columns
      .map(({ right = false }, i) => {
        const text = shorten(row[i] ?? '', widths[i] as number);
        const padding = ' '.repeat((widths[i] as number) - lengthOf(text));
        return right ? padding + text : text + padding;
      })
      .join(GAP)
      .trimEnd(),
  );
}

/** Cuts text in its middle, where the least is lost. */
export function shorten(text: string, width: number): string {
  const letters = [...text];
  if (letters.length <= width) return text;
  const head = Math.ceil((width - 1) / 2);
  return `${letters.slice(0, head).join('')}…${letters.slice(letters.length - (width - 1 - head)).join('')}`;
}

function lengthOf(text: string): number {
  return [...text].length;
}
