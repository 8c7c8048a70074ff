/**
 * `lunette export` beside tgtd, in one run, on the same machine, with the same initiators, in alternating rounds. Verdicts
 * are by CPU per request, which is steady on noisy machines; requests per second as the median of the rounds' ratios.
 */

import { copyFile, mkdtemp, open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { KiB, MiB } from '../../formats/core/units.ts';
import { type Bench, bench, median } from '../support/bench.ts';
import { applyLoad, dropFromPageCache, type Load, type LoadResult, type Serving } from '../support/iscsi-load.ts';
import { startExport } from '../support/lunette-export.ts';
import { memoryFolder } from '../support/memory-folder.ts';
import { loopDelay, scrape } from '../support/metrics.ts';
import { freePort } from '../support/ports.ts';
import { qemu } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { requires, type Skip } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';
import { startTgt } from '../support/tgt.ts';

const LOADS: readonly Load[] = [
  { name: '4 KiB random read, depth 32', kind: 'read', block: 4 * KiB, depth: 32, random: true },
  { name: '4 KiB random read, depth 1', kind: 'read', block: 4 * KiB, depth: 1, random: true },
  { name: '1 MiB sequential read, depth 4', kind: 'read', block: MiB, depth: 4, random: false },
  { name: '4 KiB random write, depth 32', kind: 'write', block: 4 * KiB, depth: 32, random: true },
];

/** What is aimed at: our requests per second and CPU as parts of tgtd's, our qcow2's requests as a part of our raw's. */
const TARGETS = [
  { iops: 2.8, cpu: 0.4, cpuUs: 7, qcow2: 0.85 },
  { iops: 1.2, cpu: undefined, cpuUs: undefined, qcow2: 0.85 },
  { iops: 1.2, cpu: undefined, cpuUs: undefined, qcow2: 0.85 },
  { iops: 1.5, cpu: undefined, cpuUs: undefined, qcow2: undefined },
] as const;

async function randomFile(path: string, size: number, seed: number): Promise<void> {
  const random = new Random(seed);
  const handle = await open(path, 'w');
  const chunk = random.bytes(Math.min(size, 4 * MiB));
  for (let at = 0; at < size; at += chunk.length) {
    random.fill(chunk.subarray(0, 4 * KiB)); // no two chunks alike
    await handle.write(chunk, 0, Math.min(chunk.length, size - at), at);
  }
  await handle.close();
}

async function besideTgt(b: Bench, folder: string, where: string): Promise<void> {
  const size = b.pick(8 * MiB, 512 * MiB);
  const rounds = b.pick(1, 5);
  const seconds = b.pick(1, 2);
  const raw = join(folder, 'disk.raw');
  await randomFile(raw, size, b.seed);
  const tgtRaw = join(folder, 'tgt.raw');
  await copyFile(raw, tgtRaw);
  const qcow2 = join(folder, 'disk.qcow2');
  await qemu.convert(raw, qcow2, '-f', 'raw', '-O', 'qcow2');

  const servers: Record<'tgtd' | 'raw' | 'qcow2', Serving> = {
    tgtd: await startTgt(b, [{ path: tgtRaw, params: ['thin_provisioning=1'] }]),
    raw: await startExport(b, raw, { args: ['-f', 'raw'] }),
    qcow2: await startExport(b, qcow2),
  };
  const order = Object.keys(servers) as (keyof typeof servers)[];
  // Page cache, mappings, compiled code.
  for (const name of order) await applyLoad(LOADS[2] as Load, servers[name], 1, 0);

  const rows: string[][] = [];
  for (const [at, load] of LOADS.entries()) {
    const writes = b.pick(500, load.depth === 1 ? 20_000 : 80_000);
    const results: Record<keyof typeof servers, LoadResult[]> = { tgtd: [], raw: [], qcow2: [] };
    for (let round = 0; round < rounds; round++) {
      // Another one first each time: what drifts then does not favour one of them.
      for (let turn = 0; turn < order.length; turn++) {
        const name = order[(turn + round) % order.length] as keyof typeof servers;
        results[name].push(await applyLoad(load, servers[name], seconds, writes));
      }
    }
    rows.push(...rowsOf(load, results, TARGETS[at] as (typeof TARGETS)[number]));
  }
  b.table(
    `iSCSI over TCP on one machine, ${size / MiB} MiB ${where}, ${rounds} rounds: medians [range]`,
    ['', 'tgtd', 'lunette raw', 'lunette qcow2', 'raw/tgtd', 'aim', 'qcow2/raw', 'aim'],
    rows,
  );
}

const needs = (): Skip =>
  requires.libiscsi() || requires.tgt() || requires.qemuIscsi() || requires.root() || requires.linux();

// In memory nothing is measured but the servers; on a disk's file system the kernel's part of a write can be most of it.
bench(
  'iscsi/beside-tgtd/memory',
  async (b) => {
    const folder = await mkdtemp(join(memoryFolder as string, 'lunette-bench-'));
    b.after(() => rm(folder, { recursive: true, force: true }));
    await besideTgt(b, folder, 'in memory');
  },
  () => needs() || requires.that(memoryFolder !== undefined, 'needs a file system in memory'),
);
bench(
  'iscsi/beside-tgtd/disk',
  async (b) => besideTgt(b, await temporaryDirectory(b), 'in the page cache of a disk'),
  needs,
);

function rowsOf(
  load: Load,
  results: Record<'tgtd' | 'raw' | 'qcow2', LoadResult[]>,
  aim: (typeof TARGETS)[number],
): string[][] {
  const ratio = (a: LoadResult[], b: LoadResult[], key: keyof LoadResult): number =>
    median(a.map((result, at) => result[key] / (b[at] as LoadResult)[key]));
  const iops = (list: LoadResult[]): string => {
    const values = list.map((result) => result.iops);
    const k = (value: number): string => (value >= 10_000 ? `${(value / 1000).toFixed(1)}k` : value.toFixed(0));
    return `${k(median(values))} [${k(Math.min(...values))}-${k(Math.max(...values))}]`;
  };
  const cpu = (list: LoadResult[]): string => `${median(list.map((result) => result.cpuUs)).toFixed(1)} µs`;
  const { tgtd, raw, qcow2 } = results;
  const cpuAims = [aim.cpu === undefined ? '' : `≤ ${aim.cpu}`, aim.cpuUs === undefined ? '' : `≤ ${aim.cpuUs} µs`];
  return [
    [
      `${load.name}: per second`,
      iops(tgtd),
      iops(raw),
      iops(qcow2),
      ratio(raw, tgtd, 'iops').toFixed(2),
      `≥ ${aim.iops}`,
      ratio(qcow2, raw, 'iops').toFixed(2),
      aim.qcow2 === undefined ? '' : `≥ ${aim.qcow2}`,
    ],
    [
      '  server CPU per request',
      cpu(tgtd),
      cpu(raw),
      cpu(qcow2),
      ratio(raw, tgtd, 'cpuUs').toFixed(2),
      cpuAims.filter((text) => text !== '').join(', '),
      ratio(qcow2, raw, 'cpuUs').toFixed(2),
      '',
    ],
  ];
}

bench(
  'iscsi/cold-data',
  async (b) => {
    const size = b.pick(16 * MiB, 2048 * MiB);
    const folder = await temporaryDirectory(b);
    const raw = join(folder, 'disk.raw');
    await randomFile(raw, size, b.seed);
    const port = await freePort();
    const target = await startExport(b, raw, {
      args: ['-f', 'raw', '--metrics', `127.0.0.1:${port}`],
    });
    const rows: string[][] = [];
    const seconds = b.pick(1, 5);
    for (const depth of [32, 1]) {
      await dropFromPageCache(raw);
      await sleep(200); // what starting and dropping did to the loop is not what is measured
      await scrape(port); // a scrape begins a new window
      const load: Load = { name: '', kind: 'read', block: 4 * KiB, depth, random: true };
      const { iops, cpuUs } = await applyLoad(load, target, seconds, 0);
      const delay = loopDelay(await scrape(port));
      rows.push([
        `4 KiB random read, depth ${depth}`,
        iops.toFixed(0),
        `${cpuUs.toFixed(1)} µs`,
        `${(delay * 1000).toFixed(1)} ms`,
        depth === 32 ? '< 20 ms' : '',
      ]);
    }
    b.table(
      `Data that is not in the page cache, ${size / MiB} MiB`,
      ['', 'per second', 'CPU', 'loop delay p99', 'aim'],
      rows,
    );
  },
  () => requires.libiscsi() || requires.linux(),
);
