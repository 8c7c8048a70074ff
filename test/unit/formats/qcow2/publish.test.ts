import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import { StorageError } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import type { ChainImage } from '../../../../formats/image/chain.ts';
import { createSnapshot } from '../../../../formats/image/snapshots.ts';
import { SliceCache } from '../../../../formats/qcow2/slices.ts';
import { Stock } from '../../../../formats/qcow2/stock.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';

const CLUSTER = 64 * 1024;
const SIZE = 1024 * CLUSTER;
const bytes = (value: number): IoVec => IoVec.of(new Uint8Array(4096).fill(value));

class CountedSyncs extends MemoryStorage {
  syncs = 0;
  override async sync(): Promise<void> {
    this.syncs++;
    return super.sync();
  }
}

async function published(image: ChainImage, clusters: number, first = 0): Promise<void> {
  for (let i = first; i < first + clusters; i++) {
    await image.writev(i * CLUSTER, bytes(i));
    await image.publish();
  }
}

async function newImage(): Promise<CountedSyncs> {
  return new CountedSyncs({ bytes: (await createImage({ size: SIZE, clusterSize: CLUSTER })).toBytes() });
}

test('many small writes into a new disk are published with few syncs, and are in the file at once', async () => {
  const storage = await newImage();
  const image = await openImage(storage);
  await published(image, 500);
  assert.ok(storage.syncs < 20, `${storage.syncs} syncs`);
  const file = storage.toBytes();
  assert.deepEqual(new Qcow2File(file).inspect().corruptions, []);
  const killed = await openImage(new MemoryStorage({ bytes: file }));
  assert.ok(Buffer.compare(await readAll(killed), await readAll(image)) === 0);
});

test('what hides data of a parent is published with one sync each, which its data goes ahead of', async () => {
  const full = await createImage({ size: SIZE, clusterSize: CLUSTER, preallocation: 'metadata' });
  const below = await openImage(full);
  await below.writev(0, IoVec.of(new Uint8Array(SIZE).fill(9)));
  await below.close();
  const backing = { backingFile: 'parent.qcow2', backingFormat: 'qcow2' };
  const file = await createImage({ size: SIZE, clusterSize: CLUSTER, ...backing });
  const open = async (storage: MemoryStorage): Promise<ChainImage> => {
    const parent = await openLayer(new MemoryStorage({ bytes: full.toBytes() }), { readOnly: true });
    return openImage(storage, { parents: [parent] });
  };
  const storage = new CountedSyncs({ bytes: file.toBytes() });
  const image = await open(storage);
  await published(image, 1);
  const before = storage.syncs;
  await published(image, 100, 1);
  assert.equal(storage.syncs - before, 100);
  const killed = storage.toBytes();
  assert.deepEqual(new Qcow2File(killed).inspect().corruptions, []);
  assert.ok(
    Buffer.compare(await readAll(await open(new MemoryStorage({ bytes: killed }))), await readAll(image)) === 0,
  );
  const syncs = storage.syncs;
  await image.flush();
  assert.ok(storage.syncs > syncs, 'a flush after it makes it durable');
});

test('clusters laid in that nobody took are given back at the end, and the file is as long as it would be without', async () => {
  const [with_, without] = [await newImage(), await newImage()];
  for (const storage of [with_, without]) {
    const image = await openImage(storage);
    if (storage === with_) await published(image, 20);
    else for (let i = 0; i < 20; i++) await image.writev(i * CLUSTER, bytes(i));
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
  }
  assert.equal(with_.size, without.size);
});

test('before a snapshot is taken they are given back, too', async () => {
  const [with_, without] = [await newImage(), await newImage()];
  for (const storage of [with_, without]) {
    const image = await openImage(storage);
    for (let i = 0; i < 20; i++) {
      await image.writev(i * CLUSTER, bytes(i));
      if (storage === with_) await image.publish();
    }
    await createSnapshot(image, 'first');
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
  }
  assert.equal(with_.size, without.size);
});

test('where data is in a file of its own nothing is laid in', async () => {
  const dataStorage = new MemoryStorage();
  const storage = await createImage({ size: SIZE, clusterSize: 512, dataFile: 'data', dataStorage });
  const image = await openImage(storage, { dataFile: dataStorage });
  await published(image, 20); // each with a table of its own
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().leaks, []);
  await image.close();
});

test('what is in the room of the former stock by then is not cut off', async () => {
  const storage = await newImage();
  const image = await openImage(storage);
  await published(image, 20);
  await image.resize(SIZE * 2); // gives the stock back
  for (let i = 20; i < 30; i++) await image.writev(i * CLUSTER, bytes(i));
  await published(image, 10, 30);
  const shown = await readAll(image);
  await image.close();
  const again = await openImage(storage);
  assert.ok(Buffer.compare(await readAll(again), shown) === 0);
});

test('after a snapshot writes are published with few syncs again', async () => {
  const storage = await newImage();
  const image = await openImage(storage);
  await published(image, 20);
  await createSnapshot(image, 'one');
  const before = storage.syncs;
  await published(image, 200, 300);
  assert.ok(storage.syncs - before < 20, `${storage.syncs - before} syncs`);
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, []);
});

