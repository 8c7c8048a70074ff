import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { createImage, openImage, readAll } from '../../../support/qcow2-images.ts';

const CLUSTER = 65536;

test('an image that was written shows the same when it is copied to a device that holds other things', async () => {
  const storage = await createImage({ size: 10 * CLUSTER });
  const image = await openImage(storage);
  await image.writev(3 * CLUSTER + 100, IoVec.of(new Uint8Array(1000).fill(7)));
  const shown = await readAll(image);
  await image.close();
  const device = new Uint8Array(storage.size + 4 * CLUSTER).fill(0xdd);
  device.set(storage.toBytes());
  const copy = await openImage(new MemoryStorage({ bytes: device }), { readOnly: true });
  assert.equal(Buffer.compare(await readAll(copy), shown), 0);
});

test('an image that was opened for writing and not written keeps its length', async () => {
  const storage = await createImage({ size: 10 * CLUSTER });
  await storage.resize(storage.size - 1000);
  const { size } = storage;
  await (await openImage(storage)).close();
  assert.equal(storage.size, size);
});
