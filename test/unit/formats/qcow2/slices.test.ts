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

test('a slice that is changed while the cache compresses it shows its new content, however late that ends', async () => {
  const size = 4096;
  /** What is being compressed, by the slice that it came from. */
  const packing: { slice: number; finish: () => void }[] = [];
  const codec = {
    compress: (bytes: Uint8Array) => {
      const packed = bytes.slice(0, size / 16);
      return new Promise<Uint8Array>((resolve) =>
        packing.push({ slice: bytes[1] as number, finish: () => resolve(packed) }),
      );
    },
    decompress: (bytes: Uint8Array) => new Uint8Array(size).fill(bytes[0] as number),
  };
  const cache = new SharedBlockCache(64 * size, { coldShare: 0.5, loadCodec: () => Promise.resolve(codec) });
  // Slice 200 is full of 200s, the others of zeros.
  const bytes = new Uint8Array(2048 * size);
  bytes.fill(200, 200 * size, 201 * size);
  const slices = new SliceCache(new MemoryStorage({ bytes }), cache, size);
  let next = 300;
  /** Reads other slices until slice 200 has been given to the compressor `times` times; all else is finished at once. */
  const pushOut = async (times: number): Promise<void> => {
    for (let i = 0; i < 200; i++) {
      await slices.load(next++);
      for (const { slice, finish } of packing) if (slice !== 200) finish();
      await new Promise((resolve) => setImmediate(resolve));
      if (packing.filter(({ slice }) => slice === 200).length === times) return;
    }
    assert.fail('it was not given to the compressor');
  };
  await slices.load(100);
  for (let i = 0; i < 70; i++) await slices.load(next++); // the codec is loaded
  await slices.load(200);
  await pushOut(1);
  await slices.hold(200, 'mapping');
  slices.modify(200).fill(77, 0, 1);
  slices.unhold(200);
  const batch = slices.takeDirty('mapping');
  await slices.writeBatch(batch);
  slices.finishBatch(batch);
  await pushOut(2);
  for (const { finish } of packing) finish();
  for (let i = 0; i < 500; i++) await slices.load(next++); // nothing but the cache has it now
  assert.equal((await slices.load(200))[0], 77);
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
