import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { GiB, KiB, TiB } from '../../../../formats/core/units.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../../../formats/image/snapshots.ts';
import { countBytes } from '../../../support/counted-storage.ts';
import { createImage, openImage } from '../../../support/qcow2-images.ts';

const CLUSTER = 64 * KiB;
const TABLES = 12;

test('snapshots of a disk of 1 TiB cost what its L1 table and those L2 tables take that it has', async () => {
  const storage = await createImage({ size: TiB, clusterSize: CLUSTER });
  const image = await openImage(storage);
  const piece = new Uint8Array(4 * KiB).fill(1);
  for (let i = 0; i < TABLES; i++) await image.writev(i * 80 * GiB, IoVec.of(piece));
  await image.flush();
  const bytes = countBytes(storage);
  // The L1 table has 16 KiB, tables 64 KiB each, with a data cluster between them that is read along; refcounts and the table of snapshots have few clusters.
  const tables = TABLES * CLUSTER;
  const rest = 8 * CLUSTER;
  for (const [name, act, passes] of [
    ['create', () => createSnapshot(image, 's'), 2],
    ['apply', () => applySnapshot(image, 's'), 3],
    ['delete', () => deleteSnapshot(image, 's'), 2],
  ] as const) {
    bytes.read = 0;
    bytes.written = 0;
    await act();
    assert.ok(bytes.read <= passes * 2 * tables + rest, `${name} read ${bytes.read} bytes`);
    assert.ok(bytes.written <= tables + rest, `${name} wrote ${bytes.written} bytes`);
    assert.ok(bytes.read >= tables, `${name} was counted`);
  }
  await image.close();
});
