import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StorageError } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { ChainImage } from '../../../../formats/image/chain.ts';
import { ABSENT, DATA, ExtentBuffer, ZERO } from '../../../../formats/image/extent.ts';
import { ClusterLayer } from '../../../support/cluster-layer.ts';

const CLUSTER = 4096;

function layer(clusters: number, options: { readOnly?: boolean } = {}): ClusterLayer {
  return new ClusterLayer({ size: clusters * CLUSTER, clusterSize: CLUSTER, ...options });
}

async function fill(image: ChainImage, offset: number, length: number, value: number): Promise<void> {
  await image.writev(offset, IoVec.of(new Uint8Array(length).fill(value)));
}

async function read(image: ChainImage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length).fill(0xee);
  await image.readv(offset, IoVec.of(bytes));
  return bytes;
}

/** The runs of equal bytes: [value, length]. */
function runs(bytes: Uint8Array): [number, number][] {
  const result: [number, number][] = [];
  for (const byte of bytes) {
    const last = result[result.length - 1];
    if (last !== undefined && last[0] === byte) last[1]++;
    else result.push([byte, 1]);
  }
  return result;
}

async function base(clusters: number, value: number): Promise<ClusterLayer> {
  const below = layer(clusters);
  const image = new ChainImage([below]);
  await fill(image, 0, clusters * CLUSTER, value);
  return below;
}

test('a partial write over a backing image keeps the rest of the cluster', async () => {
  const image = new ChainImage([layer(4), await base(4, 7)]);
  await fill(image, CLUSTER + 100, 50, 9);
  assert.deepEqual(runs(await read(image, 0, 4 * CLUSTER)), [
    [7, CLUSTER + 100],
    [9, 50],
    [7, 3 * CLUSTER - 150],
  ]);
});

test('what lies past the end of a shorter backing image reads as zeros, also inside a cluster that is copied', async () => {
  const below = await base(2, 7);
  below.size = CLUSTER + 512;
  const image = new ChainImage([layer(4), below]);
  assert.deepEqual(runs(await read(image, 0, 4 * CLUSTER)), [
    [7, CLUSTER + 512],
    [0, 3 * CLUSTER - 512],
  ]);
  await fill(image, CLUSTER + 1024, 10, 9);
  assert.deepEqual(runs(await read(image, CLUSTER, CLUSTER)), [
    [7, 512],
    [0, 512],
    [9, 10],
    [0, CLUSTER - 1034],
  ]);
});

test('a longer backing image is cut at the size of the image above it', async () => {
  const image = new ChainImage([layer(2), await base(4, 7)]);
  assert.equal(image.size, 2 * CLUSTER);
  assert.deepEqual(runs(await read(image, 0, 2 * CLUSTER)), [[7, 2 * CLUSTER]]);
  await assert.rejects(read(image, 2 * CLUSTER - 1, 2), { code: 'OUT_OF_RANGE' });
});

test('zeros written over a backing image hide it, also in parts of clusters', async () => {
  const image = new ChainImage([layer(4), await base(4, 7)]);
  await image.writeZeroes(100, 2 * CLUSTER, true);
  assert.deepEqual(runs(await read(image, 0, 4 * CLUSTER)), [
    [7, 100],
    [0, 2 * CLUSTER],
    [7, 2 * CLUSTER - 100],
  ]);
});

test('zeros are written as data when the layer has no other way', async () => {
  const top = layer(4);
  top.metadataOnly = false;
  const image = new ChainImage([top, await base(4, 7)]);
  await image.writeZeroes(0, 3 * CLUSTER, true);
  assert.deepEqual(runs(await read(image, 0, 4 * CLUSTER)), [
    [0, 3 * CLUSTER],
    [7, CLUSTER],
  ]);
});

test('zeros over what reads as zeros already allocate nothing', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  await read(image, 0, 4 * CLUSTER);
  await image.writeZeroes(100, 200, false);
  assert.deepEqual(
    top.log.filter((line) => line.startsWith('reserve')),
    [],
  );
});

test('discard leaves parts of clusters alone, but takes the last one with the image end', async () => {
  const top = new ClusterLayer({ size: 2 * CLUSTER + 512, clusterSize: CLUSTER });
  const image = new ChainImage([top]);
  await fill(image, 0, image.size, 5);
  await image.discard(100, CLUSTER);
  assert.deepEqual(runs(await read(image, 0, image.size)), [[5, image.size]]);
  await image.discard(CLUSTER + 1, image.size - CLUSTER - 1);
  assert.deepEqual(runs(await read(image, 0, image.size)), [
    [5, 2 * CLUSTER],
    [0, 512],
  ]);
});

test('a shared or opaque cluster is copied before it is written', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  await fill(image, 0, 4 * CLUSTER, 3);
  top.share();
  await top.conceal(2);
  await fill(image, CLUSTER - 10, 20, 4);
  await fill(image, 2 * CLUSTER + 5, 5, 6);
  assert.deepEqual(runs(await read(image, 0, 4 * CLUSTER)), [
    [3, CLUSTER - 10],
    [4, 20],
    [3, CLUSTER - 5],
    [6, 5],
    [3, 2 * CLUSTER - 10],
  ]);
});

