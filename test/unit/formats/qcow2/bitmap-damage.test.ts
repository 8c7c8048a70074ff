/** Bitmaps whose tables name what is not theirs: nothing of the guest is given free, punched out or written over on their account. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import * as bitmaps from '../../../../formats/image/bitmaps.ts';
import type { ChainImage } from '../../../../formats/image/chain.ts';
import { createSnapshot } from '../../../../formats/image/snapshots.ts';
import { checkQcow2 } from '../../../../formats/qcow2/check.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../../../support/qcow2-images.ts';

const CLUSTER = 512;
const OFFSET = 0x00fffffffffffe00n;
/** Of the disk that one cluster of bits is for. */
const COVERED = CLUSTER * 8 * 512;

/** A disk of two clusters of bits, with bitmaps that have bits in both. */
async function sample(before?: (image: ChainImage) => Promise<unknown>): Promise<Qcow2File> {
  const storage = await createImage({ size: 2 * COVERED, clusterSize: CLUSTER });
  const image = await openImage(storage);
  await image.writev(5 * CLUSTER, IoVec.of(new Uint8Array(40 * CLUSTER).fill(7)));
  await before?.(image);
  for (const name of ['a', 'b']) await bitmaps.addBitmap(image, name, { granularity: 512 });
  await image.writev(0, IoVec.of(new Uint8Array(3000).fill(1)));
  await image.writev(COVERED, IoVec.of(new Uint8Array(3000).fill(2)));
  await image.close();
  return new Qcow2File(storage.toBytes());
}

/** Where the guest cluster at this offset is. */
function place(file: Qcow2File, guest: number): number {
  const perTable = CLUSTER / 8;
  const index = guest / CLUSTER;
  const table = Number(file.u64(file.l1Offset + Math.floor(index / perTable) * 8) & OFFSET);
  return Number(file.u64(table + (index % perTable) * 8) & OFFSET);
}

/** Lets the first cluster of bits of `a` be at another place; its own is leaked. */
function plant(file: Qcow2File, at: number): MemoryStorage {
  const [a] = file.bitmaps();
  file.setU64(a?.table as number, BigInt(at));
  return new MemoryStorage({ bytes: file.bytes });
}

const CHANGES: Readonly<Record<string, (image: ChainImage) => Promise<unknown>>> = {
  remove: (image) => bitmaps.removeBitmap(image, 'a'),
  clear: (image) => bitmaps.clearBitmap(image, 'a'),
  merge: async (image) => bitmaps.mergeBitmap(image, 'a', await bitmaps.openBitmap(image, 'b')),
  shrink: (image) => image.resize(COVERED / 2, { shrink: true }),
};

async function shown(storage: MemoryStorage): Promise<Uint8Array> {
  const image = await openImage(storage, { readOnly: true });
  const bytes = await readAll(image);
  await image.close();
  return bytes;
}

const refused = { code: 'CORRUPT', field: 'bitmaps', help: /check -r all/ } as const;

for (const [change, act] of Object.entries(CHANGES)) {
  test(`${change}: a bitmap that names a cluster of the guest is left alone, and so is the guest's data`, async () => {
    const file = await sample();
    const at = place(file, 10 * CLUSTER);
    const storage = plant(file, at);
    const before = await shown(storage);
    const image = await openImage(storage);
    await assert.rejects(act(image), { ...refused, offset: at });
    await image.close();
    assert.deepEqual(await shown(storage), before);
    assert.equal(new Qcow2File(storage.toBytes()).refcount(at / CLUSTER), 1);
  });
}

test('a bitmap that names a cluster which only a snapshot has is left alone', async () => {
  const file = await sample(async (image) => {
    await createSnapshot(image, 's');
    await image.writeZeroes(10 * CLUSTER, CLUSTER, true);
    await image.flush();
  });
  const [snapshotTable] = [Number(file.u64(Number(file.u64(64))))];
  const l2 = Number(file.u64(snapshotTable as number) & OFFSET);
  const at = Number(file.u64(l2 + 10 * 8) & OFFSET);
  assert.equal(file.refcount(at / CLUSTER), 1);
  const storage = plant(file, at);
  const image = await openImage(storage);
  await assert.rejects(bitmaps.removeBitmap(image, 'a'), { ...refused, offset: at });
  await image.close();
  const snapshot = await openImage(storage, { snapshot: 's', readOnly: true });
  assert.equal((await readAll(snapshot))[10 * CLUSTER], 7);
});

test('a bitmap that names a free cluster, or one of another bitmap, is left alone', async () => {
  for (const which of ['free', 'other']) {
    const file = await sample();
    const [, b] = file.bitmaps();
    const at = which === 'free' ? file.bytes.length - CLUSTER : Number(file.u64(b?.table as number) & OFFSET);
    if (which === 'free') file.setRefcount(at / CLUSTER, 0);
    const storage = plant(file, at);
    const image = await openImage(storage);
    await assert.rejects(bitmaps.removeBitmap(image, 'a'), { ...refused, offset: at }, which);
    await image.close();
  }
});

test('storing what was written at the end of a session leaves a damaged bitmap inconsistent, and says so', async () => {
  const file = await sample();
  const at = place(file, 10 * CLUSTER);
  const storage = plant(file, at);
  const warnings: string[] = [];
  const image = await openImage(storage, { warnings });
  await image.writev(20 * CLUSTER, IoVec.of(new Uint8Array(CLUSTER).fill(9)));
  const before = await readAll(image);
  await image.close();
  assert.match(warnings.join(), /bitmaps could not be stored and are inconsistent now \(a, b\): .*guest/);
  assert.deepEqual(await shown(storage), before);
  assert.ok(new Qcow2File(storage.toBytes()).bitmaps().every(({ inUse }) => inUse));
});

for (const which of ['directory', 'table'] as const) {
  test(`a write that would land on the ${which} of bitmaps is refused, and marks the image corrupt`, async () => {
    const file = await sample();
    const [a] = file.bitmaps();
    const target = which === 'directory' ? a?.directory?.at : a?.table;
    const l2 = Number(file.u64(file.l1Offset) & OFFSET);
    file.setU64(l2, (1n << 63n) | BigInt(target as number));
    const storage = new MemoryStorage({ bytes: file.bytes });
    const image = await openImage(storage);
    await assert.rejects(image.writev(0, IoVec.of(new Uint8Array(CLUSTER))), { code: 'CORRUPT' });
    await image.close().catch(() => undefined);
    const after = new Qcow2File(storage.toBytes());
    assert.equal(after.u64(72) & 2n, 2n);
    const at = (target as number) - ((target as number) % CLUSTER);
    if (which === 'table') {
      assert.deepEqual(after.bytes.subarray(at, at + CLUSTER), file.bytes.subarray(at, at + CLUSTER));
    }
  });
}

test('after a repair a bitmap that shared a cluster with the guest can be removed, and the data stays', async () => {
  const file = await sample();
  const storage = plant(file, place(file, 10 * CLUSTER));
  const before = await shown(storage);
  await checkQcow2(storage, { repair: 'all' });
  const image = await openImage(storage);
  await bitmaps.removeBitmap(image, 'a');
  await image.close();
  assert.deepEqual(await shown(storage), before);
  const { corruptions, leaks } = new Qcow2File(storage.toBytes()).inspect();
  assert.deepEqual([corruptions, leaks], [[], []]);
});