test('space that was freed is used before the file grows', async () => {
  const storage = await newImage();
  const image = await openImage(storage);
  await published(image, 300);
  await image.close();
  const { size } = storage;
  const again = await openImage(storage);
  await again.discard(0, 200 * CLUSTER);
  await again.flush();
  await published(again, 200);
  assert.equal(storage.size, size);
});

test('a slice is free to be written only when no change of it has to wait', async () => {
  const slices = new SliceCache(
    new MemoryStorage({ bytes: new Uint8Array(8 * 512) }),
    new SharedBlockCache(100_000),
    512,
  );
  await slices.hold(2, 'mapping');
  await slices.hold(3, 'mapping');
  slices.modify(2, true)[0] = 1;
  slices.modify(3)[0] = 1;
  slices.modify(3, true)[0] = 2;
  assert.equal(slices.takeFree(), undefined);
  const flushed = slices.takeDirty('mapping');
  slices.finishBatch(flushed);
  slices.modify(3, true)[0] = 3;
  const batch = slices.takeFree();
  assert.deepEqual(batch?.slices, [3]);
  slices.returnBatch(flushed);
  slices.returnBatch(batch as NonNullable<typeof batch>);
  assert.equal(slices.takeFree(), undefined, 'what failed once is flushed');
});

test('a stock that is laid in while a flush runs is not settled by it', () => {
  const stock = new Stock(CLUSTER);
  stock.lay(10, 12);
  const { generation } = stock;
  stock.take(2);
  stock.lay(20, 22);
  stock.settle(generation);
  assert.equal(stock.take(1)?.settled, false);
  stock.settle(stock.generation);
  assert.deepEqual(stock.take(5), { first: 21, count: 1, fresh: true, settled: true });
  assert.equal(stock.take(1), undefined);
});

/** A write of HELD bytes waits until open(); while it is full nothing is written below `below`. */
class FullDisk extends MemoryStorage {
  below = 0;
  open: () => void = () => undefined;
  readonly #gate = new Promise<void>((resolve) => {
    this.open = resolve;
  });

  override tryWritev(offset: number, iov: IoVec): boolean {
    return offset >= this.below && iov.byteLength !== HELD && super.tryWritev(offset, iov);
  }

  override async writev(offset: number, iov: IoVec): Promise<void> {
    if (iov.byteLength === HELD) await this.#gate;
    if (offset < this.below) {
      await ticks(5);
      throw new StorageError('NO_SPACE', 'the disk is full');
    }
    return super.writev(offset, iov);
  }
}

const HELD = 5 * 512;

async function ticks(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

test('what a flush had no room to count is not published with what was counted before', async () => {
  const storage = new FullDisk({ bytes: (await createImage({ size: SIZE, clusterSize: CLUSTER })).toBytes() });
  const image = await openImage(storage);
  await published(image, 256); // one is left of the stock
  const counted = image.writev(600 * CLUSTER, IoVec.of(new Uint8Array(HELD).fill(1))); // takes it
  await ticks(3);
  await image.writev(601 * CLUSTER, bytes(1)); // takes what is not counted in the file
  storage.below = 4 * CLUSTER; // where refcounts are
  const flushed = image.flush();
  await ticks(2);
  storage.open();
  await counted;
  await assert.rejects(flushed, { code: 'NO_SPACE' });
  await image.publish().catch(() => undefined);
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, []);
  storage.below = 0;
  await image.publish();
  const killed = await openImage(new MemoryStorage({ bytes: storage.toBytes() }));
  assert.ok(Buffer.compare(await readAll(killed), await readAll(image)) === 0);
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, []);
});

/** Zeroing waits until open(), and a sync takes a while. */
class SlowStorage extends MemoryStorage {
  open: () => void = () => undefined;
  #gate: Promise<void> | undefined;

  hold(): void {
    this.#gate = new Promise((resolve) => {
      this.open = resolve;
    });
  }

  override async writeZeroes(offset: number, length: number, unmap: boolean): Promise<boolean> {
    await this.#gate;
    return super.writeZeroes(offset, length, unmap);
  }

  override async sync(): Promise<void> {
    await ticks(3);
    return super.sync();
  }
}

test('a flush that is asked for while a publication waits for its turn at the tables counts what came in between', async () => {
  const cluster = 8192; // of refcounts of 64 bits a block has two slices of 512
  const file = await createImage({ size: 3000 * cluster, clusterSize: cluster, refcountBits: 64 });
  const storage = new SlowStorage({ bytes: file.toBytes() });
  const image = await openImage(storage);
  const write = (first: number, count: number): Promise<void> =>
    image.writev(first * cluster, IoVec.of(new Uint8Array(count * cluster).fill(1)));
  await write(0, 500);
  storage.hold();
  const inNewTable = write(1100, 1);
  await ticks(2);
  const published = image.publish();
  const flushed = image.flush();
  const between = write(600, 20); // counted in the other slice
  await ticks(2);
  storage.open();
  await Promise.all([inNewTable, published, between, flushed]);
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, []);
});
