import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB } from '../../../../formats/core/units.ts';
import { ChainImage } from '../../../../formats/image/chain.ts';
import { DATA, ExtentBuffer, ZERO } from '../../../../formats/image/extent.ts';
import { RawLayer } from '../../../../formats/raw/raw.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';

async function sparse(): Promise<{ storage: MemoryStorage; image: ChainImage }> {
  const storage = new MemoryStorage();
  await storage.resize(1024 * KiB);
  await storage.writev(128 * KiB, IoVec.of(new Uint8Array(64 * KiB).fill(1)));
  return { storage, image: new ChainImage([new RawLayer(storage, false)]) };
}

async function mapOf(image: ChainImage): Promise<number[][]> {
  const out = new ExtentBuffer();
  await image.map(0, image.size, out);
  return Array.from({ length: out.count }, (_, i) => [out.kinds[i] ?? -1, out.offsets[i] ?? -1, out.lengths[i] ?? -1]);
}

test('map tells data from holes', async () => {
  const { image } = await sparse();
  assert.deepEqual(await mapOf(image), [
    [ZERO, 0, 128 * KiB],
    [DATA, 128 * KiB, 64 * KiB],
    [ZERO, 192 * KiB, 832 * KiB],
  ]);
});

test('discard gives space back, writes take it', async () => {
  const { image } = await sparse();
  await image.discard(128 * KiB, 64 * KiB);
  assert.deepEqual(await mapOf(image), [[ZERO, 0, 1024 * KiB]]);
  await image.writev(0, IoVec.of(Uint8Array.of(1)));
  assert.equal((await mapOf(image)).length, 2);
});

test('a disk whose file is no multiple of 512 has exactly its bytes', async () => {
  const image = new ChainImage([new RawLayer(new MemoryStorage({ bytes: new Uint8Array(1000).fill(3) }), false)]);
  assert.equal(image.size, 1000);
  await image.writev(990, IoVec.of(new Uint8Array(10).fill(4)));
  await assert.rejects(image.writev(990, IoVec.of(new Uint8Array(11))), { code: 'OUT_OF_RANGE' });
});

test('shrinking is refused unless asked for, and tells listeners', async () => {
  const { image } = await sparse();
  const sizes: number[] = [];
  image.onResize((size) => sizes.push(size));
  await assert.rejects(image.resize(512), { code: 'INVALID', help: /--shrink/ });
  await image.resize(2048 * KiB);
  await image.resize(512, { shrink: true });
  assert.deepEqual(sizes, [2048 * KiB, 512]);
});

test('a storage that cannot discard makes a disk that does not offer it, nor quick zeros', async () => {
  const storage = new MemoryStorage({ bytes: new Uint8Array(4 * KiB).fill(7) });
  Object.defineProperty(storage, 'discards', { value: false });
  storage.writeZeroes = async () => false;
  const image = new ChainImage([new RawLayer(storage, false)]);
  assert.deepEqual(image.limits, { allocationUnit: 1, discardUnit: 0, zeroUnit: 0 });
  assert.equal(await image.discard(0, 1024), false);
  await image.writeZeroes(512, 1024, true);
  assert.deepEqual(storage.toBytes().subarray(0, 2048), new Uint8Array(2048).fill(7).fill(0, 512, 1536));
});

test('what is discarded on a device reads as zeros, whatever the device makes of a discard', async () => {
  const storage = new MemoryStorage({ bytes: new Uint8Array(4 * KiB).fill(7) });
  Object.defineProperty(storage, 'growsZeroed', { value: false });
  storage.discard = async (offset, length) => {
    await storage.writev(offset, IoVec.of(new Uint8Array(length).fill(0xaa)));
    return true;
  };
  const image = new ChainImage([new RawLayer(storage, false)]);
  await image.discard(0, 1 * KiB);
  const bytes = new Uint8Array(1 * KiB);
  await image.readv(0, IoVec.of(bytes));
  assert.ok(bytes.every((byte) => byte === 0));
});
