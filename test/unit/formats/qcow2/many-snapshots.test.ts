/** As many snapshots as an image can have: what is done with one of them touches the table, and no more. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../../../../formats/core/units.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../../../formats/image/snapshots.ts';
import { measureQcow2Usage } from '../../../../formats/qcow2/usage.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { countBytes } from '../../../support/counted-storage.ts';
import { manySnapshots } from '../../../support/many-snapshots.ts';
import { openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';

const MOST = 65536;
const OWN = new Set([1, 777, MOST]);
const { bytes: IMAGE, tableLength, diskSize } = manySnapshots(MOST, OWN);
/** Each snapshot has an L1 table of one cluster of 512 bytes. */
const L1_TABLES = MOST * 512;

test('65,536 snapshots are listed by reading their table once', async () => {
  const storage = new MemoryStorage({ bytes: IMAGE });
  const bytes = countBytes(storage);
  const layer = await openLayer(storage, { metadataOnly: true });
  const snapshots = (await layer.describe()).snapshots ?? [];
  assert.equal(snapshots.length, MOST);
  assert.deepEqual(
    [snapshots[0]?.name, snapshots[MOST - 1]?.id, snapshots[MOST - 1]?.diskSize],
    ['s1', '65536', diskSize],
  );
  assert.ok(bytes.read <= tableLength + MiB, `read ${bytes.read} bytes`);
});

test('one of 65,536 snapshots is opened by reading their table and its own', async () => {
  for (const number of [777, 40_000]) {
    const storage = new MemoryStorage({ bytes: IMAGE });
    const bytes = countBytes(storage);
    const image = await openImage(storage, { snapshot: `s${number}` });
    assert.equal((await readAll(image))[0], OWN.has(number) ? number % 251 : 0x55);
    assert.ok(bytes.read <= tableLength + MiB, `read ${bytes.read} bytes`);
    await image.close();
  }
});

test('one more than 65,536 snapshots is refused with the number, before anything is touched', async () => {
  const storage = new MemoryStorage({ path: 'many.qcow2', bytes: IMAGE });
  const bytes = countBytes(storage);
  const image = await openImage(storage);
  assert.ok(bytes.read <= tableLength + L1_TABLES + MiB, `opening read ${bytes.read} bytes`);
  await assert.rejects(createSnapshot(image, 'more'), {
    code: 'TOO_LARGE',
    path: 'many.qcow2',
    message: /65536 snapshots/,
    help: /Delete one/,
  });
  await image.close();
  assert.ok(Buffer.compare(storage.toBytes(), IMAGE) === 0, 'not a byte has changed');
});

test('one of 65,536 snapshots is deleted, applied and taken by writing the table and what is its own', async () => {
  const storage = new MemoryStorage({ bytes: IMAGE });
  const image = await openImage(storage);
  const bytes = countBytes(storage);
  for (const [what, act, tables] of [
    ['delete', () => deleteSnapshot(image, { name: 's777' }), 1],
    ['apply', () => applySnapshot(image, { name: 's1' }), 0],
    ['create', () => createSnapshot(image, 'one more'), 1],
  ] as const) {
    bytes.read = 0;
    bytes.written = 0;
    await act();
    // New refcount blocks count the table's new place.
    assert.ok(bytes.written <= tables * 1.1 * tableLength + MiB, `${what} wrote ${bytes.written} bytes`);
    assert.ok(bytes.read <= 2 * tables * tableLength + MiB, `${what} read ${bytes.read} bytes`);
  }
  assert.equal((await readAll(image))[0], 1);
  await image.close();
  const usage = await measureQcow2Usage(storage);
  assert.deepEqual([usage.leaked, usage.damaged, usage.snapshots.length], [0, 0, MOST]);
  assert.equal(usage.snapshots[MOST - 1]?.snapshot.id, '65537');
});
