/**
 * Internal snapshots and check of a qcow2 image beside qemu-img, in one run, in alternating order: an image whose every cluster is
 * allocated (metadata real, data a hole). The time that a program takes to start, measured on an empty image, is taken off qemu-img's; ours is
 * measured from the call that opens the image to the end of its close.
 */

import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { checkImage } from '../../formats/check.ts';
import { GiB, KiB, MiB, TiB } from '../../formats/core/units.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../formats/image/snapshots.ts';
import { openStorage } from '../../src/io/open-storage.ts';
import { createHost } from '../../src/open/host.ts';
import { type Bench, bench, median } from '../support/bench.ts';
import { lunetteArgs } from '../support/built.ts';
import { memoryFolder } from '../support/memory-folder.ts';
import { runOk, start } from '../support/process.ts';
import { peakResidentBytes } from '../support/process-usage.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Step {
  readonly name: string;
  readonly aim: number;
  readonly ours: (path: string) => Promise<unknown>;
  readonly qemu: readonly string[];
}

const STEPS: readonly Step[] = [
  {
    name: 'snapshot create',
    aim: 1,
    ours: (path) => change(path, (image) => createSnapshot(image, 's')),
    qemu: ['snapshot', '-c', 's'],
  },
  {
    name: 'snapshot apply',
    aim: 1,
    ours: (path) => change(path, (image) => applySnapshot(image, 's')),
    qemu: ['snapshot', '-a', 's'],
  },
  { name: 'check with a snapshot', aim: 1.2, ours: check, qemu: ['check'] },
  {
    name: 'snapshot delete',
    aim: 1,
    ours: (path) => change(path, (image) => deleteSnapshot(image, 's')),
    qemu: ['snapshot', '-d', 's'],
  },
  { name: 'check', aim: 1.2, ours: check, qemu: ['check'] },
];

async function change(
  path: string,
  act: (image: Awaited<ReturnType<ReturnType<typeof createHost>['open']>>) => Promise<unknown>,
): Promise<void> {
  const image = await createHost().open(path, { format: 'qcow2' });
  try {
    await act(image);
  } finally {
    await image.close();
  }
}

async function check(path: string): Promise<void> {
  const result = await checkImage(path, { openStorage, format: 'qcow2' });
  if (result.corruptions + result.leaks > 0) throw new Error(`${path} is not clean: ${result.messages.join('; ')}`);
}

async function timed(act: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await act();
  return performance.now() - start;
}

async function beside(b: Bench, folder: string, where: string): Promise<void> {
  const size = b.pick(64 * MiB, 100 * GiB);
  const rounds = b.pick(1, 7);
  const paths = {
    ours: join(folder, 'ours.qcow2'),
    qemu: join(folder, 'qemu.qcow2'),
    empty: join(folder, 'empty.qcow2'),
  };
  const options = { preallocation: 'metadata' };
  for (const path of [paths.ours, paths.qemu]) await qemu.create(b, { size, path, clusterSize: 64 * KiB, options });
  await qemu.create(b, { size: MiB, path: paths.empty });
  const rows = STEPS.map(() => ({ ours: [] as number[], qemu: [] as number[] }));
  for (let round = -1; round < rounds; round++) {
    for (const [at, step] of STEPS.entries()) {
      const starting = await timed(() => runOk('qemu-img', ['snapshot', '-l', paths.empty]));
      const theirs = async () => (await timed(() => runOk('qemu-img', [...step.qemu, paths.qemu]))) - starting;
      const first = round % 2 === 0 ? await theirs() : undefined;
      const ours = await timed(() => step.ours(paths.ours));
      const second = first ?? (await theirs());
      if (round < 0 && !b.smoke) continue; // compiled code, page cache
      rows[at]?.ours.push(ours);
      rows[at]?.qemu.push(second);
    }
  }
  b.table(
    `${size / GiB} GiB of clusters of 64 KiB, all allocated, on ${where}; ${rounds} rounds, medians`,
    ['', 'qemu-img', 'lunette', 'ratio', 'aim'],
    STEPS.map(({ name, aim }, at) => {
      const { ours, qemu } = rows[at] as (typeof rows)[0];
      const ratio = median(ours.map((time, i) => time / (qemu[i] as number)));
      return [name, `${median(qemu).toFixed(0)} ms`, `${median(ours).toFixed(0)} ms`, ratio.toFixed(2), `≤ ${aim}`];
    }),
  );
}

/** Runs `lunette check` as users do. @returns the most memory it had, and how long it took */
async function checkProcess(b: Bench, path: string): Promise<{ peak: number; seconds: number }> {
  const began = performance.now();
  const running = start(b, process.execPath, lunetteArgs('check', path));
  let peak = 0;
  while (!running.ended) {
    try {
      peak = Math.max(peak, peakResidentBytes(running.pid));
    } catch {
      // It is ending.
    }
    await sleep(5);
  }
  const { status } = await running.wait();
  if (status !== 0) throw new Error(`check of ${path}: status ${status}\n${running.stderr}`);
  return { peak, seconds: (performance.now() - began) / 1000 };
}

bench(
  'qcow2/check-memory',
  async (b) => {
    const path = join(await temporaryDirectory(b), 'large.qcow2');
    const allocated = b.pick(64 * MiB, TiB);
    await qemu.create(b, { size: allocated, path, clusterSize: 64 * KiB, options: { preallocation: 'metadata' } });
    await qemu.img('resize', '-q', path, String(allocated * 16));
    const { peak, seconds } = await checkProcess(b, path);
    b.table(
      `lunette check of ${allocated / GiB} GiB allocated of ${(allocated * 16) / GiB} GiB`,
      ['', 'most memory', 'aim', 'time'],
      [['clusters of 64 KiB', `${(peak / MiB).toFixed(0)} MiB`, '< 256 MB', `${seconds.toFixed(1)} s`]],
    );
  },
  () => requires.qemuImg() || requires.linux(),
);

bench(
  'qcow2/snapshots-and-check/disk',
  async (b) => beside(b, await temporaryDirectory(b), 'the disk'),
  () => requires.qemuImg() || requires.linux(),
);
bench(
  'qcow2/snapshots-and-check/memory',
  async (b) => beside(b, await temporaryDirectory(b, memoryFolder), 'tmpfs'),
  () =>
    requires.qemuImg() ||
    requires.linux() ||
    requires.that(memoryFolder !== undefined, 'needs a file system in memory'),
);
