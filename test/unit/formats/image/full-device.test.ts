import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import type { FormatDriver } from '../../../../formats/driver.ts';
import type { ChainImage } from '../../../../formats/image/chain.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { createVdi } from '../../../../formats/vdi/create.ts';
import { vdi } from '../../../../formats/vdi/driver.ts';
import { vmdk } from '../../../../formats/vmdk/driver.ts';
import { openDisk } from '../../../support/layers.ts';
import { PowerCutStorage } from '../../../support/power-cut-storage.ts';
import { readAll } from '../../../support/qcow2-images.ts';
import { type Random, randomFor } from '../../../support/random.ts';
import { type Folder, newDisk } from '../../../support/vmdk-files.ts';

const UNIT = 4096;
const SIZE = 20 * UNIT;

/** Files of images that begin with some bytes, by format. */
const DISKS: [FormatDriver, (content: Uint8Array) => Promise<Uint8Array>][] = [
  [
    vdi,
    async (content) => {
      const storage = new MemoryStorage();
      await createVdi(storage, { size: SIZE, blockSize: UNIT });
      return filled(vdi, storage.toBytes(), content);
    },
  ],
  [
    vmdk,
    async (content) => {
      const folder: Folder = new Map();
      const path = await newDisk(folder, 'disk.vmdk', { size: SIZE, grainSize: UNIT });
      return filled(vmdk, (folder.get(path) as MemoryStorage).toBytes(), content);
    },
  ],
];

async function filled(driver: FormatDriver, bytes: Uint8Array, content: Uint8Array): Promise<Uint8Array> {
  const storage = new MemoryStorage({ bytes });
  const image = await openDisk(driver, storage);
  await image.writev(0, IoVec.of(content));
  await image.close();
  return storage.toBytes();
}

async function write(image: ChainImage, model: Uint8Array, random: Random, unit: number) {
  const bytes = random.bytes(UNIT);
  await image.writev(unit * UNIT, IoVec.of(bytes));
  model.set(bytes, unit * UNIT);
}

for (const [driver, make] of DISKS) {
  test(`a ${driver.name} image on a device that is full keeps what it took, and goes on with space that is freed`, async (t) => {
    const random = randomFor(t);
    const model = random.bytes(SIZE);
    model.fill(0, 3 * UNIT);
    const bytes = await make(model.subarray(0, 3 * UNIT));
    const device = new PowerCutStorage(random, bytes, { spare: 5 * UNIT });
    const image = await openDisk(driver, device);
    await write(image, model, random, 1);
    // More than there is room for, several at once.
    const many = [4, 9, 12].map((unit) => image.writev(unit * UNIT, IoVec.of(random.bytes(6 * UNIT))));
    const results = await Promise.allSettled([...many, image.flush()]);
    assert.deepEqual(
      results.map((result) => (result.status === 'rejected' ? (result.reason as { code: string }).code : 'done')),
      ['NO_SPACE', 'NO_SPACE', 'NO_SPACE', 'done'],
    );
    await image.flush();
    const shown = await readAll(image);
    assert.ok(Buffer.compare(shown.subarray(0, 4 * UNIT), model.subarray(0, 4 * UNIT)) === 0);
    // Of the writes that failed some units may have been written.
    model.set(shown);
    await image.discard(0, UNIT);
    model.fill(0, 0, UNIT);
    await image.flush();
    await write(image, model, random, 0);
    await image.flush();
    await image.close();
    const again = await openDisk(driver, new MemoryStorage({ bytes: device.toBytes() }), { readOnly: true });
    assert.ok(Buffer.compare(await readAll(again), model) === 0, 'it shows something else than was written');
    await again.close();
  });
}
