/**
 * A qcow2 image written and read through `lunette export`, over NBD and over iSCSI, beside qemu-nbd (cache=writeback, what it does by default), in one
 * run, in alternating rounds, with `qemu-img bench` as the client of all. Requests go through the disk in steps of a prime number of blocks: each meets
 * another cluster. Verdicts are by the median of the rounds' ratios; CPU per request is the steadier figure on noisy machines.
 * Each load and place is a benchmark of its own: `npm run bench -- qcow2/write/memory/new-4k` takes a minute.
 */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { GiB, KiB, MiB, TiB } from '../../formats/core/units.ts';
import { type Bench, bench, median } from '../support/bench.ts';
import { startExport } from '../support/lunette-export.ts';
import { memoryFolder } from '../support/memory-folder.ts';
import { startNbdExport, startQemuNbd } from '../support/nbd.ts';
import { runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { requires, type Skip } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Load {
  readonly slug: string;
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
  /** Enough that a server's first second, in which its code is compiled, is the small part. */
  readonly count: readonly [smoke: number, full: number];
  readonly flushEvery?: number;
  /** Of that many on a disk, which is what is waited for. Default: the full count. */
  readonly diskCount?: number;
  /** Bytes of tables that either keeps in memory. */
  readonly cache?: number;
  /** Requests per second beside qemu-nbd. */
  readonly aim: number;
}

const LOADS: readonly Load[] = [
  {
    slug: 'new-4k',
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
    slug: 'flushed-4k',
    name: '4 KiB write, new clusters, depth 32, a flush after every 32',
    size: [64 * MiB, 4 * GiB],
    allocated: false,
    write: true,
    block: 4 * KiB,
    step: 10_007,
    depth: 32,
    count: [200, 24_000],
    flushEvery: 32,
    aim: 1,
  },
  {
    slug: 'allocated-4k',
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
    slug: 'new-1m',
    name: '1 MiB write in order, new clusters, depth 4',
    size: [64 * MiB, 4 * GiB],
    allocated: false,
    write: true,
    block: MiB,
    step: 1,
    depth: 4,
    count: [20, 2000],
    diskCount: 500,
    aim: 1,
  },
  {
    slug: 'read-1t',
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

/** Where the images are, how many requests go there in each of how many rounds. */
interface Place {
  readonly folder: string;
  readonly count: number;
  readonly rounds: number;
}

const SERVERS = ['qemu', 'nbd', 'iscsi'] as const;
type Server = (typeof SERVERS)[number];

interface Running {
  readonly url: string;
  cpuSeconds(): number;
  stop(): Promise<unknown>;
}

async function serve(b: Bench, load: Load, server: Server, path: string): Promise<Running> {
  if (server === 'qemu') {
    const running = await startQemuNbd(b, path, 'qcow2', '--cache=writeback');
    return { url: running.url, cpuSeconds: running.cpuSeconds, stop: () => running.process.stop('SIGTERM') };
  }
  const cache = load.cache === undefined ? [] : ['--cache', String(load.cache)];
  if (server === 'iscsi') return startExport(b, path, { args: cache });
  const running = await startNbdExport(b, path, { args: ['--socket', '', ...cache] });
  return { url: running.url, cpuSeconds: running.cpuSeconds, stop: () => running.process.stop('SIGTERM') };
}

async function apply(load: Load, count: number, server: Running): Promise<Result> {
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

async function round(b: Bench, load: Load, who: Server, { folder, count }: Place): Promise<Result> {
  const path = join(folder, `${who}.qcow2`);
  const options = load.allocated ? { preallocation: 'metadata' } : {};
  await qemu.create(b, { path, size: b.pick(...load.size), clusterSize: 64 * KiB, options });
  // Written once, so that what is overwritten has its place on the disk.
  if (load.allocated && load.write) await qemu.io(path, `write -q 0 ${b.pick(...load.size)}`);
  const server = await serve(b, load, who, path);
  const result = await apply(load, count, server);
  await server.stop();
  await rm(path);
  return result;
}

async function beside(b: Bench, load: Load, place: Place, where: string): Promise<void> {
  const { rounds } = place;
  const results: Record<Server, Result[]> = { qemu: [], nbd: [], iscsi: [] };
  for (let at = 0; at < rounds; at++) {
    for (let turn = 0; turn < SERVERS.length; turn++) {
      const who = SERVERS[(turn + at) % SERVERS.length] as Server;
      results[who].push(await round(b, load, who, place));
    }
  }
  const ratio = (who: Server, key: keyof Result): string =>
    median(results[who].map((result, at) => result[key] / (results.qemu[at] as Result)[key])).toFixed(2);
  const of = (who: Server, key: keyof Result): number => median(results[who].map((each) => each[key]));
  const perSecond = (who: Server): string => of(who, 'perSecond').toFixed(0);
  const cpu = (who: Server): string => `${of(who, 'cpuUs').toFixed(1)} µs`;
  b.table(
    `qcow2, image on ${where}, ${rounds} rounds: medians`,
    ['', 'qemu-nbd', 'lunette nbd', 'lunette iscsi', 'nbd/qemu', 'iscsi/qemu', 'aim'],
    [
      [
        `${load.name}: per second`,
        ...SERVERS.map(perSecond),
        ratio('nbd', 'perSecond'),
        ratio('iscsi', 'perSecond'),
        `≥ ${load.aim}`,
      ],
      ['  server CPU per request', ...SERVERS.map(cpu), ratio('nbd', 'cpuUs'), ratio('iscsi', 'cpuUs'), ''],
    ],
  );
}

const needs = (): Skip => requires.qemuNbd() || requires.qemuIscsi() || requires.linux();

for (const load of LOADS) {
  bench(
    `qcow2/write/memory/${load.slug}`,
    async (b) => {
      const folder = await temporaryDirectory(b, memoryFolder);
      await beside(b, load, { folder, count: b.pick(...load.count), rounds: b.pick(1, 5) }, 'tmpfs');
    },
    () => needs() || requires.that(memoryFolder !== undefined, 'needs a file system in memory'),
  );
  bench(
    `qcow2/write/disk/${load.slug}`,
    async (b) => {
      if (b.smoke) return; // one place is enough
      const [, full] = load.count;
      await beside(
        b,
        load,
        { folder: await temporaryDirectory(b), count: load.diskCount ?? full, rounds: 3 },
        'a disk',
      );
    },
    needs,
  );
}
