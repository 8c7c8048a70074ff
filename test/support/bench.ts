/**
 * Benchmarks: named functions that print a table. Each has a smoke size, which the tests run so that it cannot rot, and a
 * full size for `npm run bench`.
 */

import type { Skip } from './requires.ts';

export interface Bench {
  /** True in the tests: small, no verdicts. */
  readonly smoke: boolean;
  readonly seed: number;
  /** The first at smoke size, the second at full size. */
  pick<T>(smoke: T, full: T): T;
  /** Runs when the benchmark is over, the last one first. */
  after(release: () => unknown): void;
  print(line: string): void;
  /** Prints rows in columns: text to the left, the rest to the right. */
  table(title: string, columns: readonly string[], rows: readonly (readonly (string | number)[])[]): void;
}

export interface Benchmark {
  readonly name: string;
  /** Why it cannot run here, or false. */
  readonly skip: () => Skip;
  readonly run: (b: Bench) => Promise<void> | void;
}

/** Those declared by the files imported so far. */
export const benchmarks: Benchmark[] = [];

/** Declares a benchmark. */
export function bench(name: string, run: (b: Bench) => Promise<void> | void, skip: () => Skip = () => false): void {
  benchmarks.push({ name, run, skip });
}

/** Runs one and releases what it took. */
export async function runBenchmark(
  benchmark: Benchmark,
  { smoke, seed, print }: { smoke: boolean; seed: number; print: (line: string) => void },
): Promise<void> {
  const releases: (() => unknown)[] = [];
  const b: Bench = {
    smoke,
    seed,
    pick: (small, full) => (smoke ? small : full),
    after: (release) => releases.push(release),
    print,
    table: (title, columns, rows) => {
      for (const line of formatTable(title, columns, rows)) print(line);
    },
  };
  try {
    await benchmark.run(b);
  } finally {
    for (const release of releases.reverse()) await release();
  }
}

/** The lines of a table. */
export function formatTable(
  title: string,
  columns: readonly string[],
  rows: readonly (readonly (string | number)[])[],
): string[] {
  const cells = [columns, ...rows].map((row) => row.map(String));
  const widths = columns.map((_, at) => Math.max(...cells.map((row) => (row[at] ?? '').length)));
  const lines = cells.map((row) =>
    row
      .map((cell, at) => (at === 0 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
  return [title, ...lines.map((line) => `  ${line}`)];
}

/** The middle value; the mean of the two in the middle when their number is even. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new Error('median of nothing');
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >>> 1;
  const upper = sorted[half] as number;
  return sorted.length % 2 === 1 ? upper : ((sorted[half - 1] as number) + upper) / 2;
}
