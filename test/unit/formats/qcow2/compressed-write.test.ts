import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import { IoVec } from '../../../../formats/core/iov.ts';
import { ABSENT, DATA, ExtentBuffer, OPAQUE, ZERO } from '../../../../formats/image/extent.ts';
import { createSnapshot, deleteSnapshot } from '../../../../formats/image/snapshots.ts';
import { encodeCluster, loadClusterEncoder } from '../../../../formats/qcow2/cluster-codec.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';
import { Random } from '../../../support/random.ts';

const CLUSTER = 4096;
const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };
const random = new Random(11);

/** Bytes that compress to about `share` of them. */
function halfNoise(share: number, length = CLUSTER): Uint8Array {
  const bytes = new Uint8Array(length);
  random.fill(bytes.subarray(0, Math.floor(length * share)));
  bytes[length - 1] = 1;
  return bytes;
}

test('an encoder gives a stream, all bytes where that gains nothing, and null for zeros', async () => {
  for (const type of ['zlib', 'zstd'] as const) {
    const encode = await loadClusterEncoder(type, CLUSTER);
    const noise = random.bytes(CLUSTER);
    const content = halfNoise(0.3);
    assert.equal(encode(new Uint8Array(CLUSTER)), null);
    assert.equal(encode(noise), noise);
    const stream = encode(content) as Uint8Array;
    assert.ok(stream.length < CLUSTER / 2);
    assert.equal(stream.buffer.byteLength, stream.length, 'no more memory than it has bytes');
    assert.deepEqual(await encodeCluster(type, content, CLUSTER), stream);
    assert.equal(
      (encode(content.subarray(0, 100)) as Uint8Array).length < 200,
      true,
      'a part of a cluster is filled up',
    );
    assert.throws(() => encode(new Uint8Array(CLUSTER + 1)), RangeError);
  }
  const stream = (await encodeCluster('zlib', halfNoise(0.3), CLUSTER)) as Uint8Array;
  assert.deepEqual(stream, new Uint8Array(deflateRawSync(await inflated(stream), { windowBits: 12, memLevel: 9 })));
});

async function inflated(stream: Uint8Array): Promise<Uint8Array> {
  const { decompress } = await import('../../../../formats/qcow2/cluster-codec.ts');
  return decompress('zlib', stream, CLUSTER);
}

test('streams are packed byte after byte, and a host cluster counts each', async () => {
  const storage = await createImage({ size: 64 * CLUSTER, clusterSize: CLUSTER });
  const image = await openImage(storage);
  const parts = Array.from({ length: 10 }, () => halfNoise(0.2));
  const units = await Promise.all(parts.map((each) => encodeCluster('zlib', each, CLUSTER)));
  await image.writeCompressed(0, units.slice(0, 4));
  await image.flush();
  await image.writeCompressed(4 * CLUSTER, units.slice(4));
  const out = new ExtentBuffer();
  await image.map(0, 10 * CLUSTER, out);
  let next = out.storageOffsets[0] as number;
  for (let i = 0; i < 10; i++) {
    assert.equal(out.kinds[i], OPAQUE);
    assert.equal(out.storageOffsets[i], next);
    next += (units[i] as Uint8Array).length;
  }
  assert.deepEqual((await readAll(image)).subarray(0, 10 * CLUSTER), new Uint8Array(Buffer.concat(parts)));
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  assert.deepEqual(file.inspect(), CLEAN);
  assert.ok(file.refcount(Math.floor((out.storageOffsets[0] as number) / CLUSTER)) >= 4);
});

test('a cluster whose refcount is full takes no more streams', async () => {
  for (const refcountBits of [1, 2, 4]) {
    const storage = await createImage({ size: 64 * CLUSTER, clusterSize: CLUSTER, refcountBits });
    const image = await openImage(storage);
    const content = new Uint8Array(CLUSTER).fill(7);
    const unit = await encodeCluster('zlib', content, CLUSTER);
    await image.writeCompressed(0, new Array(20).fill(unit));
    await image.writeCompressed(20 * CLUSTER, new Array(20).fill(unit));
    const shown = (await readAll(image)).subarray(0, 40 * CLUSTER);
    assert.ok(shown.every((byte) => byte === 7));
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN, `${refcountBits} bits`);
  }
});

