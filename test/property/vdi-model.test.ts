import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import type { Image } from '../../formats/image/image.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { checkVdi } from '../../formats/vdi/check.ts';
import { createVdi, type VdiCreateOptions } from '../../formats/vdi/create.ts';
import { vdi } from '../../formats/vdi/driver.ts';
import { compareAll, runModel } from '../support/disk-model.ts';
import { openLayer, testContext } from '../support/layers.ts';
import { powerCutRun } from '../support/power-cut.ts';
import { type Random, randomFor } from '../support/random.ts';
import { PowerLog } from '../support/recording-storage.ts';
import { referenceRead } from '../support/vdi-reference.ts';

async function check(storage: Storage) {
  return checkVdi(storage, { cache: new SharedBlockCache(2 ** 20) });
}

/** A copy that shares no state with the disk that wrote it. */
function copyOf(storage: MemoryStorage): MemoryStorage {
  return new MemoryStorage({ bytes: storage.toBytes() });
}

async function openChain(storages: readonly MemoryStorage[], random: Random): Promise<Image> {
  const layers = [];
  for (const [i, storage] of storages.entries()) {
    const copy = i === 0 ? storage : copyOf(storage);
    const context = testContext({ cache: random.pick([0, 40000, 2 ** 20]) });
    layers.push(await openLayer(vdi, copy, { readOnly: i > 0, context }));
  }
  return new ChainImage(layers);
}

test('random chains of VDI images show what a byte array shows, and are clean after every close', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 8; round++) {
    const size = random.between(1, 2000) * 512;
    const model = new Uint8Array(size);
    const storages: MemoryStorage[] = [];
    for (let depth = random.between(1, 3); depth > 0; depth--) {
      const file = new MemoryStorage();
      const parent = storages[0];
      const options: VdiCreateOptions = {
        size,
        blockSize: random.pick([4096, 16384, 65536]),
        blockExtra: random.pick([0, 0, 512, 4096]),
        ...(parent === undefined ? { type: random.pick(['dynamic', 'fixed']) } : { parent: copyOf(parent) }),
      };
      await createVdi(file, options);
      storages.unshift(file);
      // Closing closes the storage: a copy of its bytes goes on.
      const reopen = async (): Promise<Image> => {
        storages[0] = copyOf(storages[0] as MemoryStorage);
        const found = await check(storages[0]);
        assert.deepEqual([found.corruptions, found.leaks], [0, 0], found.messages.join('\n'));
        return openChain(storages, random);
      };
      const image = await runModel(random, await openChain(storages, random), model, { reopen, changes: 60 });
      await image.close();
      storages[0] = copyOf(storages[0] as MemoryStorage);
      const bytes = referenceRead(storages.map((storage) => storage.toBytes()));
      assert.equal(Buffer.compare(bytes, model), 0, 'the reference reader sees other bytes');
    }
    const found = await check(storages[0] as MemoryStorage);
    assert.deepEqual([found.corruptions, found.leaks], [0, 0], found.messages.join('\n'));
  }
});

test('a VDI image that grows and shrinks keeps its bytes, and new space is zeros over any parent', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 12; round++) {
    let model: Uint8Array = new Uint8Array(random.between(1, 60) * 4096);
    const base = new MemoryStorage();
    await createVdi(base, { size: model.length, blockSize: 4096, type: random.pick(['dynamic', 'fixed']) });
    let storages = [base];
    let image = await runModel(random, await openChain(storages, random), model, { changes: 20 });
    if (random.chance(0.5)) {
      await image.close();
      const child = new MemoryStorage();
      await createVdi(child, { parent: copyOf(base) });
      storages = [child, copyOf(base)];
      image = await openChain(storages, random);
    }
    for (let step = 0; step < 4; step++) {
      // Past 262,144 bytes of map the blocks in front make room: with blocks of 4 KiB that is a disk of 1 GiB.
      const size = random.pick([1, 2, 5, 40]) * random.between(1, 10) * 4096;
      const next = new Uint8Array(size);
      next.set(model.subarray(0, size));
      model = next;
      await image.resize(size, { shrink: true });
      await runModel(random, image, model, { changes: 10 });
    }
    await image.close();
    storages[0] = copyOf(storages[0] as MemoryStorage);
    const found = await check(storages[0]);
    assert.deepEqual([found.corruptions, found.leaks], [0, 0], found.messages.join('\n'));
    const again = await openChain(storages, random);
    await compareAll(again, model);
    await again.close();
  }
});

test('after a power cut a VDI image opens, is not corrupt and has all that was flushed', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 12; round++) {
    const unit = random.pick([4096, 8192]);
    const source = new MemoryStorage();
    const size = random.between(4, 40) * 4096 + random.pick([0, 512]);
    await createVdi(source, { size, blockSize: unit, blockExtra: random.pick([0, 512]) });
    const log = new PowerLog();
    const file = log.file('/memory/disk.vdi', source.toBytes());
    const image = new ChainImage([await openLayer(vdi, file)]);
    await powerCutRun(random, {
      log,
      image,
      unit,
      reopen: async (left) => {
        const storage = left.get(file) as MemoryStorage;
        const found = await check(storage);
        assert.equal(found.corruptions, 0, found.messages.join('\n'));
        return new ChainImage([await openLayer(vdi, storage)]);
      },
    });
  }
});

test('a power cut while a VDI image changes its size leaves the old or the new one', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 6; round++) {
    const source = new MemoryStorage();
    // A map with no room behind it, so that blocks must move for a longer one.
    await createVdi(source, { size: 128 * 4096, blockSize: 4096 });
    const model = random.bytes(128 * 4096);
    const bytes = await tightMap(source, model);
    const log = new PowerLog();
    const file = log.file('/memory/disk.vdi', bytes);
    const image = new ChainImage([await openLayer(vdi, file)]);
    const grown = random.between(129, 400) * 4096;
    await image.resize(grown);
    const after = new Uint8Array(grown);
    after.set(model);
    await compareAll(image, after);
    for (let cut = 0; cut < 25; cut++) {
      const storage = log.cut(random.between(0, log.length), random).get(file) as MemoryStorage;
      const found = await check(storage);
      assert.equal(found.corruptions, 0, found.messages.join('\n'));
      const reopened = new ChainImage([await openLayer(vdi, storage)]);
      await compareAll(reopened, reopened.size === grown ? after : model);
      await reopened.close();
    }
    await image.close();
    assert.equal((await check(new MemoryStorage({ bytes: file.toBytes() }))).corruptions, 0);
  }
});

/** The image laid out as QEMU does it: map at 512, data right behind it; filled with `content`. */
async function tightMap(source: MemoryStorage, content: Uint8Array): Promise<Uint8Array> {
  const head = source.toBytes().slice(0, 512);
  const view = new DataView(head.buffer);
  const blocks = content.length / 4096;
  view.setUint32(0x154, 512, true);
  view.setUint32(0x158, 1024, true);
  view.setUint32(0x184, blocks, true);
  const map = new Uint8Array(512);
  for (let i = 0; i < blocks; i++) new DataView(map.buffer).setUint32(4 * i, i, true);
  return Buffer.concat([head, map, content]);
}
