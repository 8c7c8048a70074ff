import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { MiB } from '../../../../formats/core/units.ts';
import { ChainImage } from '../../../../formats/image/chain.ts';
import { DATA, ExtentBuffer, ZERO } from '../../../../formats/image/extent.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { checkVdi } from '../../../../formats/vdi/check.ts';
import { createVdi, readHeader } from '../../../../formats/vdi/create.ts';
import { vdi } from '../../../../formats/vdi/driver.ts';
import { HEADER_V1 } from '../../../../formats/vdi/header.ts';
import { openDisk, openLayer } from '../../../support/layers.ts';
import { PowerLog } from '../../../support/recording-storage.ts';
import { SlowResizeStorage } from '../../../support/slow-storage.ts';

const BLOCK = 64 * 1024;
const cache = () => new SharedBlockCache(2 ** 20);

async function newImage(blocks: number, options = {}): Promise<MemoryStorage> {
  const storage = new MemoryStorage();
  await createVdi(storage, { size: blocks * BLOCK, blockSize: BLOCK, ...options });
  return storage;
}

const filled = (value: number, length = BLOCK) => IoVec.of(new Uint8Array(length).fill(value));

async function read(disk: ChainImage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await disk.readv(offset, IoVec.of(bytes));
  return bytes;
}

function entries(file: Uint8Array, count: number): number[] {
  const view = new DataView(file.buffer, file.byteOffset);
  return Array.from({ length: count }, (_, i) => view.getUint32(view.getUint32(0x154, true) + 4 * i, true));
}

test('the first change of a session, and only that, gives the image a new modification id', async () => {
  const storage = await newImage(4);
  const before = (await readHeader(storage)).uuidModify;
  const reader = await openDisk(vdi, new MemoryStorage({ bytes: storage.toBytes() }));
  await read(reader, 0, 100);
  await reader.flush();
  assert.deepEqual((await readHeader(reader.layers[0]!.storage)).uuidModify, before);
  await reader.writev(0, filled(1));
  const after = (await readHeader(reader.layers[0]!.storage)).uuidModify;
  assert.notDeepEqual(after, before);
  await reader.writev(BLOCK, filled(1));
  assert.deepEqual((await readHeader(reader.layers[0]!.storage)).uuidModify, after);
  await reader.close();
});

test('a flush writes data and count, syncs, and writes the map after that, however many blocks there are', async () => {
  const log = new PowerLog();
  const file = log.file('/memory/a.vdi', (await newImage(32)).toBytes());
  const disk = await openDisk(vdi, file);
  for (let i = 0; i < 20; i++) await disk.writev(i * BLOCK, filled(i + 1));
  const syncs = file.syncs;
  await disk.flush();
  assert.equal(file.syncs - syncs, 2);
  const mapWrites = log.entries.filter(
    (entry) =>
      entry.kind === 'change' &&
      entry.change.kind === 'write' &&
      entry.change.offset >= MiB &&
      entry.change.offset < 2 * MiB,
  );
  assert.equal(mapWrites.length, 1);
  await disk.flush();
  assert.equal(file.syncs - syncs, 3, 'a flush with nothing new is one sync');
  await disk.close();
});

test('a discarded block is used again by the next allocation after a flush', async () => {
  const storage = await newImage(8);
  const disk = await openDisk(vdi, storage);
  await disk.writev(0, filled(1, 3 * BLOCK));
  await disk.discard(BLOCK, BLOCK);
  await disk.flush();
  await new Promise((resolve) => setImmediate(resolve));
  await disk.writev(5 * BLOCK, filled(9));
  await disk.flush();
  assert.deepEqual(entries(storage.toBytes(), 6), [0, 0xfffffffe, 2, 0xffffffff, 0xffffffff, 1]);
  assert.deepEqual(await read(disk, BLOCK, BLOCK), new Uint8Array(BLOCK));
  await disk.close();
});

test('closing fills holes from the end of the file and cuts it', async () => {
  const storage = await newImage(8);
  const disk = await openDisk(vdi, storage);
  for (let i = 0; i < 5; i++) await disk.writev(i * BLOCK, filled(i + 1));
  await disk.discard(0, 2 * BLOCK);
  await disk.close();
  const bytes = storage.toBytes();
  assert.deepEqual(entries(bytes, 5), [0xfffffffe, 0xfffffffe, 2, 0, 1]);
  assert.equal(bytes.length, 2 * MiB + 3 * BLOCK);
  assert.equal((await readHeader(new MemoryStorage({ bytes }))).cBlocksAllocated, 3);
  const again = await openDisk(vdi, new MemoryStorage({ bytes }));
  for (let i = 0; i < 5; i++) assert.equal((await read(again, i * BLOCK, 1))[0], i < 2 ? 0 : i + 1);
  await again.close();
});