test('plain units and zeros among streams are stored as such, and the last unit ends with the disk', async () => {
  const size = 6 * CLUSTER + 512;
  for (const version of [2, 3] as const) {
    const storage = await createImage({ size, clusterSize: CLUSTER, version });
    const image = await openImage(storage);
    const content = new Uint8Array(7 * CLUSTER);
    random.fill(content.subarray(0, 2 * CLUSTER));
    content.fill(3, 3 * CLUSTER, size);
    const units = await Promise.all(
      Array.from({ length: 7 }, (_, i) =>
        encodeCluster('zlib', content.subarray(i * CLUSTER, (i + 1) * CLUSTER), CLUSTER),
      ),
    );
    await image.writeCompressed(0, units);
    assert.deepEqual(await readAll(image), content.subarray(0, size));
    const out = new ExtentBuffer();
    await image.map(0, size, out);
    const kinds = [DATA, ABSENT, OPAQUE, OPAQUE, OPAQUE, OPAQUE];
    assert.deepEqual([...out.kinds.subarray(0, out.count)], kinds);
    // Over what was there: data, a stream, zeros.
    await image.writeCompressed(0, [units[3] ?? null, null, units[4] ?? null, units[0] ?? null]);
    const expected = content.slice(0, size);
    expected.set(content.subarray(3 * CLUSTER, 4 * CLUSTER), 0);
    expected.fill(0, CLUSTER, 2 * CLUSTER);
    expected.set(content.subarray(4 * CLUSTER, 5 * CLUSTER), 2 * CLUSTER);
    expected.set(content.subarray(0, CLUSTER), 3 * CLUSTER);
    assert.deepEqual(await readAll(image), expected);
    await image.map(CLUSTER, CLUSTER, out);
    assert.equal(out.kinds[0], version === 2 ? ABSENT : ZERO);
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
  }
});

test('a write into a compressed cluster copies it; a compressed write over a snapshot leaves that alone', async () => {
  const storage = await createImage({ size: 16 * CLUSTER, clusterSize: CLUSTER });
  const image = await openImage(storage);
  const before = halfNoise(0.3, 4 * CLUSTER);
  for (let i = 0; i < 4; i++) before[i * CLUSTER] = 1;
  const encode = (bytes: Uint8Array, from: number) =>
    Promise.all(
      [0, 1, 2, 3].map((i) =>
        encodeCluster('zlib', bytes.subarray(from + i * CLUSTER, from + (i + 1) * CLUSTER), CLUSTER),
      ),
    );
  await image.writeCompressed(0, await encode(before, 0));
  await createSnapshot(image, 'before');
  await image.writev(100, IoVec.of(new Uint8Array(50).fill(9)));
  const after = new Uint8Array(4 * CLUSTER).fill(5);
  await image.writeCompressed(CLUSTER, (await encode(after, 0)).slice(0, 2));
  const expected = before.slice();
  expected.fill(9, 100, 150);
  expected.fill(5, CLUSTER, 3 * CLUSTER);
  assert.deepEqual((await readAll(image)).subarray(0, 4 * CLUSTER), expected);
  await image.flush();
  const snapshot = await openImage(storage, { readOnly: true, snapshot: 'before' });
  assert.deepEqual((await readAll(snapshot)).subarray(0, 4 * CLUSTER), before);
  await snapshot.close();
  await deleteSnapshot(image, 'before');
  // What the snapshot alone had is free now: nothing is packed into it any more.
  await image.writeCompressed(8 * CLUSTER, await encode(after, 0));
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('nothing is packed into a cluster that has been given up', async () => {
  const storage = await createImage({ size: 64 * CLUSTER, clusterSize: CLUSTER });
  const image = await openImage(storage);
  const unit = await encodeCluster('zlib', new Uint8Array(CLUSTER).fill(1), CLUSTER);
  const other = await encodeCluster('zlib', new Uint8Array(CLUSTER).fill(2), CLUSTER);
  await image.writeCompressed(0, [unit]);
  await image.writeZeroes(0, CLUSTER, true);
  await image.flush();
  // The cluster that the stream was in is somebody else's now.
  await image.writev(8 * CLUSTER, IoVec.of(new Uint8Array(CLUSTER).fill(3)));
  await image.writeCompressed(0, [other, other]);
  await image.flush();
  const shown = await readAll(image);
  assert.ok(shown.subarray(8 * CLUSTER, 9 * CLUSTER).every((byte) => byte === 3));
  assert.ok(shown.subarray(0, 2 * CLUSTER).every((byte) => byte === 2));
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('compressed units are refused where they cannot be: read-only, unaligned, too long, behind the end', async () => {
  const storage = await createImage({ size: 4 * CLUSTER, clusterSize: CLUSTER });
  const image = await openImage(storage);
  const unit = await encodeCluster('zlib', new Uint8Array(CLUSTER).fill(1), CLUSTER);
  await assert.rejects(image.writeCompressed(512, [unit]), { code: 'INVALID' });
  await assert.rejects(image.writeCompressed(3 * CLUSTER, [unit, unit]), { code: 'INVALID' });
  await assert.rejects(image.writeCompressed(0, [new Uint8Array(CLUSTER + 1)]), { code: 'INVALID' });
  await image.close();
  const readOnly = await openImage(storage, { readOnly: true });
  assert.equal(readOnly.compression, undefined);
  await assert.rejects(readOnly.writeCompressed(0, [unit]), { code: 'READ_ONLY' });
  await readOnly.close();
  const layer = await openLayer(storage, { readOnly: true });
  assert.equal(layer.compression, undefined);
  await layer.close();
});
