import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import zstd from 'zstd-napi';
import type { BlockSpace } from '../../../../formats/cache/cache.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { COMPRESSED, ExtentBuffer, OPAQUE } from '../../../../formats/image/extent.ts';
import { CompressedClusters } from '../../../../formats/qcow2/compressed.ts';
import { PackedReads } from '../../../../formats/qcow2/packed-reads.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { nativeUnpack } from '../../../../src/io/native-unpack.ts';
import { randomFor } from '../../../support/random.ts';

const CLUSTER = 65536;

/** Clusters of content, packed into a file in an order of their own, with gaps before some. */
function packedDisk(type: 'zlib' | 'zstd', contents: readonly Uint8Array[], order: readonly number[], gaps: number[]) {
  const hosts: number[] = [];
  const lengths: number[] = [];
  const parts: Uint8Array[] = [];
  let at = 0;
  order.forEach((cluster, i) => {
    const stream =
      type === 'zlib' ? deflateRawSync(contents[cluster] as Uint8Array) : zstd.compress(contents[cluster]!);
    parts.push(new Uint8Array(gaps[i] ?? 0), stream);
    hosts[cluster] = at + (gaps[i] ?? 0);
    lengths[cluster] = stream.length;
    at = (hosts[cluster] as number) + stream.length;
  });
  const storage = new MemoryStorage({ bytes: new Uint8Array(Buffer.concat(parts)) });
  const reads: number[] = [];
  const read = storage.readv.bind(storage);
  storage.readv = (offset, iov) => {
    reads.push(iov.byteLength);
    return read(offset, iov);
  };
  const kept: number[] = [];
  const cache: BlockSpace = {
    count: lengths.length,
    get: () => undefined,
    set: (block) => void kept.push(block),
    delete: () => undefined,
    release: () => undefined,
  };
  const options = {
    storage,
    type,
    clusterSize: CLUSTER,
    unpack: nativeUnpack,
    lengthOf: (guest: number) => lengths[Math.floor(guest / CLUSTER)],
  };
  const packed = new PackedReads(options, new CompressedClusters({ ...options, cache }));
  /** Reads bytes of the disk as a mapping of it would have them read. */
  const readDisk = async (offset: number, length: number): Promise<Uint8Array> => {
    const extents = new ExtentBuffer();
    extents.begin(offset);
    for (let from = offset; from < offset + length; from = extents.end) {
      const cluster = Math.floor(from / CLUSTER);
      const take = Math.min((cluster + 1) * CLUSTER, offset + length) - from;
      extents.append(OPAQUE, take, storage, hosts[cluster] as number, COMPRESSED);
    }
    const bytes = new Uint8Array(length);
    await packed.read(extents, 0, extents.count, offset, IoVec.of(bytes));
    return bytes;
  };
  return { storage, hosts, reads, kept, readDisk };
}

function someContents(random: { bytes(length: number): Uint8Array }, count: number): Uint8Array[] {
  return Array.from({ length: count }, () => Uint8Array.from(random.bytes(CLUSTER), (byte) => byte & 15));
}

for (const type of ['zlib', 'zstd'] as const) {
  test(`${type}: clusters whose streams lie together are read together, and none is kept`, async (t) => {
    const contents = someContents(randomFor(t), 12);
    // The order in the file does not matter; what lies far from the others is read by itself.
    const disk = packedDisk(
      type,
      contents,
      [1, 0, 2, 3, 5, 4, 6, 7, 8, 9, 11, 10],
      [0, 0, 0, 0, 0, 0, 100, 0, 200_000],
    );
    const bytes = await disk.readDisk(0, 12 * CLUSTER);
    assert.deepEqual(bytes, new Uint8Array(Buffer.concat(contents)));
    assert.equal(disk.reads.length, 2);
    assert.deepEqual(disk.kept, []);
  });

  test(`${type}: parts of clusters at both ends of a read are their bytes`, async (t) => {
    const random = randomFor(t);
    const contents = someContents(random, 5);
    const disk = packedDisk(type, contents, [0, 1, 2, 3, 4], []);
    const whole = new Uint8Array(Buffer.concat(contents));
    for (let round = 0; round < 20; round++) {
      const from = random.below(4 * CLUSTER);
      const length = 1 + random.below(5 * CLUSTER - from);
      assert.deepEqual(await disk.readDisk(from, length), whole.subarray(from, from + length), `${from}+${length}`);
    }
  });

  test(`${type}: a broken cluster among others is CORRUPT, with its place in the file`, async (t) => {
    const contents = someContents(randomFor(t), 6);
    const disk = packedDisk(type, contents, [0, 1, 2, 3, 4, 5], []);
    const host = disk.hosts[3] as number;
    await disk.storage.writev(host, IoVec.of(new Uint8Array(600).fill(0xff)));
    await assert.rejects(disk.readDisk(0, 6 * CLUSTER), { code: 'CORRUPT', offset: host, message: /no valid/ });
    assert.deepEqual(await disk.readDisk(0, 3 * CLUSTER), new Uint8Array(Buffer.concat(contents.slice(0, 3))));
  });

  test(`${type}: a stream that the file's end cuts is CORRUPT`, async (t) => {
    const contents = someContents(randomFor(t), 3);
    const disk = packedDisk(type, contents, [0, 1, 2], []);
    await disk.storage.resize((disk.hosts[2] as number) + 1000);
    await assert.rejects(disk.readDisk(0, 3 * CLUSTER), { code: 'CORRUPT', offset: disk.hosts[2] });
    await disk.storage.resize((disk.hosts[2] as number) - 10);
    await assert.rejects(disk.readDisk(0, 3 * CLUSTER), { code: 'CORRUPT' });
  });
}

test('clusters that lie all over the file are read with bounded memory', async (t) => {
  const count = 180;
  const contents = someContents(randomFor(t), count);
  // Two that lie together, one by itself, and so on.
  const gaps = Array.from({ length: count }, (_, i) => (i % 3 === 1 ? 0 : 50_000));
  const disk = packedDisk('zlib', contents, [...contents.keys()], gaps);
  const { storage } = disk;
  const read = storage.readv.bind(storage);
  let used = 0;
  let most = 0;
  storage.readv = async (offset, iov) => {
    const bytes = (iov.memory[0] as Uint8Array).buffer.byteLength;
    used += bytes;
    most = Math.max(most, used);
    await new Promise((resolve) => setImmediate(resolve));
    await read(offset, iov);
    used -= bytes;
  };
  const parts = Array.from({ length: count / 10 }, (_, i) => disk.readDisk(10 * i * CLUSTER, 10 * CLUSTER));
  assert.ok(Buffer.concat(await Promise.all(parts)).equals(Buffer.concat(contents)));
  assert.ok(disk.reads.length > 100, `${disk.reads.length}`);
  assert.ok(most <= 32 << 20, `${most} bytes at once`);
  // Those by themselves do not take more than they need.
  most = 0;
  for (let i = 2; i < count; i += 3) await disk.readDisk(i * CLUSTER, CLUSTER);
  assert.ok(most <= CLUSTER, `${most} bytes for one cluster`);
});
