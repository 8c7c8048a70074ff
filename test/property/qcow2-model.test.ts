import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

/** A parent of any size, filled here and there. */
async function makeParent(random: Random, size: number): Promise<{ storage: MemoryStorage; bytes: Uint8Array }> {
  const parentSize = Math.max(512, Math.floor((size * random.pick([0.3, 1, 1.7])) / 512) * 512);
  const storage = await createImage({ size: parentSize, clusterSize: random.pick([512, 4096]) });
  const image = await openImage(storage);
  for (let i = 0; i < 10; i++) {
    const offset = random.below(parentSize);
    await image.writev(offset, IoVec.of(random.bytes(1 + random.below(Math.min(20_000, parentSize - offset)))));
  }
  const bytes = await readAll(image);
  await image.close();
  return { storage, bytes };
}

test('a qcow2 image shows what a byte array shows, whatever is done to it, and is clean after every close', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 25; round++) {
    const extendedL2 = random.chance(0.3);
    const clusterSize = extendedL2 ? random.pick([16384, 16384, 65536]) : random.pick([512, 1024, 4096, 65536]);
    const version = extendedL2 ? 3 : random.pick([2, 3, 3] as const);
    const refcountBits = version === 2 ? 16 : random.pick([1, 2, 4, 8, 16, 32, 64]);
    const size = random.pick(extendedL2 ? [10, 64, 200] : [64, 300, 1000]) * clusterSize + random.pick([0, 512]);
    const dataFile = version === 3 && random.chance(0.25) ? new MemoryStorage() : undefined;
    const dataFileRaw = dataFile !== undefined && random.chance(0.5);
    const parent = !dataFileRaw && random.chance(0.4) ? await makeParent(random, size) : undefined;
    const mapped =
      parent === undefined || extendedL2 ? (['off', 'off', 'metadata', 'falloc', 'full'] as const) : (['off'] as const);
    const file = await createImage({
      size,
      clusterSize,
      version,
      refcountBits,
      extendedL2,
      dataFileRaw,
      preallocation: random.pick(mapped),
      ...(parent === undefined ? {} : { backingFile: 'parent' }),
      ...(dataFile === undefined ? {} : { dataFile: 'data', dataStorage: dataFile }),
    });
    const model = new Uint8Array(size);
    if (parent !== undefined) model.set(parent.bytes.subarray(0, size));
    const cache = new SharedBlockCache(random.pick([0, 20_000, 1 << 20]));
    const what =
      `round ${round}: version ${version}, clusters of ${clusterSize}, ${refcountBits} bits, ${size} bytes` +
      `${extendedL2 ? ', extended L2' : ''}${dataFile ? `, ${dataFileRaw ? 'raw ' : ''}data file` : ''}`;
    const assertSound = (): void => {
      const found = new Qcow2File(file.toBytes()).inspect();
      assert.deepEqual(found, { corruptions: [], leaks: [], missingCopied: [] }, what);
      if (dataFileRaw) assert.ok(Buffer.compare(dataFile.toBytes(), model) === 0, `${what}: the raw data file differs`);
    };
    assertSound();
    const open = async (): Promise<ChainImage> => {
      const parents =
        parent === undefined
          ? []
          : [await openLayer(new MemoryStorage({ bytes: parent.storage.toBytes() }), { readOnly: true, cache })];
      return openImage(file, { cache, parents, dataFile });
    };
    let image = await open();
    /** What the calls of this burst put where, in the order of the calls. */
    let burst: { offset: number; bytes: Uint8Array }[] = [];
    const put = (offset: number, bytes: Uint8Array): void => {
      model.set(bytes, offset);
      burst.push({ offset, bytes });
    };
    const step = async (offset: number, length: number): Promise<void> => {
      switch (random.below(8)) {
        case 0:
          put(offset, new Uint8Array(length));
          return image.writeZeroes(offset, length, random.chance(0.5));
        case 1: {
          const unit = image.limits.discardUnit;
          const start = Math.ceil(offset / unit) * unit;
          const end = offset + length === size ? size : Math.floor((offset + length) / unit) * unit;
          if (unit > 0 && start < end) put(start, new Uint8Array(end - start));
          await image.discard(offset, length);
          return;
        }
        case 2:
        case 3: {
          const expected = model.slice(offset, offset + length);
          const found = new Uint8Array(length);
          const [before, calls] = [burst.length, burst];
          await image.readv(offset, IoVec.of(found));
          // A read sees everything that was called before it, and may see what was called after it.
          const later = calls.slice(before);
          for (let i = 0; i < length; i++) {
            const at = offset + i;
            const right = found[i] === expected[i] || later.some((call) => found[i] === call.bytes[at - call.offset]);
            assert.ok(right, `${what}: byte ${at} of a read of ${length} at ${offset}`);
          }
          return;
        }
        default: {
          const bytes = random.bytes(length);
          put(offset, bytes);
          return image.writev(offset, IoVec.of(bytes));
        }
      }
    };
    for (let i = 0; i < 80; i++) {
      const length = (): number => 1 + random.below(random.chance(0.1) ? 40 * clusterSize : 2 * clusterSize);
      burst = [];
      const pending = Array.from({ length: random.between(1, 4) }, () => {
        const offset = random.below(size);
        return step(offset, Math.min(length(), size - offset));
      });
      if (random.chance(0.2)) pending.push(image.flush());
      await Promise.all(pending);
      if (random.chance(0.03)) {
        await image.close();
        assertSound();
        image = await open();
      }
    }
    assert.ok(Buffer.compare(await readAll(image), model) === 0, what);
    await image.close();
    assertSound();
    assert.equal(cache.stats.pinnedBytes, 0);
  }
});