test('two writes into one new cluster at the same time keep both', async () => {
  const image = new ChainImage([layer(4), await base(4, 7)]);
  await Promise.all([fill(image, 0, 100, 1), fill(image, 200, 100, 2), fill(image, CLUSTER - 1, 2, 3)]);
  assert.deepEqual(runs(await read(image, 0, 2 * CLUSTER)), [
    [1, 100],
    [7, 100],
    [2, 100],
    [7, CLUSTER - 301],
    [3, 2],
    [7, CLUSTER - 1],
  ]);
});

test('overlapping writes take effect in the order of their calls', async () => {
  const image = new ChainImage([layer(8)]);
  const writes: Promise<void>[] = [];
  for (let i = 1; i <= 20; i++) writes.push(fill(image, (i % 3) * 1000, 2 * CLUSTER, i));
  await Promise.all(writes);
  assert.equal((await read(image, 2000, 1))[0], 20);
  assert.deepEqual(runs(await read(image, 2000, 2 * CLUSTER)), [[20, 2 * CLUSTER]]);
  assert.deepEqual(runs(await read(image, 1000, 1000)), [[19, 1000]]);
});

test('a read waits for an earlier overlapping write', async () => {
  const image = new ChainImage([layer(4)]);
  const write = fill(image, 0, CLUSTER, 8);
  const first = await read(image, 10, 10);
  assert.deepEqual(runs(first), [[8, 10]]);
  await write;
});

test('the synchronous calls refuse while something overlapping is in flight, and serve the rest', async () => {
  const image = new ChainImage([layer(4)]);
  await fill(image, 0, 4 * CLUSTER, 1);
  await read(image, 0, 4 * CLUSTER);
  const write = image.writeZeroes(0, CLUSTER, false);
  const bytes = new Uint8Array(512);
  assert.equal(image.tryReadv(100, IoVec.of(bytes)), false);
  assert.equal(image.tryWritev(100, IoVec.of(bytes)), false);
  assert.equal(image.tryReadv(CLUSTER, IoVec.of(bytes)), true);
  assert.deepEqual(runs(bytes), [[1, 512]]);
  await write;
  assert.equal(image.tryReadv(100, IoVec.of(bytes)), true);
  assert.deepEqual(runs(bytes), [[0, 512]]);
});

test('tryWritev writes only what is allocated and the layer’s own', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  await fill(image, 0, CLUSTER, 1);
  await read(image, 0, 4 * CLUSTER);
  assert.equal(image.tryWritev(512, IoVec.of(new Uint8Array(512).fill(2))), true);
  assert.equal(image.tryWritev(CLUSTER, IoVec.of(new Uint8Array(512).fill(2))), false);
  top.share();
  assert.equal(image.tryWritev(512, IoVec.of(new Uint8Array(512).fill(3))), false);
  assert.deepEqual(runs(await read(image, 0, CLUSTER)), [
    [1, 512],
    [2, 512],
    [1, CLUSTER - 1024],
  ]);
});

test('a write that fails while its data is copied gives the space back and changes nothing', async () => {
  const below = await base(4, 7);
  await below.conceal(1);
  const top = layer(4);
  const image = new ChainImage([top, below]);
  below.failure = { call: 'readOpaque', error: new StorageError('IO', 'bad sector') };
  await assert.rejects(fill(image, CLUSTER + 10, 10, 9), { code: 'IO' });
  assert.equal(top.log.at(-1), `abort ${CLUSTER} ${2 * CLUSTER}`);
  assert.deepEqual(runs(await read(image, 0, 4 * CLUSTER)), [[7, 4 * CLUSTER]]);
  await fill(image, CLUSTER + 10, 10, 9);
  assert.equal((await read(image, CLUSTER + 10, 1))[0], 9);
});

test('a write that meets a full disk is tried once more after a flush, which may free what was discarded', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  await fill(image, 0, CLUSTER, 1);
  top.storage.maxSize = CLUSTER;
  const flush = top.flush.bind(top);
  top.flush = async () => {
    await flush();
    top.storage.maxSize = 4 * CLUSTER;
  };
  await fill(image, CLUSTER, CLUSTER, 2);
  assert.deepEqual(top.log.slice(-4), [
    `abort ${CLUSTER} ${2 * CLUSTER}`,
    'flush',
    `reserve ${CLUSTER} ${2 * CLUSTER}`,
    `commit ${CLUSTER} ${2 * CLUSTER}`,
  ]);
  top.flush = flush;
  top.storage.maxSize = 0;
  await assert.rejects(fill(image, 2 * CLUSTER, CLUSTER, 3), { code: 'NO_SPACE' });
  assert.deepEqual(runs(await read(image, 0, 3 * CLUSTER)), [
    [1, CLUSTER],
    [2, CLUSTER],
    [0, CLUSTER],
  ]);
});

