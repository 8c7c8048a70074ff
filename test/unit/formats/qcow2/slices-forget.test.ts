import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { SliceCache } from '../../../../formats/qcow2/slices.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';

const SLICE = 512;

test('a slice that is forgotten while it is read is read again: its cluster may be another table by then', async () => {
  const storage = new MemoryStorage({ bytes: new Uint8Array(8 * SLICE).fill(1) });
  const slices = new SliceCache(storage, new SharedBlockCache(100_000), SLICE);
  const { tryReadv } = storage;
  storage.tryReadv = () => false;
  let finish: () => void = () => undefined;
  // A slow read, which has seen the old content.
  storage.readv = async (offset, iov) => {
    tryReadv.call(storage, offset, iov);
    await new Promise<void>((resolve) => {
      finish = resolve;
    });
  };
  const first = slices.hold(3, 'mapping');
  const second = slices.hold(3, 'mapping');
  storage.readv = async (offset, iov) => void tryReadv.call(storage, offset, iov);
  await storage.writev(3 * SLICE, IoVec.of(new Uint8Array(SLICE).fill(2)));
  slices.forget(3, 1);
  finish();
  await Promise.all([first, second]);
  assert.equal(slices.peek(3)?.[0], 2);
  slices.modify(3)[1] = 7;
  slices.unhold(3);
  slices.unhold(3);
  await slices.writeBatch(slices.takeDirty('mapping'));
  assert.deepEqual([...storage.toBytes().subarray(3 * SLICE, 3 * SLICE + 3)], [2, 7, 2]);
});

test('a block that is read at once is read once, and a slice of it that becomes another table meanwhile is not kept', async () => {
  const storage = new MemoryStorage({ bytes: new Uint8Array(16 * SLICE).fill(1) });
  const slices = new SliceCache(storage, new SharedBlockCache(100_000), SLICE);
  const { tryReadv } = storage;
  storage.tryReadv = () => false;
  let finish: () => void = () => undefined;
  let reads = 0;
  storage.readv = async (offset, iov) => {
    reads++;
    tryReadv.call(storage, offset, iov);
    await new Promise<void>((resolve) => {
      finish = resolve;
    });
  };
  const block = slices.preload(8, 8);
  const waiting = slices.hold(10, 'refcount');
  await storage.writev(9 * SLICE, IoVec.of(new Uint8Array(SLICE).fill(2)));
  slices.forget(9, 1);
  finish();
  await Promise.all([block, waiting]);
  assert.equal(reads, 1);
  assert.equal(slices.peek(9), undefined);
  assert.equal(slices.peek(10)?.[0], 1);
  assert.equal(slices.peek(15)?.[0], 1);
  slices.unhold(10);
});
