import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { createSnapshot } from '../../../../formats/image/snapshots.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../../../support/qcow2-images.ts';

const CLUSTER = 4096;

function write(bytes = CLUSTER): IoVec {
  return IoVec.of(new Uint8Array(bytes).fill(7));
}

test('lazy refcounts: the dirty bit is set before the first allocation, refcounts come at the end, and then the bit goes', async () => {
  const storage = await createImage({ size: 64 * CLUSTER, clusterSize: CLUSTER, lazyRefcounts: true });
  const image = await openImage(storage);
  await image.writev(0, write());
  assert.ok(new Qcow2File(storage.toBytes()).dirty);
  await image.flush();
  const flushed = new Qcow2File(storage.toBytes());
  assert.ok(flushed.inspect().corruptions.length > 0, 'refcounts have been written already');
  await image.close();
  const closed = new Qcow2File(storage.toBytes());
  assert.ok(!closed.dirty);
  assert.deepEqual(closed.inspect(), { corruptions: [], leaks: [], missingCopied: [] });

  // What is there already is written over without a mark.
  const again = await openImage(storage);
  await again.writev(0, write());
  await again.flush();
  assert.ok(!new Qcow2File(storage.toBytes()).dirty);
  await again.close();

  // A writer that was killed: the next one counts.
  const killed = new MemoryStorage({ bytes: flushed.bytes });
  const repaired = await openImage(killed);
  assert.equal((await readAll(repaired))[0], 7);
  await repaired.close();
  const after = new Qcow2File(killed.toBytes());
  assert.ok(!after.dirty);
  assert.deepEqual(after.inspect(), { corruptions: [], leaks: [], missingCopied: [] });
});

test('lazy refcounts: a snapshot in between is taken of refcounts that are in the file, and being lazy goes on', async () => {
  const storage = await createImage({ size: 64 * CLUSTER, clusterSize: CLUSTER, lazyRefcounts: true });
  const image = await openImage(storage);
  await image.writev(0, write());
  await createSnapshot(image, 'one');
  assert.ok(!new Qcow2File(storage.toBytes()).dirty);
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, []);
  await image.writev(0, write());
  await image.flush();
  assert.ok(new Qcow2File(storage.toBytes()).dirty);
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
});

test('without the compatible bit refcounts are in the file with every flush', async () => {
  const storage = await createImage({ size: 64 * CLUSTER, clusterSize: CLUSTER });
  const image = await openImage(storage);
  await image.writev(0, write());
  await image.flush();
  const file = new Qcow2File(storage.toBytes());
  assert.ok(!file.dirty);
  assert.deepEqual(file.inspect().corruptions, []);
  await image.close();
});
