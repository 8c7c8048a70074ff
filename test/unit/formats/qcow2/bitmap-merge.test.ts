import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StorageError } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB } from '../../../../formats/core/units.ts';
import { addBitmap, mergeBitmap, openBitmap } from '../../../../formats/image/bitmaps.ts';
import { createImage, openImage } from '../../../support/qcow2-images.ts';

const CLUSTER = 4 * KiB;

test('a merge that fails leaves the bitmap as it was, with what is written meanwhile, also once it is stored', async () => {
  const storage = await createImage({ size: 1024 * KiB, clusterSize: CLUSTER });
  const image = await openImage(storage);
  await addBitmap(image, 'from', { granularity: CLUSTER });
  await image.writev(512 * KiB, IoVec.of(new Uint8Array(64 * KiB).fill(1)));
  await addBitmap(image, 'to', { granularity: CLUSTER });
  await image.flush();
  const source = await openBitmap(image, 'from');
  const { tryWritev, writev } = storage;
  const full = new StorageError('NO_SPACE', 'no space', { path: storage.path });
  storage.tryWritev = () => {
    throw full;
  };
  storage.writev = () => Promise.reject(full);
  await assert.rejects(mergeBitmap(image, 'to', source), { code: 'NO_SPACE' });
  Object.assign(storage, { tryWritev, writev });
  await image.writev(0, IoVec.of(new Uint8Array(CLUSTER).fill(2)));
  await image.close();
  const again = await openImage(storage);
  const runs = await (await openBitmap(again, 'to')).runs(0, again.size, 10);
  assert.deepEqual([...runs], [CLUSTER, 1, 1024 * KiB - CLUSTER, 0]);
  await again.close();
});
