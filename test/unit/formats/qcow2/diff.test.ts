import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { GiB, KiB, MiB, TiB } from '../../../../formats/core/units.ts';
import { createSnapshot } from '../../../../formats/image/snapshots.ts';
import { diffQcow2, type MappingDifference } from '../../../../formats/qcow2/diff.ts';
import type { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { Storage } from '../../../../formats/storage/storage.ts';
import { createImage, openImage } from '../../../support/qcow2-images.ts';

/** Counts what is read of a storage. */
function counting(storage: MemoryStorage): { storage: Storage; reads: () => { count: number; bytes: number } } {
  let [count, bytes] = [0, 0];
  const counted = new Proxy(storage as Storage, {
    get(target, key) {
      const value = Reflect.get(target, key, target) as unknown;
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        if (key === 'readv' || key === 'tryReadv') {
          count++;
          bytes += (args[1] as IoVec).byteLength;
        }
        return (value as (...all: unknown[]) => unknown).apply(target, args);
      };
    },
  });
  return { storage: counted, reads: () => ({ count, bytes }) };
}

async function differencesOf(storage: Storage, from: string, to?: string): Promise<MappingDifference[]> {
  const { differences } = await diffQcow2(storage, from, to);
  const all: MappingDifference[] = [];
  for await (const batch of differences) all.push(...batch);
  return all;
}

test('tables that both states have are not read, however large the disk is', async () => {
  const storage = await createImage({ size: TiB, clusterSize: 64 * KiB });
  const image = await openImage(storage);
  const block = new Uint8Array(64 * KiB).fill(1);
  // One cluster in each of 64 tables of 512 MiB.
  for (let i = 0; i < 64; i++) await image.writev(i * 512 * MiB, IoVec.of(block));
  await createSnapshot(image, 'then');
  for (const at of [3 * 512 * MiB, 40 * 512 * MiB + MiB]) await image.writev(at, IoVec.of(block));
  await image.close();
  const { storage: counted, reads } = counting(storage);
  assert.deepEqual(await differencesOf(counted, 'then'), [
    { start: 3 * 512 * MiB, length: 64 * KiB, from: 'data', to: 'data' },
    { start: 20 * GiB + MiB, length: 64 * KiB, from: 'absent', to: 'data' },
  ]);
  // Two L2 tables on each side; the rest is header, snapshot table and the L1 tables (16 KiB each).
  const { count, bytes } = reads();
  assert.ok(bytes <= 4 * 64 * KiB + 2 * 16 * KiB + 3 * 64 * KiB, `${bytes} bytes`);
  assert.ok(count <= 10, `${count} reads`);
});

test('a state has no difference from itself, and nothing is read to find that', async () => {
  const storage = await createImage({ size: 8 * GiB, clusterSize: 64 * KiB });
  const image = await openImage(storage);
  for (let at = 0; at < 8 * GiB; at += 256 * MiB) await image.writev(at, IoVec.of(new Uint8Array(4096).fill(1)));
  await createSnapshot(image, 'a');
  await createSnapshot(image, 'b');
  await image.close();
  const { storage: counted, reads } = counting(storage);
  assert.deepEqual(await differencesOf(counted, 'a', 'b'), []);
  assert.ok(reads().count <= 6, `${reads().count} reads`);
});

test('zeros are no difference from what is absent, unless there is something below', async () => {
  for (const backing of [undefined, 'base.qcow2']) {
    const storage = await createImage({
      size: 4 * MiB,
      clusterSize: 64 * KiB,
      ...(backing === undefined ? {} : { backingFile: backing, backingFormat: 'qcow2' }),
    });
    const image = await openImage(storage);
    await createSnapshot(image, 'then');
    await image.writeZeroes(MiB, MiB, true);
    await image.close();
    const expected = backing === undefined ? [] : [{ start: MiB, length: MiB, from: 'absent', to: 'zero' }];
    assert.deepEqual(await differencesOf(storage, 'then'), expected);
  }
});
