/**
 * A qcow2 image written and read through `lunette export --transport nbd` beside qemu-nbd (cache=writeback, what it does by default), in one run,
 * in alternating rounds, with `qemu-img bench` on a unix socket as the client of both. Requests go through the disk in steps of a prime number of
 * blocks: each meets another cluster. Verdicts are by the median of the rounds' ratios; CPU per request is the steadier figure on noisy machines.
 */

import { statfsSync } from 'node:fs';
import { join } from 'node:path';
import { GiB, KiB, MiB, TiB } from '../../formats/core/units.ts';
import { type Bench, bench, median } from '../support/bench.ts';
import { isBuilt } from '../support/lunette-export.ts';
import { memoryFolder } from '../support/memory-folder.ts';
import { type RunningNbd, startNbdExport, startQemuNbd } from '../support/nbd.ts';
import { runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Load {
  readonly name: string;
  /** Of the image. */
  readonly size: readonly [smoke: number, full: number];
  /** All clusters are allocated before. */
  readonly allocated: boolean;
  readonly write: boolean;
  readonly block: number;
  /** Blocks from one request to the next. */
  readonly step: number;
  readonly depth: number;
  readonly count: readonly [smoke: number, full: number];
  readonly flushEvery?: number;
  /** Bytes of tables that either keeps in memory. */
  readonly cache?: number;
  /** Requests per second beside qemu-nbd. */
  readonly aim: number;
}

const LOADS: readonly Load[] = [
  {
    name: '4 KiB write, new clusters, depth 32',
    size: [64 * MiB, 4 * GiB],
    allocated: false,
    write: true,
    block: 4 * KiB,
    step: 10_007,
    depth: 32,
    count: [200, 30_000],
    aim: 1.5,
  },
  {
    name: '… flushed after every 32',
    size: [64 * MiB, 4 * GiB],
    allocated: false,
    write: true,
    block: 4 * KiB,
    step: 10_007,
    depth: 32,
    count: [200, 6000],
    flushEvery: 32,
    aim: 1,
  },
  {
    name: '4 KiB write, allocated clusters, depth 32',
    size: [64 * MiB, 512 * MiB],
    allocated: true,
    write: true,
    block: 4 * KiB,
    step: 10_007,
    depth: 32,
    count: [200, 60_000],
    aim: 1.5,
  },
  {
    name: '1 MiB write in order, new clusters, depth 4',
    size: [64 * MiB, 4 * GiB],
    allocated: false,
    write: true,
    block: MiB,
    step: 1,
    depth: 4,
    count: [20, 2000],
    aim: 1,
  },
  {
    name: '4 KiB read, 1 TiB, 32 MiB of tables in memory, depth 32',
    size: [64 * MiB, TiB],
    allocated: true,
    write: false,
    block: 4 * KiB,
    step: 9473, // 37 MiB: always another part of the tables
    depth: 32,
    count: [200, 40_000],
    cache: 32 * MiB,
    aim: 1,
  },
];

interface Result {
  readonly perSecond: number;
  readonly cpuUs: number;
}

async function apply(b: Bench, load: Load, server: RunningNbd): Promise<Result> {
  const count = b.pick(...load.count);
  const before = server.cpuSeconds();
  const flush = load.flushEvery === undefined ? [] : [`--flush-interval=${load.flushEvery}`];
  const text = await runOk('qemu-img', [
    'bench',
    ...['-f', 'raw', '-c', String(count), '-d', String(load.depth), '-s', String(load.block)],
    ...['-S', String(load.block * load.step), '-t', 'none', ...(load.write ? ['-w', '--pattern=90'] : []), ...flush],
    server.url,
  ]);
  const seconds = /Run completed in ([\d.]+) seconds/.exec(text)?.[1];
  if (seconds === undefined) throw new Error(text);
  return { perSecond: count / Number(seconds), cpuUs: ((server.cpuSeconds() - before) / count) * 1e6 };
}

async function round(b: Bench, load: Load, who: 'qemu' | 'lunette', folder: string): Promise<Result> {
  const path = join(folder, `${who}.qcow2`);
  const options = load.allocated ? { preallocation: 'metadata' } : {};
  await qemu.create(b, { path, size: b.pick(...load.size), clusterSize: 64 * KiB, options });
  // Written once, so that what is overwritten has its place on the disk.
  if (load.allocated && load.write) await qemu.io(path, `write -q 0 ${b.pick(...load.size)}`);
  const server =
    who === 'qemu'
      ? await startQemuNbd(b, path, 'qcow2', '--cache=writeback')
      : await startNbdExport(b, path, {
          args: ['--socket', '', ...(load.cache === undefined ? [] : ['--cache', String(load.cache)])],
          built: !b.smoke,
        });
  const result = await apply(b, load, server);
  await server.process.stop('SIGTERM');
  return result;
}

async function beside(b: Bench, folder: string, where: string): Promise<void> {
  const rounds = b.pick(1, 5);
  const rows: string[][] = [];
  for (const load of LOADS) {
    const results = { qemu: [] as Result[], lunette: [] as Result[] };
    for (let i = 0; i < rounds; i++) {
      const turn = ['qemu', 'lunette'] as const;
      for (const who of i % 2 === 0 ? turn : turn.toReversed()) results[who].push(await round(b, load, who, folder));
    }
    const ratio = (key: keyof Result): string =>
      median(results.lunette.map((result, i) => result[key] / (results.qemu[i] as Result)[key])).toFixed(2);
    const of = (who: 'qemu' | 'lunette', key: keyof Result): number => median(results[who].map((each) => each[key]));
    rows.push(
      [
        `${load.name}: per second`,
        of('qemu', 'perSecond').toFixed(0),
        of('lunette', 'perSecond').toFixed(0),
        ratio('perSecond'),
        `≥ ${load.aim}`,
      ],
      [
        '  server CPU per request',
        `${of('qemu', 'cpuUs').toFixed(1)} µs`,
        `${of('lunette', 'cpuUs').toFixed(1)} µs`,
        ratio('cpuUs'),
        '',
      ],
    );
  }
  b.table(
    `qcow2 over NBD on unix sockets, image on ${where}, ${rounds} rounds: medians`,
    ['', 'qemu-nbd', 'lunette', 'ratio', 'aim'],
    rows,
  );
}

bench(
  'qcow2/write-beside-qemu-nbd',
  async (b) => {
    if (!b.smoke && !isBuilt()) throw new Error('measure what users run: npm run build first');
    const memory = memoryFolder;
    if (memory !== undefined) await beside(b, await temporaryDirectory(b, memory), 'tmpfs');
    const folder = await temporaryDirectory(b);
    if (!b.smoke) await beside(b, folder, `the disk (file system ${statfsSync(folder).type.toString(16)})`);
  },
  () => requires.qemuImg() || requires.qemuNbd() || requires.linux(),
);
