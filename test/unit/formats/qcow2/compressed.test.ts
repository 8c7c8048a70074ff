import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import zstd from 'zstd-napi';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { decompress } from '../../../../formats/qcow2/cluster-codec.ts';
import { CompressedClusters } from '../../../../formats/qcow2/compressed.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Random } from '../../../support/random.ts';

const CLUSTER = 65536;
const random = new Random(5);
/** Compresses to about half. */
const content = Uint8Array.from(random.bytes(CLUSTER), (byte) => byte & 15);

function joined(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

test('deflate streams of any window are read', async () => {
  for (const windowBits of [9, 12, 15]) {
    const stream = deflateRawSync(content, { windowBits });
    assert.deepEqual(new Uint8Array(await decompress('zlib', stream, CLUSTER)), content);
  }
});

test('what follows a full cluster does not matter: garbage, more data, a missing end', async () => {
  const stream = deflateRawSync(content);
  const garbage = random.bytes(300);
  assert.deepEqual(new Uint8Array(await decompress('zlib', joined(stream, garbage), CLUSTER)), content);
  const longer = deflateRawSync(joined(content, content));
  assert.deepEqual(new Uint8Array(await decompress('zlib', longer, CLUSTER)), content);
  const endless = longer.subarray(0, longer.length - 100);
  assert.deepEqual(new Uint8Array(await decompress('zlib', endless, CLUSTER)), content);

  const frame = zstd.compress(content);
  assert.deepEqual(await decompress('zstd', joined(frame, garbage), CLUSTER), content);
  const frames = joined(zstd.compress(content.subarray(0, 1000)), zstd.compress(content.subarray(1000)), garbage);
  assert.deepEqual(await decompress('zstd', frames, CLUSTER), content);
});

test('a stream that is broken, short or empty is CORRUPT, whatever its size', async () => {
  const short = deflateRawSync(content.subarray(1));
  for (const bytes of [short, short.subarray(0, 100), new Uint8Array(0), new Uint8Array(600).fill(0xff)]) {
    await assert.rejects(decompress('zlib', bytes, CLUSTER), { code: 'CORRUPT' });
  }
  const frame = zstd.compress(content.subarray(1));
  for (const bytes of [frame, frame.subarray(0, 100), new Uint8Array(0), new Uint8Array(600).fill(0xff)]) {
    await assert.rejects(decompress('zstd', bytes, CLUSTER), { code: 'CORRUPT' });
  }
  // The next cluster is not affected by what went wrong before.
  assert.deepEqual(await decompress('zstd', zstd.compress(content), CLUSTER), content);
});

test('a bomb is not unpacked further than a cluster', async () => {
  const bomb = deflateRawSync(new Uint8Array(64 * 1024 * 1024));
  const before = process.memoryUsage().arrayBuffers;
  const bytes = await decompress('zlib', bomb, CLUSTER);
  assert.equal(bytes.length, CLUSTER);
  assert.ok(process.memoryUsage().arrayBuffers - before < 16 * 1024 * 1024);
});

test('a cluster is decompressed once for all who wait for it, and never kept when its mapping has changed', async () => {
  const stream = deflateRawSync(content);
  const storage = new MemoryStorage({ bytes: joined(new Uint8Array(CLUSTER), stream) });
  let reads = 0;
  const read = storage.readv.bind(storage);
  storage.readv = (offset, iov) => {
    reads++;
    return read(offset, iov);
  };
  const tryRead = storage.tryReadv.bind(storage);
  storage.tryReadv = (offset, iov) => {
    const done = tryRead(offset, iov);
    if (done) reads++;
    return done;
  };
  let mapped = true;
  const clusters = new CompressedClusters({
    storage,
    type: 'zlib',
    clusterSize: CLUSTER,
    cache: new SharedBlockCache(2 ** 20).space(4),
    lengthOf: () => (mapped ? stream.length : undefined),
  });
  const parts = [0, 100, 40_000].map((at) => ({ at, bytes: new Uint8Array(500) }));
  await Promise.all(parts.map(({ at, bytes }) => clusters.read(CLUSTER + at, CLUSTER, IoVec.of(bytes))));
  assert.equal(reads, 1);
  for (const { at, bytes } of parts) assert.deepEqual(bytes, content.subarray(at, at + 500));
  assert.equal(clusters.tryRead(CLUSTER + 7, IoVec.of(new Uint8Array(10))), true);

  clusters.forget(CLUSTER);
  mapped = false;
  await clusters.read(CLUSTER, CLUSTER, IoVec.of(new Uint8Array(10)));
  assert.equal(clusters.tryRead(CLUSTER, IoVec.of(new Uint8Array(10))), false);
});
