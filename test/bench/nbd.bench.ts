/**
 * `lunette export --transport nbd` beside qemu-nbd and nbdkit, in one run, on the same machine, on unix sockets, with fio as the client,
 * in alternating rounds. Verdicts are by CPU per request, which is steady on noisy machines; requests per second as the median of the rounds' ratios.
 * Each load is a benchmark of its own: `npm run bench -- nbd/beside/read-4k-depth-32` takes less than a minute.
 */

import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { KiB, MiB } from '../../formats/core/units.ts';
import { type Bench, bench, median } from '../support/bench.ts';
import { applyFio, type FioLoad, type FioResult } from '../support/fio.ts';
import { type RunningNbd, startNbdExport, startNbdkit, startQemuNbd } from '../support/nbd.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Load extends FioLoad {
  readonly slug: string;
  readonly name: string;
  /** What is aimed at: requests per second beside qemu-nbd and nbdkit, CPU per request beside qemu-nbd and in µs. */
  readonly aim: { readonly qemu: number; readonly nbdkit?: number; readonly cpu?: number; readonly cpuUs?: number };
}

const LOADS: readonly Load[] = [
  {
    slug: 'read-4k-depth-32',
    name: '4 KiB random read, depth 32',
    kind: 'randread',
    block: 4 * KiB,
    depth: 32,
    aim: { qemu: 3, nbdkit: 1.1, cpu: 0.4, cpuUs: 6 },
  },
  {
    slug: 'read-4k-depth-1',
    name: '4 KiB random read, depth 1',
    kind: 'randread',
    block: 4 * KiB,
    depth: 1,
    aim: { qemu: 0.9 },
  },
  {
    slug: 'read-1m',
    name: '1 MiB sequential read, depth 4',
    kind: 'read',
    block: MiB,
    depth: 4,
    aim: { qemu: 2, nbdkit: 0.85 },
  },
  {
    slug: 'write-4k-depth-32',
    name: '4 KiB random write, depth 32',
    kind: 'randwrite',
    block: 4 * KiB,
    depth: 32,
    aim: { qemu: 2 },
  },
];

const NAMES = ['qemu', 'nbdkit', 'raw', 'qcow2'] as const;
type Name = (typeof NAMES)[number];

async function randomFile(path: string, size: number): Promise<void> {
  const handle = await open(path, 'w');
  for (let at = 0; at < size; at += 4 * MiB) await handle.write(randomBytes(Math.min(4 * MiB, size - at)));
  await handle.close();
}

async function beside(b: Bench, load: Load): Promise<void> {
  const size = b.pick(8 * MiB, 256 * MiB);
  const rounds = b.pick(1, 5);
  const seconds = b.pick(1, 2);
  const folder = await temporaryDirectory(b);
  const file = (name: string): string => join(folder, name);
  const random = file('qemu.raw');
  await randomFile(random, size);
  for (const name of ['nbdkit.raw', 'ours.raw']) await qemu.convert(random, file(name), '-f', 'raw', '-O', 'raw');
  await qemu.convert(random, file('ours.qcow2'), '-f', 'raw', '-O', 'qcow2');
  const servers: Record<Name, RunningNbd> = {
    qemu: await startQemuNbd(b, random, 'raw'),
    nbdkit: await startNbdkit(b, 'file', file('nbdkit.raw')),
    raw: await startNbdExport(b, file('ours.raw'), { args: ['--socket', '', '-f', 'raw'] }),
    qcow2: await startNbdExport(b, file('ours.qcow2')),
  };
  const results: Record<Name, FioResult[]> = { qemu: [], nbdkit: [], raw: [], qcow2: [] };
  if (!b.smoke) for (const name of NAMES) await applyFio(load, servers[name], size, 1); // compiled code, mappings, page cache
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < NAMES.length; turn++) {
      const name = NAMES[(turn + round) % NAMES.length] as Name;
      results[name].push(await applyFio(load, servers[name], size, seconds));
    }
  }
  b.table(
    `NBD on unix sockets, ${size / MiB} MiB in the page cache, ${rounds} rounds: medians`,
    ['', 'qemu-nbd', 'nbdkit', 'lunette raw', 'lunette qcow2', 'raw/qemu', 'aim', 'raw/nbdkit', 'aim', 'qcow2/raw'],
    rowsOf(load, results),
  );
}

for (const load of LOADS) {
  bench(
    `nbd/beside/${load.slug}`,
    (b) => beside(b, load),
    () => requires.fio() || requires.nbdkit() || requires.qemuNbd() || requires.linux(),
  );
}

function rowsOf(load: Load, results: Record<Name, FioResult[]>): string[][] {
  const { aim } = load;
  const ratio = (a: Name, b: Name, key: keyof FioResult): string =>
    median(results[a].map((result, at) => result[key] / (results[b][at] as FioResult)[key])).toFixed(2);
  const k = (value: number): string => (value >= 10_000 ? `${(value / 1000).toFixed(1)}k` : value.toFixed(0));
  const iops = (name: Name): string => k(median(results[name].map((result) => result.iops)));
  const cpu = (name: Name): string => `${median(results[name].map((result) => result.cpuUs)).toFixed(1)} µs`;
  const cpuAims = [aim.cpu === undefined ? '' : `≤ ${aim.cpu}`, aim.cpuUs === undefined ? '' : `≤ ${aim.cpuUs} µs`];
  return [
    [
      `${load.name}: per second`,
      ...NAMES.map(iops),
      ratio('raw', 'qemu', 'iops'),
      `≥ ${aim.qemu}`,
      ratio('raw', 'nbdkit', 'iops'),
      aim.nbdkit === undefined ? '' : `≥ ${aim.nbdkit}`,
      ratio('qcow2', 'raw', 'iops'),
    ],
    [
      '  server CPU per request',
      ...NAMES.map(cpu),
      ratio('raw', 'qemu', 'cpuUs'),
      cpuAims.filter((text) => text !== '').join(', '),
      ratio('raw', 'nbdkit', 'cpuUs'),
      '',
      ratio('qcow2', 'raw', 'cpuUs'),
    ],
  ];
}
