import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { checkVmdk } from '../../../../formats/vmdk/check.ts';
import { vmdk } from '../../../../formats/vmdk/driver.ts';
import { openDisk, testContext } from '../../../support/layers.ts';
import { type Folder, newDisk } from '../../../support/vmdk-files.ts';

const GRAIN = 4096;

/** A disk whose first grains hold 1, 2, 3, 4; with its tables to be damaged. */
async function diskOf4() {
  const folder: Folder = new Map();
  const path = await newDisk(folder, 'disk.vmdk', { size: 16 * GRAIN, grainSize: GRAIN });
  const storage = folder.get(path) as MemoryStorage;
  const disk = await openDisk(vmdk, storage);
  for (let i = 0; i < 4; i++) await disk.writev(i * GRAIN, IoVec.of(new Uint8Array(GRAIN).fill(i + 1)));
  await disk.close();
  const bytes = storage.toBytes();
  const view = new DataView(bytes.buffer);
  const table = (field: number) => 512 * view.getUint32(512 * view.getUint32(field, true), true);
  const first = table(56);
  const second = table(48);
  return {
    bytes,
    get: (copy: 'first' | 'second', i: number) => view.getUint32((copy === 'first' ? first : second) + 4 * i, true),
    set: (copy: 'first' | 'second', i: number, value: number) =>
      view.setUint32((copy === 'first' ? first : second) + 4 * i, value, true),
  };
}

async function check(bytes: Uint8Array, repair: 'none' | 'leaks' | 'all' = 'none') {
  const storage = new MemoryStorage({ bytes });
  const found = await checkVmdk(storage, { repair, context: testContext() });
  return { found, bytes: storage.toBytes() };
}

async function firstBytes(bytes: Uint8Array): Promise<number[]> {
  const disk = await openDisk(vmdk, new MemoryStorage({ bytes }), { readOnly: true });
  const all = new Uint8Array(disk.size);
  await disk.readv(0, IoVec.of(all));
  await disk.close();
  return [0, 1, 2, 3, 4].map((i) => all[i * GRAIN] as number);
}

test('a disk without faults is clean, and its numbers are right', async () => {
  const { bytes } = await diskOf4();
  const { found } = await check(bytes);
  assert.deepEqual([found.corruptions, found.leaks, found.messages], [0, 0, []]);
  assert.deepEqual([found.allocatedClusters, found.totalClusters], [4, 16]);
  assert.equal(found.imageEndOffset, bytes.length);
});

test('an entry that only the second copy has is a stale first one: repair brings the grain back', async () => {
  const disk = await diskOf4();
  disk.set('first', 2, 0);
  const before = await check(disk.bytes);
  assert.equal(before.found.corruptions, 0);
  assert.ok(before.found.leaks >= 1);
  const mended = await check(disk.bytes, 'leaks');
  assert.equal(mended.found.leaksFixed, 1);
  assert.deepEqual(await firstBytes(mended.bytes), [1, 2, 3, 4, 0]);
  const again = (await check(mended.bytes)).found;
  assert.deepEqual([again.corruptions, again.leaks], [0, 0]);
});

test('an entry that only the first copy has is filled in in the second', async () => {
  const disk = await diskOf4();
  disk.set('second', 1, 0);
  const mended = await check(disk.bytes, 'leaks');
  assert.deepEqual([mended.found.leaksFixed, mended.found.corruptions], [1, 0]);
  assert.deepEqual([(await check(mended.bytes)).found.leaks, await firstBytes(mended.bytes)], [0, [1, 2, 3, 4, 0]]);
});

test('a second copy that points where another grain is does not come back as that grain', async () => {
  const disk = await diskOf4();
  disk.set('second', 4, disk.get('first', 0));
  const mended = await check(disk.bytes, 'all');
  assert.equal(mended.found.leaksFixed, 1);
  assert.deepEqual(await firstBytes(mended.bytes), [1, 2, 3, 4, 0]);
});

test('two different entries are corruption; repair keeps what readers see', async () => {
  const disk = await diskOf4();
  disk.set('second', 0, disk.get('first', 3) + 80);
  assert.equal((await check(disk.bytes)).found.corruptions, 1);
  assert.equal((await check(disk.bytes, 'leaks')).found.corruptions, 1);
  const mended = await check(disk.bytes, 'all');
  assert.deepEqual([mended.found.corruptions, mended.found.corruptionsFixed], [0, 1]);
  assert.deepEqual(await firstBytes(mended.bytes), [1, 2, 3, 4, 0]);
});

test('an entry outside the file is mended from the second copy', async () => {
  const disk = await diskOf4();
  disk.set('first', 1, 0x7fffffff);
  assert.ok((await check(disk.bytes)).found.corruptions >= 1);
  const mended = await check(disk.bytes, 'all');
  assert.deepEqual([mended.found.corruptions, mended.found.corruptionsFixed], [0, 1]);
  assert.deepEqual(await firstBytes(mended.bytes), [1, 2, 3, 4, 0]);
  assert.equal((await check(mended.bytes)).found.corruptions, 0);
});

test('a grain that two entries use is corruption', async () => {
  const disk = await diskOf4();
  for (const copy of ['first', 'second'] as const) disk.set(copy, 5, disk.get('first', 0));
  const { found } = await check(disk.bytes);
  assert.equal(found.corruptions, 1);
  assert.match(found.messages.join(), /grain 5 shares sector \d+/);
});

test('grains in no table are leaks', async () => {
  const disk = await diskOf4();
  for (const copy of ['first', 'second'] as const) disk.set(copy, 3, 0);
  const { found } = await check(disk.bytes);
  assert.deepEqual([found.corruptions, found.leaks], [0, 1]);
});

test('a table that is lost comes back from its other copy, whichever it is', async () => {
  for (const field of [48, 56]) {
    const { bytes } = await diskOf4();
    const view = new DataView(bytes.buffer);
    view.setUint32(512 * view.getUint32(field, true), 0x7fffffff, true);
    assert.equal((await check(bytes)).found.corruptions, 1);
    const mended = await check(bytes, 'all');
    assert.deepEqual([mended.found.corruptions, mended.found.corruptionsFixed], [0, 1]);
    assert.deepEqual(await firstBytes(mended.bytes), [1, 2, 3, 4, 0]);
    const again = (await check(mended.bytes)).found;
    assert.equal(again.corruptions, 0);
  }
});

test('a check without repair writes nothing', async () => {
  const disk = await diskOf4();
  disk.set('first', 2, 0);
  disk.set('second', 0, 99);
  const before = disk.bytes.slice();
  assert.deepEqual((await check(disk.bytes)).bytes, before);
});
