import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { SliceCache } from '../../../../formats/qcow2/slices.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { randomFor } from '../../../support/random.ts';

const SLICE = 512;

function fileOf(slices: number): MemoryStorage {
  const bytes = new Uint8Array(slices * SLICE);
  for (let i = 0; i < slices; i++) bytes.fill(i, i * SLICE, (i + 1) * SLICE);
  return new MemoryStorage({ bytes });
}

test('a held slice stays in memory with any budget, and its memory is accounted for', async () => {
  const cache = new SharedBlockCache(0);
  const slices = new SliceCache(fileOf(8), cache, SLICE);
  await slices.hold(3, 'mapping');
  assert.equal(slices.peek(3)?.[0], 3);
  assert.equal(cache.stats.pinnedBytes, SLICE);
  slices.unhold(3);
  assert.equal(cache.stats.pinnedBytes, 0);
});

test('a write-back writes what was dirty when it was taken, not what came later', async () => {
  const storage = fileOf(8);
  const cache = new SharedBlockCache(100_000);
  const slices = new SliceCache(storage, cache, SLICE);
  await slices.hold(2, 'mapping');
  slices.modify(2)[0] = 100;
  const batch = slices.takeDirty('mapping');
  slices.modify(2)[0] = 101;
  await slices.writeBatch(batch);
  slices.finishBatch(batch);
  assert.equal(storage.toBytes()[2 * SLICE], 100);
  assert.equal(slices.peek(2)?.[0], 101);
  assert.equal(slices.hasDirty('mapping'), true);
  const next = slices.takeDirty('mapping');
  await slices.writeBatch(next);
  slices.finishBatch(next);
  slices.unhold(2);
  assert.equal(storage.toBytes()[2 * SLICE], 101);
  assert.equal(cache.stats.pinnedBytes, 0);
});

test('a clean slice is changed in the memory that it has, which the cache gives up; one that is being written, in a copy', async () => {
  const cache = new SharedBlockCache(100_000);
  const slices = new SliceCache(fileOf(8), cache, SLICE);
  const cached = await slices.load(2);
  await slices.hold(2, 'mapping');
  assert.equal(cache.stats.warmBytes, SLICE);
  assert.equal(slices.modify(2), cached);
  assert.equal(cache.stats.warmBytes, 0);
  const batch = slices.takeDirty('mapping');
  const copy = slices.modify(2);
  assert.notEqual(copy, batch.bytes[0]);
  assert.equal(slices.modify(2), copy);
});

test('a batch that did not get into the file is dirty again', async () => {
  const slices = new SliceCache(fileOf(8), new SharedBlockCache(100_000), SLICE);
  await slices.hold(1, 'refcount');
  slices.modify(1)[0] = 9;
  slices.unhold(1);
  const batch = slices.takeDirty('refcount');
  assert.equal(slices.hasDirty('refcount'), false);
  slices.returnBatch(batch);
  assert.deepEqual(slices.takeDirty('refcount').slices, [1]);
});

test('a slice that becomes a new table while its old content is read keeps the new content', async () => {
  const storage = fileOf(8);
  storage.tryReadv = () => false;
  const slices = new SliceCache(storage, new SharedBlockCache(100_000), SLICE);
  const loading = slices.load(5);
  slices.create(5, new Uint8Array(SLICE).fill(77), 'mapping');
  assert.equal((await loading)[0], 77);
  assert.equal(slices.peek(5)?.[0], 77);
});

test('kinds are written back apart', async () => {
  const slices = new SliceCache(fileOf(8), new SharedBlockCache(100_000), SLICE);
  for (const [slice, kind] of [
    [1, 'refcount'],
    [2, 'mapping'],
  ] as const) {
    await slices.hold(slice, kind);
    slices.modify(slice)[0] = 1;
  }
  assert.deepEqual(slices.takeDirty('refcount').slices, [1]);
  assert.deepEqual(slices.takeDirty('mapping').slices, [2]);
});

test('random use shows the newest content of every slice, whatever is evicted', async (t) => {
  const random = randomFor(t);
  const storage = fileOf(256);
  const model = storage.toBytes();
  const cache = new SharedBlockCache(20 * SLICE);
  const slices = new SliceCache(storage, cache, SLICE);
  for (let i = 0; i < 5000; i++) {
    const slice = random.below(256);
    if (random.chance(0.3)) {
      await slices.hold(slice, 'mapping');
      slices.modify(slice)[7] = i;
      model[slice * SLICE + 7] = i;
      slices.unhold(slice);
    } else {
      const bytes = slices.peek(slice) ?? (await slices.load(slice));
      assert.deepEqual(bytes, model.subarray(slice * SLICE, (slice + 1) * SLICE));
    }
    if (random.chance(0.02)) {
      const batch = slices.takeDirty('mapping');
      await slices.writeBatch(batch);
      slices.finishBatch(batch);
    }
  }
  const batch = slices.takeDirty('mapping');
  await slices.writeBatch(batch);
  slices.finishBatch(batch);
  const found = new Uint8Array(model.length);
  await storage.readv(0, IoVec.of(found));
  assert.deepEqual(found, model);
  assert.equal(cache.stats.pinnedBytes, 0);
  slices.release();
});