test('when every index is taken, discarded blocks are found again without growing past what the header may count', async () => {
  const storage = await newImage(4);
  const disk = await openDisk(vdi, storage);
  await disk.writev(0, filled(1, 4 * BLOCK));
  for (let round = 0; round < 3; round++) {
    await disk.discard(0, 4 * BLOCK);
    await disk.writev(0, filled(round + 2, 4 * BLOCK));
  }
  await disk.flush();
  assert.equal(storage.size, 2 * MiB + 4 * BLOCK);
  assert.equal((await read(disk, 3 * BLOCK, 1))[0], 4);
  await disk.close();
});

test('zeroing hides the parent without space; in a base it leaves untouched blocks untouched', async () => {
  const base = await newImage(4);
  const writer = await openDisk(vdi, base);
  await writer.writev(0, filled(7, 2 * BLOCK));
  await writer.writeZeroes(2 * BLOCK, BLOCK, false);
  await writer.close();
  const baseBytes = base.toBytes();
  assert.deepEqual(entries(baseBytes, 4), [0, 1, 0xffffffff, 0xffffffff]);
  const child = new MemoryStorage();
  const header = await createVdi(child, { parent: new MemoryStorage({ bytes: baseBytes }) });
  assert.equal(header.type, 4);
  const disk = new ChainImage([
    await openLayer(vdi, child),
    await openLayer(vdi, new MemoryStorage({ bytes: baseBytes }), { readOnly: true }),
  ]);
  await disk.writeZeroes(0, BLOCK, false);
  await disk.flush();
  assert.deepEqual(entries(child.toBytes(), 2), [0xfffffffe, 0xffffffff]);
  assert.equal(child.size, 2 * MiB);
  assert.equal((await read(disk, 0, 1))[0], 0);
  assert.equal((await read(disk, BLOCK, 1))[0], 7);
  await disk.close();
});

test('a fixed image keeps its space when it is zeroed or discarded', async () => {
  const storage = await newImage(4, { type: 'fixed' });
  assert.equal(storage.size, 2 * MiB + 4 * BLOCK);
  const disk = await openDisk(vdi, storage);
  await disk.writev(0, filled(7, 4 * BLOCK));
  await disk.discard(0, BLOCK);
  assert.equal((await read(disk, 0, 1))[0], 7);
  await disk.writeZeroes(BLOCK, BLOCK, true);
  assert.equal((await read(disk, BLOCK, 1))[0], 0);
  const out = new ExtentBuffer();
  await disk.map(0, disk.size, out);
  assert.deepEqual([out.count, out.kinds[0]], [1, DATA]);
  await disk.close();
  assert.equal(storage.size, 2 * MiB + 4 * BLOCK);
});

test('a differencing image names its parent by id and modification id', async () => {
  const base = await newImage(2);
  const child = new MemoryStorage();
  await createVdi(child, { parent: base });
  const layer = await openLayer(vdi, child, { readOnly: true });
  const parent = await openLayer(vdi, base, { readOnly: true });
  assert.equal(layer.parent?.path, undefined);
  assert.deepEqual(layer.parent?.expected, { uuidCreate: parent.ids?.uuidCreate });
  assert.deepEqual(layer.parent?.advisory, { uuidModify: parent.ids?.uuidModify });
  await layer.close();
  await parent.close();
});

test('a block past the end of the file is corrupt when it is read, and the image cannot be opened for writing', async () => {
  const storage = await newImage(4);
  await storage.writev(MiB + 4, IoVec.of(Uint8Array.of(3, 0, 0, 0)));
  const bytes = storage.toBytes();
  const disk = await openDisk(vdi, storage, { readOnly: true });
  await assert.rejects(read(disk, BLOCK, 512), { code: 'CORRUPT', offset: MiB + 4 });
  await disk.close();
  await assert.rejects(openLayer(vdi, new MemoryStorage({ bytes })), { code: 'CORRUPT' });
});

