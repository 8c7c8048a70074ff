/** Tables that are longer than what one refcount block counts: small clusters and wide refcounts. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../../formats/core/units.ts';
import { createSnapshot, deleteSnapshot } from '../../../../formats/image/snapshots.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage } from '../../../support/qcow2-images.ts';

const CLUSTER = 512;
const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };

for (const refcountBits of [16, 64] as const) {
  test(`snapshots and sizes whose tables no refcount block counts alone: refcounts of ${refcountBits} bits`, async () => {
    // A block counts 256 or 64 clusters, the L1 table of this disk takes 1024.
    const storage = await createImage({ size: 2048 * MiB, clusterSize: CLUSTER, refcountBits });
    const image = await openImage(storage);
    await image.writev(0, IoVec.of(new Uint8Array(64 * KiB).fill(1)));
    await createSnapshot(image, 'one');
    await image.resize(4096 * MiB);
    await image.writev(4096 * MiB - 4 * KiB, IoVec.of(new Uint8Array(4 * KiB).fill(2)));
    await createSnapshot(image, 'two');
    await image.flush();
    const size = storage.size;
    for (let i = 0; i < 4; i++) {
      await deleteSnapshot(image, 'two');
      await createSnapshot(image, 'two');
    }
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
    assert.ok(
      storage.size <= size + 2 * MiB,
      `space that was freed is used again: ${size}, then ${storage.size} bytes`,
    );
  });
}