test('beginWrite runs once before the first change, and again after it failed', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  top.failure = { call: 'beginWrite', error: new StorageError('NO_SPACE', 'full') };
  await assert.rejects(fill(image, 0, 10, 1), { code: 'NO_SPACE' });
  await Promise.all([fill(image, 0, 10, 1), fill(image, CLUSTER, 10, 1)]);
  assert.equal(top.log.filter((line) => line === 'beginWrite').length, 1);
});

test('flushes that come while one runs share the next', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  await Promise.all([image.flush(), image.flush(), image.flush(), image.flush()]);
  assert.equal(top.log.filter((line) => line === 'flush').length, 2);
});

test('after a failed flush the image takes no more writes, but reads', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  await fill(image, 0, 10, 1);
  top.failure = { call: 'flush', error: new StorageError('IO', 'fdatasync failed') };
  await assert.rejects(image.flush(), { code: 'IO' });
  await assert.rejects(fill(image, 0, 10, 2), { code: 'IO' });
  await assert.rejects(image.flush(), { code: 'IO' });
  assert.deepEqual(runs(await read(image, 0, 10)), [[1, 10]]);
  await image.close();
  assert.equal(top.log.at(-1), 'close');
});

test('a full disk during a flush is not final', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  await fill(image, 0, 10, 1);
  top.failure = { call: 'flush', error: new StorageError('NO_SPACE', 'full') };
  await assert.rejects(image.flush(), { code: 'NO_SPACE' });
  await fill(image, 0, 10, 2);
  await image.flush();
});

test('readModifyWrite is atomic against other writers', async () => {
  const image = new ChainImage([layer(2)]);
  const increments = Array.from({ length: 50 }, () =>
    image.readModifyWrite(8, 1, (bytes) => {
      bytes[0] = (bytes[0] as number) + 1;
      return true;
    }),
  );
  await Promise.all(increments);
  assert.equal((await read(image, 8, 1))[0], 50);
});

test('map names the layer that decided', async () => {
  const image = new ChainImage([layer(5), await base(3, 7)]);
  await fill(image, 0, CLUSTER, 1);
  await image.writeZeroes(CLUSTER, CLUSTER, true);
  const out = new ExtentBuffer();
  await image.map(0, image.size, out);
  const extents = Array.from({ length: out.count }, (_, i) => [
    out.kinds[i],
    out.offsets[i],
    out.lengths[i],
    out.depths[i],
  ]);
  assert.deepEqual(extents, [
    [DATA, 0, CLUSTER, 0],
    [ZERO, CLUSTER, CLUSTER, 0],
    [DATA, 2 * CLUSTER, CLUSTER, 1],
    [ZERO, 3 * CLUSTER, 2 * CLUSTER, 0],
  ]);
  const alone = new ChainImage([layer(2)]);
  await alone.map(0, alone.size, out);
  assert.deepEqual([out.count, out.kinds[0], out.lengths[0]], [1, ABSENT, 2 * CLUSTER]);
});

test('close waits for what is in flight, flushes, closes, and refuses later calls', async () => {
  const top = layer(4);
  const image = new ChainImage([top]);
  const write = fill(image, 0, 100, 1);
  const closed = image.close();
  await assert.rejects(fill(image, 0, 1, 1), { code: 'CLOSED' });
  await Promise.all([write, closed, image.close()]);
  assert.deepEqual(top.log.slice(-3), [`commit 0 ${CLUSTER}`, 'flush', 'close']);
});

test('a read-only image refuses every change', async () => {
  const image = new ChainImage([layer(4, { readOnly: true })]);
  await assert.rejects(fill(image, 0, 10, 1), { code: 'READ_ONLY' });
  await assert.rejects(image.writeZeroes(0, 10, true), { code: 'READ_ONLY' });
  await assert.rejects(image.discard(0, 10), { code: 'READ_ONLY' });
  assert.throws(() => image.tryWritev(0, IoVec.of(new Uint8Array(1))), { code: 'READ_ONLY' });
});

test('a part of a write or read that fails early is heard at its end, not as a rejection that nobody handles', async () => {
  const top = layer(3);
  const image = new ChainImage([top]);
  await fill(image, 0, CLUSTER, 7);
  const { storage } = top;
  const { tryReadv, writev } = storage;
  storage.tryReadv = () => false;
  storage.tryWritev = () => false;
  // The first cluster fails in the tick it is begun in; the others take turns of the loop to be mapped or allocated.
  const tryMap = top.tryMap.bind(top);
  top.tryMap = (offset, length, out) => (offset < CLUSTER ? tryMap(offset, Math.min(length, CLUSTER), out) : -1);
  const broken = async (offset: number): Promise<void> => {
    if (offset < CLUSTER) throw new StorageError('IO', 'a broken sector');
  };
  storage.writev = (offset, iov) => broken(offset).then(() => writev.call(storage, offset, iov));
  await assert.rejects(fill(image, 0, 3 * CLUSTER, 9), { code: 'IO' });
  storage.readv = (offset, iov) => broken(offset).then(() => void tryReadv.call(storage, offset, iov));
  await assert.rejects(read(image, 0, 3 * CLUSTER), { code: 'IO' });
  assert.deepEqual(runs(await read(image, CLUSTER, 2 * CLUSTER)), [[9, 2 * CLUSTER]]);
});
