import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';
import { randomFor } from '../../../support/random.ts';

const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };
const DIRTY = 1n;

/** A dirty image whose refcounts and COPIED flags are as `spoil` leaves them. */
async function dirtyImage(
  refcountBits: number,
  spoil: (file: Qcow2File) => void,
): Promise<{ storage: MemoryStorage; shown: Uint8Array }> {
  const file = await createImage({ size: 512 * 300, clusterSize: 512, refcountBits, lazyRefcounts: true });
  const image = await openImage(file);
  for (let i = 0; i < 10; i++) await image.writev(i * 15_000, IoVec.of(new Uint8Array(3000).fill(i + 1)));
  const shown = await readAll(image);
  await image.close();
  const bytes = new Qcow2File(file.toBytes());
  if (refcountBits > 1) bytes.takeSnapshot('1', 'one');
  spoil(bytes);
  bytes.setU64(72, bytes.u64(72) | DIRTY);
  return { storage: new MemoryStorage({ bytes: bytes.bytes }), shown };
}

test('opening a dirty image for writing corrects refcounts and COPIED, whatever they were', async (t) => {
  const random = randomFor(t);
  for (const refcountBits of [1, 8, 16, 64]) {
    const { storage, shown } = await dirtyImage(refcountBits, (file) => {
      const clusters = file.bytes.length / 512;
      for (let i = 0; i < 40; i++) file.setRefcount(random.below(Math.floor(clusters)), random.below(2));
      const table = Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n);
      for (let i = 0; i < 20; i++) {
        const at = table + random.below(64) * 8;
        if (file.u64(at) !== 0n) file.setU64(at, file.u64(at) ^ (1n << 63n));
      }
    });
    const reader = await openImage(storage, { readOnly: true });
    assert.deepEqual(await readAll(reader), shown);
    await reader.close();
    assert.equal(new Qcow2File(storage.toBytes()).u64(72) & DIRTY, DIRTY, 'reading repairs nothing');

    const image = await openImage(storage);
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN, 'repaired before anything is written');
    assert.equal((await (image.layers[0] as (typeof image.layers)[0]).describe()).dirty, false);
    assert.deepEqual(await readAll(image), shown);
    await image.writev(1000, IoVec.of(new Uint8Array(50_000).fill(99)));
    await image.close();
    const file = new Qcow2File(storage.toBytes());
    assert.deepEqual(file.inspect(), CLEAN);
    assert.equal(file.u64(72) & DIRTY, 0n);
  }
});

test('a refcount block that never reached the disk is made again, away from what is in use', async () => {
  const { storage, shown } = await dirtyImage(64, (file) => file.setU64(Number(file.u64(48)) + 8, 0n));
  const image = await openImage(storage);
  assert.deepEqual(await readAll(image), shown);
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('a dirty image with more wrong than refcounts is refused for writing and left alone', async () => {
  const changes: ((file: Qcow2File) => void)[] = [
    (file) => file.setU64(Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n), (1n << 63n) | (1n << 40n)),
    (file) => file.setU64(file.l1Offset, 1n << 40n),
    (file) => file.setU64(file.l1Offset + 8, file.u64(48)),
    (file) => file.setU64(Number(file.u64(64)), file.u64(40)),
  ];
  for (const change of changes) {
    const { storage } = await dirtyImage(16, change);
    const before = storage.toBytes();
    await assert.rejects(openLayer(new MemoryStorage({ bytes: before })), { code: 'CORRUPT' });
    const reader = await openLayer(new MemoryStorage({ bytes: before }), { readOnly: true });
    await reader.close();
  }
});
