/** Internal snapshots with QEMU's programs as the other hand: each applies, reads and deletes what the other took. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { KiB, MiB } from '../../formats/core/units.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../formats/image/snapshots.ts';
import { ImageHost } from '../../formats/open.ts';
import { readAll } from '../support/qcow2-images.ts';
import { check, create, info, qemuImg } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';
import { withVmState } from '../support/vm-state.ts';

interface Shape {
  readonly clusterSize: number;
  readonly options: Readonly<Record<string, string | number>>;
  readonly backing?: boolean;
}

const SHAPES: readonly Shape[] = [
  { clusterSize: 512, options: { compat: '0.10' } },
  { clusterSize: 512, options: { refcount_bits: 64 }, backing: true },
  { clusterSize: 4 * KiB, options: { refcount_bits: 4 }, backing: true },
  { clusterSize: 64 * KiB, options: {} },
  { clusterSize: 2 * MiB, options: { refcount_bits: 32, compression_type: 'zstd' } },
];

async function withImage<T>(path: string, act: (image: ChainImage) => Promise<T>): Promise<T> {
  const host = new ImageHost();
  const image = await host.open(path, { format: 'qcow2' });
  try {
    return await act(image);
  } finally {
    await image.close();
  }
}

async function assertClean(path: string, context: string): Promise<void> {
  const report = await check(path);
  assert.deepEqual(
    { corruptions: report.corruptions, leaks: report.leaks },
    { corruptions: 0, leaks: 0 },
    `${context}: ${JSON.stringify(report.json)}`,
  );
}

async function scatter(image: ChainImage, random: Random): Promise<Uint8Array> {
  for (let i = random.between(1, 8); i > 0; i--) {
    const offset = random.below(image.size);
    const length = 1 + random.below(Math.min(image.size - offset, 200 * KiB));
    if (random.chance(0.2)) await image.writeZeroes(offset, length, random.chance(0.5));
    else await image.writev(offset, IoVec.of(random.bytes(length)));
  }
  return readAll(image);
}

for (const { clusterSize, options, backing } of SHAPES) {
  const name = `clusters of ${clusterSize}, ${JSON.stringify(options)}${backing ? ', backing file' : ''}`;
  test(`snapshots taken by either are read, applied and deleted by either: ${name}`, {
    skip: requires.qemuImg(),
  }, async (t) => {
    const random = randomFor(t);
    const directory = await temporaryDirectory(t);
    const size = Math.min(3 * MiB, clusterSize * 900) + 512;
    const path = join(directory, 'disk.qcow2');
    if (backing) {
      await create(t, { size: size + 5 * clusterSize, path: join(directory, 'base.qcow2') });
      await withImage(join(directory, 'base.qcow2'), (image) => scatter(image, random));
    }
    await create(t, { path, clusterSize, size, options, ...(backing ? { backing: 'base.qcow2' } : {}) });
    const taken = new Map<string, Uint8Array>();
    let shown = await withImage(path, (image) => scatter(image, random));
    let number = 0;
    for (let step = 0; step < 14; step++) {
      const ours = random.chance(0.6);
      const names = [...taken.keys()];
      const what =
        names.length === 0 || (names.length < 4 && random.chance(0.45))
          ? 'create'
          : random.pick(['apply', 'delete'] as const);
      const chosen = what === 'create' ? `snapshot ${++number}` : random.pick(names);
      const context = `step ${step}: ${ours ? 'we' : 'qemu-img'} ${what} ${chosen}`;
      if (!ours) await qemuImg('snapshot', `-${what[0]}`, chosen, path);
      else {
        await withImage(path, async (image) => {
          if (what === 'create') await createSnapshot(image, chosen);
          else if (what === 'apply') await applySnapshot(image, { name: chosen });
          else await deleteSnapshot(image, chosen);
        });
      }
      await assertClean(path, context);
      if (what === 'create') taken.set(chosen, shown);
      else if (what === 'apply') shown = taken.get(chosen) as Uint8Array;
      else taken.delete(chosen);
      await withImage(path, async (image) => {
        assert.ok(Buffer.compare(await readAll(image), shown) === 0, `${context}: the disk`);
        shown = await scatter(image, random);
      });
      await assertClean(path, `${context}, written`);
    }
    const listed = ((await info(path)).snapshots ?? []) as { name: string }[];
    assert.deepEqual(
      listed.map((each) => each.name),
      [...taken.keys()],
    );
    for (const [snapshot, bytes] of taken) {
      const raw = join(directory, 'snapshot.raw');
      await qemuImg('convert', '-f', 'qcow2', '-l', `snapshot.name=${snapshot}`, '-O', 'raw', path, raw);
      assert.ok(Buffer.compare(await readFile(raw), bytes) === 0, snapshot);
    }
  });
}

test('a disk that grew and shrank under us is as large, as empty behind its old end, and clean to QEMU', {
  skip: requires.qemuImg(),
}, async (t) => {
  const random = randomFor(t);
  const directory = await temporaryDirectory(t);
  for (const backing of [false, true]) {
    const path = join(directory, `resized-${backing}.qcow2`);
    const size = 300 * KiB + 512;
    if (backing) {
      await create(t, { size: 900 * KiB, path: join(directory, 'long.qcow2') });
      await withImage(join(directory, 'long.qcow2'), (image) => image.writev(0, IoVec.of(random.bytes(900 * KiB))));
    }
    await create(t, { path, clusterSize: 4 * KiB, size, ...(backing ? { backing: 'long.qcow2' } : {}) });
    let shown = await withImage(path, (image) => scatter(image, random));
    for (const next of [1000 * KiB, 200 * KiB + 512, 40 * MiB, 512, 600 * KiB]) {
      await withImage(path, (image) => image.resize(next, { shrink: true }));
      const expected = new Uint8Array(next);
      expected.set(shown.subarray(0, next));
      await assertClean(path, `${next} bytes`);
      const raw = join(directory, 'resized.raw');
      await qemuImg('convert', '-f', 'qcow2', '-O', 'raw', path, raw);
      assert.ok(Buffer.compare(await readFile(raw), expected) === 0, `${next} bytes, backing ${backing}`);
      shown = await withImage(path, (image) => scatter(image, random));
    }
  }
  const old = await create(t, { path: join(directory, 'old.qcow2'), size: MiB, options: { compat: '0.10' } });
  await qemuImg('snapshot', '-c', 'one', old);
  await withImage(old, async (image) => {
    await assert.rejects(image.resize(2 * MiB), { code: 'UNSUPPORTED', message: /version 2 with snapshots/ });
    await deleteSnapshot(image, 'one');
    await assert.rejects(image.resize(512), { code: 'INVALID', help: /--shrink/ });
    await image.resize(2 * MiB);
  });
  await assertClean(old, 'version 2');
});

test('after going back to a snapshot with a machine in it, a new one refers to that machine as QEMU’s does, and nothing leaks', {
  skip: requires.qemuImg(),
}, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const [ours, theirs] = ['ours.qcow2', 'theirs.qcow2'].map((name) => join(folder, name)) as [string, string];
  const saved = random.bytes(9 * 4096 + 77);
  const bytes = (await withVmState(saved, 64 * KiB)).toBytes();
  for (const path of [ours, theirs]) await writeFile(path, bytes);
  await withImage(ours, async (image) => {
    await applySnapshot(image, 'running');
    await createSnapshot(image, 'second');
  });
  await qemuImg('snapshot', '-a', 'running', theirs);
  await qemuImg('snapshot', '-c', 'second', theirs);
  // How many clusters are in use, and what is known of the snapshots, but for when they were taken.
  const facts = async (path: string) => {
    const { snapshots = [] } = (await info(path)) as { snapshots?: readonly Record<string, unknown>[] };
    await assertClean(path, path);
    return {
      clusters: ((await check(path)).json as { 'allocated-clusters'?: number })['allocated-clusters'],
      snapshots: snapshots.map((each) => [each.id, each.name, each['vm-state-size']]),
    };
  };
  assert.deepEqual(await facts(ours), await facts(theirs));
  assert.deepEqual((await facts(ours)).snapshots[1], ['2', 'second', 0]);
  // The second one keeps the clusters of the machine; with it they go.
  for (const path of [ours, theirs]) await qemuImg('snapshot', '-d', 'running', path);
  const before = await facts(theirs);
  assert.deepEqual(await facts(ours), before);
  await withImage(ours, (image) => deleteSnapshot(image, 'second'));
  await qemuImg('snapshot', '-d', 'second', theirs);
  assert.deepEqual(await facts(ours), await facts(theirs));
});
