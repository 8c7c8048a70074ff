import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../../formats/core/units.ts';
import { ALLOCATED, DATA, ExtentBuffer, WRITABLE, ZERO } from '../../../../formats/image/extent.ts';
import type { Layer } from '../../../../formats/image/layer.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { Storage } from '../../../../formats/storage/storage.ts';
import { PowerCutStorage } from '../../../support/power-cut-storage.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, keptOpen, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';
import { Random } from '../../../support/random.ts';

const CLUSTER = 4096;
const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };

/** Reserves, writes and commits, as the mover does. */
async function put(layer: Layer, storage: Storage, offset: number, length: number): Promise<number> {
  const reservation = await layer.reserve(offset, length);
  for (const region of reservation.regions) await storage.writev(region.storageOffset, bytesOf(1, region.length));
  await reservation.commit();
  return reservation.regions[0]?.storageOffset as number;
}

function bytesOf(value: number, length = CLUSTER): IoVec {
  return IoVec.of(new Uint8Array(length).fill(value));
}

test('a reservation is invisible until commit, and abort gives its clusters to the next', async () => {
  const storage = await createImage({ size: MiB, clusterSize: CLUSTER });
  const layer = await openLayer(keptOpen(storage));
  const out = new ExtentBuffer();
  const first = await layer.reserve(0, 10);
  assert.equal(first.end, CLUSTER);
  assert.deepEqual(
    first.regions.map(({ length, guestOffset, fill, fresh }) => ({ length, guestOffset, fill, fresh })),
    [{ length: CLUSTER, guestOffset: 0, fill: 'zero', fresh: true }],
  );
  await layer.map(0, 10, out);
  assert.notEqual(out.kinds[0], DATA);
  await first.abort();
  const second = await layer.reserve(CLUSTER, 10);
  assert.equal(second.regions[0]?.storageOffset, first.regions[0]?.storageOffset);
  assert.equal(second.regions[0]?.fresh, false, 'somebody may have written there');
  await storage.writev(second.regions[0]?.storageOffset as number, bytesOf(1));
  await second.commit();
  await layer.map(CLUSTER, 10, out);
  assert.deepEqual([out.kinds[0], out.flags[0]], [DATA, WRITABLE]);
  await layer.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('a write over a preallocated zero cluster goes into that cluster', async () => {
  const storage = await createImage({ size: MiB, clusterSize: CLUSTER });
  const image = await openImage(storage);
  await image.writev(0, bytesOf(1));
  const out = new ExtentBuffer();
  await image.map(0, CLUSTER, out);
  const place = out.storageOffsets[0];
  await image.writeZeroes(0, CLUSTER, false);
  await image.map(0, CLUSTER, out);
  assert.deepEqual([out.kinds[0], out.flags[0], out.storageOffsets[0]], [ZERO, ALLOCATED, place]);
  await image.writev(100, bytesOf(2, 50));
  await image.map(0, CLUSTER, out);
  assert.deepEqual([out.kinds[0], out.storageOffsets[0]], [DATA, place]);
  const expected = new Uint8Array(CLUSTER).fill(2, 100, 150);
  assert.deepEqual((await readAll(image)).subarray(0, CLUSTER), expected);
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('a discarded cluster is not given out before the discard is durable', async () => {
  const storage = await createImage({ size: MiB, clusterSize: CLUSTER });
  const layer = await openLayer(keptOpen(storage));
  const place = await put(layer, storage, 0, CLUSTER);
  await layer.flush();
  assert.equal(await layer.release(0, CLUSTER), true);
  assert.notEqual(await put(layer, storage, CLUSTER, CLUSTER), place);
  await layer.flush();
  const after = await layer.reserve(2 * CLUSTER, CLUSTER);
  assert.equal(after.regions[0]?.storageOffset, place);
  await after.abort();
  await layer.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('a freed cluster waits for readers that were there before it was unlinked', async () => {
  const storage = await createImage({ size: MiB, clusterSize: CLUSTER });
  const layer = await openLayer(keptOpen(storage));
  const place = await put(layer, storage, 0, CLUSTER);
  const ticket = layer.leases.pin();
  await layer.release(0, CLUSTER);
  await layer.flush();
  assert.notEqual(await put(layer, storage, CLUSTER, CLUSTER), place);
  layer.leases.unpin(ticket);
  await layer.close();
  const file = new Qcow2File(storage.toBytes());
  assert.deepEqual(file.inspect(), CLEAN);
  assert.equal(file.refcount(place / CLUSTER), 0);
});

test('a flush with changed mappings costs two syncs, one with nothing changed costs one', async () => {
  const storage = new PowerCutStorage(
    new Random(1),
    (await createImage({ size: MiB, clusterSize: CLUSTER })).toBytes(),
  );
  let syncs = 0;
  storage.failing = (call) => {
    if (call === 'sync') syncs++;
    return false;
  };
  const image = await openImage(storage);
  await image.writev(0, bytesOf(1));
  await image.flush();
  assert.equal(syncs, 3, 'a new L2 table: refcounts and data, L2, L1');
  syncs = 0;
  await image.writev(CLUSTER, bytesOf(2));
  await image.writev(3 * CLUSTER, bytesOf(2));
  await image.flush();
  assert.equal(syncs, 2);
  syncs = 0;
  await image.writev(CLUSTER, bytesOf(3));
  await image.flush();
  assert.equal(syncs, 1);
  await image.close();
});

test('a sync that failed is final: nothing that comes later is reported as durable', async () => {
  const storage = new PowerCutStorage(
    new Random(2),
    (await createImage({ size: MiB, clusterSize: CLUSTER })).toBytes(),
  );
  const layer = await openLayer(storage);
  const taken = await layer.reserve(0, CLUSTER);
  await taken.commit();
  storage.failing = (call) => call === 'sync';
  await assert.rejects(layer.flush(), { code: 'IO' });
  storage.failing = () => false;
  await assert.rejects(layer.flush(), { code: 'IO' });
  await assert.rejects(layer.reserve(CLUSTER, CLUSTER), { code: 'IO' });
  await layer.close();
});

test('a write-back that failed is tried again by the next flush', async () => {
  const storage = new PowerCutStorage(
    new Random(3),
    (await createImage({ size: MiB, clusterSize: CLUSTER })).toBytes(),
  );
  const layer = await openLayer(storage);
  const taken = await layer.reserve(0, CLUSTER);
  await storage.writev(taken.regions[0]?.storageOffset as number, bytesOf(7));
  await taken.commit();
  // Refcounts, L2, L1: the refcounts are in place after the second attempt.
  for (const fails of [1, 2, 2]) {
    let calls = 0;
    storage.failing = (call) => call === 'write' && ++calls === fails;
    await assert.rejects(layer.flush(), { code: 'IO' });
  }
  storage.failing = () => false;
  await layer.flush();
  await layer.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
  const image = await openImage(storage, { readOnly: true });
  assert.equal((await readAll(image))[CLUSTER - 1], 7);
  await image.close();
});

test('a full disk at any step loses nothing, and writing goes on when there is room', async () => {
  const random = new Random(4);
  // Small clusters and wide refcounts: data, L2 tables, refcount blocks and their table all run into the end.
  const size = 400 * 512;
  for (let room = 0; room < 40; room++) {
    const storage = await createImage({ size, clusterSize: 512, refcountBits: 64 });
    const image = await openImage(storage, { cache: new SharedBlockCache(100_000) });
    const model = new Uint8Array(size);
    storage.maxSize = storage.size + room * 3 * 512;
    let refused = 0;
    for (let i = 0; i < 30; i++) {
      const offset = random.below(size - 3000);
      const bytes = random.bytes(1 + random.below(3000));
      try {
        await image.writev(offset, IoVec.of(bytes));
        model.set(bytes, offset);
      } catch (error) {
        assert.equal((error as { code?: string }).code, 'NO_SPACE');
        refused++;
        // Old or new bytes, cluster by cluster: take what is there.
        await image.readv(offset, IoVec.of(model, offset, bytes.length));
      }
    }
    assert.ok(room > 30 || refused > 0);
    storage.maxSize = Number.MAX_SAFE_INTEGER;
    await image.writev(1000, bytesOf(9, 2000));
    model.fill(9, 1000, 3000);
    await image.flush();
    assert.deepEqual(await readAll(image), model);
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
  }
});

test('quarantined clusters are freed for a write that finds no space', async () => {
  const storage = await createImage({ size: MiB, clusterSize: 512, refcountBits: 64 });
  const image = await openImage(storage);
  await image.writev(0, IoVec.of(new Uint8Array(40 * 512).fill(1)));
  await image.flush();
  await image.discard(0, 40 * 512);
  storage.maxSize = storage.size;
  // Needs a new L2 table: its cluster cannot be appended.
  await image.writev(512 * KiB, bytesOf(5, 512));
  storage.maxSize = Number.MAX_SAFE_INTEGER;
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('the refcount table moves when it is full, and its old place is free again', async () => {
  const size = 9000 * 512;
  const storage = await createImage({ size, clusterSize: 512, refcountBits: 64 });
  const before = new Qcow2File(storage.toBytes());
  const image = await openImage(storage);
  await image.writev(0, IoVec.of(new Uint8Array(size).fill(3)));
  await image.close();
  const after = new Qcow2File(storage.toBytes());
  assert.notEqual(after.u64(48), before.u64(48));
  assert.deepEqual(after.inspect(), CLEAN);
  const again = await openImage(storage, { readOnly: true });
  assert.ok((await readAll(again)).every((byte) => byte === 3));
  await again.close();
});

test('a cluster that a snapshot shares is copied, also when its L2 table claims otherwise', async () => {
  const storage = await createImage({ size: 64 * KiB, clusterSize: CLUSTER });
  const image = await openImage(storage);
  await image.writev(0, IoVec.of(new Uint8Array(64 * KiB).fill(1)));
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  file.takeSnapshot('1', 'one');
  // The L2 table, shared, says COPIED all the same.
  const table = Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n);
  for (let i = 0; i < 16; i++) file.setU64(table + i * 8, file.u64(table + i * 8) | (1n << 63n));
  const damaged = new MemoryStorage({ bytes: file.bytes });
  const live = await openImage(damaged);
  await live.writev(10, bytesOf(2, 10));
  await live.writev(2 * CLUSTER, bytesOf(3));
  await live.close();
  const snapshot = await openImage(damaged, { snapshot: 'one' });
  assert.ok((await readAll(snapshot)).every((byte) => byte === 1));
  await snapshot.close();
});

test('version 2 gives space back without a backing file and refuses to with one', async () => {
  const plain = await createImage({ size: MiB, clusterSize: CLUSTER, version: 2 });
  const image = await openImage(plain);
  await image.writev(0, bytesOf(1, 3 * CLUSTER));
  await image.discard(0, 2 * CLUSTER);
  const out = new ExtentBuffer();
  await image.map(0, 3 * CLUSTER, out);
  assert.deepEqual([...out.lengths.subarray(0, out.count)], [2 * CLUSTER, CLUSTER]);
  await image.close();
  const file = new Qcow2File(plain.toBytes());
  assert.deepEqual(file.inspect(), CLEAN);

  const overlay = await createImage({ size: MiB, clusterSize: CLUSTER, version: 2, backingFile: 'base' });
  const layer = await openLayer(overlay);
  assert.equal(layer.limits.discardUnit, 0);
  assert.equal(await layer.release(0, CLUSTER), false);
  assert.equal(await layer.zero(0, CLUSTER, true), false);
  await layer.close();
});

test('a discard over a backing file shows zeros, not the backing file', async () => {
  const base = await createImage({ size: MiB, clusterSize: CLUSTER });
  const below = await openImage(base);
  await below.writev(0, bytesOf(1, MiB));
  await below.close();
  const overlay = await createImage({ size: MiB, clusterSize: CLUSTER, backingFile: 'base' });
  const image = await openImage(overlay, { parents: [await openLayer(base, { readOnly: true })] });
  await image.writev(CLUSTER, bytesOf(2));
  await image.discard(0, 3 * CLUSTER);
  const found = await readAll(image);
  assert.ok(found.subarray(0, 3 * CLUSTER).every((byte) => byte === 0));
  assert.ok(found.subarray(3 * CLUSTER).every((byte) => byte === 1));
  await image.close();
  assert.deepEqual(new Qcow2File(overlay.toBytes()).inspect(), CLEAN);
});
