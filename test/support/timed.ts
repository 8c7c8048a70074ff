/** What a program takes from its start to its end, measured by GNU time. */

import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { median } from './bench.ts';
import { findProgram, requirePrograms, type Skip } from './requires.ts';

export interface Usage {
  readonly wallMs: number;
  /** User and system time of all its threads and children, in steps of 10 ms each. */
  readonly cpuMs: number;
  /** The most memory that was resident. */
  readonly peakBytes: number;
}

/** Programs and their arguments. */
export type CommandLine = readonly string[];

export const requiresTime = (): Skip => requirePrograms(['time'], 'time');

/** Runs a program to its end, output thrown away. @param notes folder for a small file @throws when it fails */
export async function timed(command: CommandLine, notes: string): Promise<Usage> {
  const report = join(notes, 'time');
  const began = performance.now();
  const child = spawn(findProgram('time') as string, ['-q', '-o', report, '-f', '%U %S %M', ...command], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const status = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const wallMs = performance.now() - began;
  if (status !== 0) throw new Error(`${command.join(' ')}: status ${status}\n${stderr}`);
  const [user, system, kib] = (await readFile(report, 'utf8')).trim().split(' ').map(Number) as [
    number,
    number,
    number,
  ];
  return { wallMs, cpuMs: (user + system) * 1000, peakBytes: kib * 1024 };
}

export interface Paired {
  /** Medians of each side. */
  readonly ours: Usage;
  readonly theirs: Usage;
  /** Median of the rounds' ratios, ours to theirs. */
  readonly wallRatio: number;
  readonly cpuRatio: number;
}

/** Runs two programs in alternating rounds, who begins taking turns. @param before runs before each, not measured */
export async function pairs(
  ours: CommandLine,
  theirs: CommandLine,
  { rounds, notes, before }: { rounds: number; notes: string; before: () => Promise<void> },
): Promise<Paired> {
  const results: [Usage, Usage][] = [];
  for (let round = 0; round < rounds; round++) {
    const pair: (Usage | undefined)[] = [undefined, undefined];
    for (const turn of round % 2 === 0 ? [0, 1] : [1, 0]) {
      await before();
      pair[turn] = await timed(turn === 0 ? ours : theirs, notes);
    }
    results.push(pair as [Usage, Usage]);
  }
  const middle = (side: 0 | 1): Usage => ({
    wallMs: median(results.map((pair) => pair[side].wallMs)),
    cpuMs: median(results.map((pair) => pair[side].cpuMs)),
    peakBytes: Math.max(...results.map((pair) => pair[side].peakBytes)),
  });
  return {
    ours: middle(0),
    theirs: middle(1),
    wallRatio: median(results.map(([one, other]) => one.wallMs / other.wallMs)),
    cpuRatio: median(results.map(([one, other]) => one.cpuMs / Math.max(other.cpuMs, 10))),
  };
}