test('check repairs blocks outside the file, blocks used twice and a count that is too low, and keeps data', async () => {
  const storage = await newImage(8);
  const disk = await openDisk(vdi, storage);
  for (let i = 0; i < 4; i++) await disk.writev(i * BLOCK, filled(i + 1));
  await disk.close();
  const bytes = storage.toBytes();
  const view = new DataView(bytes.buffer);
  view.setUint32(MiB + 4 * 5, 2, true); // block 5 shares with block 2
  view.setUint32(MiB + 4 * 6, 77, true); // outside
  view.setUint32(MiB + 4 * 1, 0xffffffff, true); // a hole: index 1
  HEADER_V1.write(view, { cBlocksAllocated: 2 });
  const broken = new MemoryStorage({ bytes });
  const found = await checkVdi(broken, { cache: cache() });
  assert.deepEqual([found.corruptions, found.leaks, found.corruptionsFixed], [3, 1, 0]);
  assert.deepEqual(broken.toBytes(), bytes, 'without repair nothing is written');
  const leaksOnly = await checkVdi(broken, { cache: cache(), repair: 'leaks' });
  assert.deepEqual([leaksOnly.corruptions, leaksOnly.leaksFixed], [3, 0], 'leaks are not mended in a corrupt image');
  const mended = await checkVdi(broken, { cache: cache(), repair: 'all' });
  assert.deepEqual([mended.corruptions, mended.corruptionsFixed, mended.leaksFixed], [0, 3, 1]);
  const clean = await checkVdi(broken, { cache: cache() });
  assert.deepEqual([clean.corruptions, clean.leaks, clean.messages.length], [0, 0, 0]);
  assert.equal(clean.imageEndOffset, broken.size);
  const again = await openDisk(vdi, broken);
  for (const [block, value] of [1, 0, 3, 4, 0, 3, 0, 0].entries()) {
    assert.equal((await read(again, block * BLOCK, 1))[0], value, `block ${block}`);
  }
  await again.close();
});

test('a full disk fails the write and leaves the image as it was', async () => {
  const storage = await newImage(8);
  const disk = await openDisk(vdi, storage);
  await disk.writev(0, filled(1));
  storage.maxSize = storage.size;
  await assert.rejects(disk.writev(BLOCK, filled(2)), { code: 'NO_SPACE' });
  assert.equal((await read(disk, BLOCK, 1))[0], 0);
  storage.maxSize = Number.MAX_SAFE_INTEGER;
  await disk.writev(BLOCK, filled(3));
  await disk.close();
  const found = await checkVdi(new MemoryStorage({ bytes: storage.toBytes() }), { cache: cache() });
  assert.deepEqual([found.corruptions, found.leaks, found.allocatedClusters], [0, 0, 2]);
});

test('creating refuses sizes and block sizes that the format does not have', async () => {
  for (const options of [
    { size: 1000 },
    { size: -512 },
    { size: 1024, blockSize: 3000 },
    { size: 512, blockExtra: 3 },
    {},
  ]) {
    await assert.rejects(createVdi(new MemoryStorage(), options), { code: 'INVALID' });
  }
  await assert.rejects(createVdi(new MemoryStorage(), { size: 2 ** 42, blockSize: 4096 }), { code: 'TOO_LARGE' });
});

test('a snapshot inside a VDI image is not found, and the file is closed', async () => {
  const storage = await newImage(1);
  await assert.rejects(openLayer(vdi, storage, { snapshot: 'one' }), { code: 'NOT_FOUND' });
  assert.throws(() => storage.tryReadv(0, filled(0)), { code: 'CLOSED' });
});

test('the map tells data, zeros and what the parent decides apart', async () => {
  const storage = await newImage(6);
  const disk = await openDisk(vdi, storage);
  await disk.writev(BLOCK, filled(1, 2 * BLOCK));
  await disk.discard(2 * BLOCK, BLOCK);
  const out = new ExtentBuffer();
  const count = await disk.layers[0]!.map(0, disk.size, out);
  assert.deepEqual([...out.kinds.subarray(0, count)], [3, DATA, ZERO, 3]);
  await disk.close();
});

test('what is written while a flush makes the file longer is not cut off by that', async () => {
  const storage = new SlowResizeStorage({ bytes: (await newImage(64)).toBytes() });
  const disk = await openDisk(vdi, storage);
  await disk.writev(0, filled(1, 512));
  const flushing = disk.flush();
  const writing: Promise<void>[] = [];
  for (let i = 1; i < 20; i++) {
    await new Promise((resolve) => setImmediate(resolve));
    writing.push(disk.writev(i * BLOCK, filled(i + 1)));
  }
  await Promise.all([flushing, ...writing]);
  const bytes = new Uint8Array(20 * BLOCK);
  await disk.readv(0, IoVec.of(bytes));
  for (let i = 1; i < 20; i++) assert.equal(bytes[i * BLOCK], i + 1);
  await disk.close();
});
