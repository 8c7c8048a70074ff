/** A disk that becomes full at any write of a change of bitmaps: the image stays whole, and no bitmap is silently wrong. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf, StorageError } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import * as bitmaps from '../../../../formats/image/bitmaps.ts';
import type { ChainImage } from '../../../../formats/image/chain.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../../../support/qcow2-images.ts';

const CLUSTER = 512;
const SIZE = 9000 * CLUSTER;

/** Has room for so many writes, also in place: file systems that copy on write run out of space there as well. */
class FullStorage extends MemoryStorage {
  left = Number.POSITIVE_INFINITY;
  /** Space comes back after the first failure. */
  once = false;
  failures = 0;

  override tryWritev(offset: number, iov: IoVec): boolean {
    return this.left === Number.POSITIVE_INFINITY && super.tryWritev(offset, iov);
  }

  override async writev(offset: number, iov: IoVec): Promise<void> {
    this.#take();
    return super.writev(offset, iov);
  }

  override async writeZeroes(offset: number, length: number, unmap: boolean): Promise<boolean> {
    this.#take();
    return super.writeZeroes(offset, length, unmap);
  }

  override async resize(size: number): Promise<void> {
    if (size > this.size) this.#take();
    return super.resize(size);
  }

  #take(): void {
    if (this.left-- > 0) return;
    this.failures++;
    if (this.once) this.left = Number.POSITIVE_INFINITY;
    throw new StorageError('NO_SPACE', 'no space left', { path: this.path });
  }
}

/** Two enabled bitmaps and one that is not, each with bits. */
async function sample(): Promise<Uint8Array> {
  const storage = await createImage({ size: SIZE, clusterSize: CLUSTER });
  const image = await openImage(storage);
  for (const name of ['a', 'b', 'off']) await bitmaps.addBitmap(image, name, { granularity: 512 });
  await image.writev(0, IoVec.of(new Uint8Array(100 * CLUSTER).fill(1)));
  await bitmaps.disableBitmap(image, 'off');
  await image.close();
  return storage.toBytes();
}

/** Where a session writes before the disk is full: in both clusters of bits. */
const WRITTEN = [200, 5000];

const CHANGES: Readonly<Record<string, (image: ChainImage) => Promise<unknown>>> = {
  'storing at close': async () => undefined,
  add: (image) => bitmaps.addBitmap(image, 'new', { granularity: 512 }),
  remove: (image) => bitmaps.removeBitmap(image, 'off'),
  clear: (image) => bitmaps.clearBitmap(image, 'off'),
  enable: (image) => bitmaps.enableBitmap(image, 'off'),
  disable: (image) => bitmaps.disableBitmap(image, 'b'),
  merge: async (image) => bitmaps.mergeBitmap(image, 'off', await bitmaps.openBitmap(image, 'a')),
  resize: (image) => image.resize(SIZE + 3000 * CLUSTER),
};

for (const [change, act] of Object.entries(CHANGES)) {
  for (const once of [false, true]) {
    test(`${change}: a disk that is full at any write${once ? ', for a moment,' : ''} leaves a whole image and true bitmaps`, async () => {
      const before = await sample();
      let failures = 0;
      for (let left = 0; ; left++) {
        const storage = new FullStorage({ bytes: before });
        const warnings: string[] = [];
        const image = await openImage(storage, { warnings });
        for (const at of WRITTEN) await image.writev(at * CLUSTER, IoVec.of(new Uint8Array(CLUSTER).fill(9)));
        await image.flush();
        const disk = await readAll(image);
        storage.left = left;
        storage.once = once;
        const errors: unknown[] = [];
        await act(image).catch((error: unknown) => errors.push(error));
        await image.close().catch((error: unknown) => errors.push(error));
        storage.left = Number.POSITIVE_INFINITY;
        const context = `room for ${left} writes, ${errors.map(codeOf)}, ${warnings}`;
        for (const error of errors) assert.match(codeOf(error), /^(NO_SPACE|IO|CLOSED)$/, context);
        if (storage.failures === 0) break;
        failures++;

        const file = new Qcow2File(storage.toBytes());
        const found = file.bitmaps();
        const unstored = found.some(({ name, inUse }) => inUse && name !== 'new');
        assert.ok(
          !unstored || errors.length > 0 || warnings.some((text) => text.includes('inconsistent')),
          `nothing was said: ${context}`,
        );
        for (const bitmap of found) {
          if (bitmap.inUse || !['a', 'b'].includes(bitmap.name)) continue;
          for (const at of [0, ...WRITTEN])
            assert.ok(file.isDirty(bitmap, at), `${bitmap.name} misses ${at}: ${context}`);
        }
        const { corruptions } = file.inspect();
        assert.deepEqual(corruptions, [], context);
        // It opens, shows what was written, and goes on.
        const again = await openImage(storage);
        assert.deepEqual((await readAll(again)).subarray(0, SIZE), disk, context);
        for (const { name, inconsistent } of await bitmaps.listBitmaps(again)) {
          if (inconsistent) await bitmaps.removeBitmap(again, name);
        }
        await again.writev(0, IoVec.of(new Uint8Array(CLUSTER).fill(4)));
        await again.close();
        assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, [], context);
      }
      assert.ok(failures > 2, `only ${failures} writes could fail`);
    });
  }
}
