import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { ChainImage } from '../../../../formats/image/chain.ts';
import { RawLayer } from '../../../../formats/raw/raw.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { createVdi } from '../../../../formats/vdi/create.ts';
import { vdi } from '../../../../formats/vdi/driver.ts';
import { openDisk } from '../../../support/layers.ts';
import { createImage, openImage, readAll } from '../../../support/qcow2-images.ts';

const SIZE = 64 * 4096;
const SMALL = 8 * 4096;

/** Disks that can be made smaller, by format. */
const DISKS: Record<string, () => Promise<ChainImage>> = {
  raw: async () => new ChainImage([new RawLayer(new MemoryStorage({ bytes: new Uint8Array(SIZE) }), false)]),
  qcow2: async () => openImage(await createImage({ size: SIZE, clusterSize: 4096 })),
  vdi: async () => {
    const storage = new MemoryStorage();
    await createVdi(storage, { size: SIZE, blockSize: 4096 });
    return openDisk(vdi, new MemoryStorage({ bytes: storage.toBytes() }));
  },
};

for (const [format, make] of Object.entries(DISKS)) {
  test(`changes that wait while a ${format} disk shrinks are refused behind its new end, and leave nothing there`, async () => {
    const image = await make();
    const bytes = new Uint8Array(4096).fill(0xaa);
    await image.writev(0, IoVec.of(bytes));
    const shrunk = image.resize(SMALL, { shrink: true });
    const changes = [
      image.writev(SMALL, IoVec.of(bytes)),
      image.writev(SMALL - 512, IoVec.of(bytes)),
      image.writeZeroes(SMALL, 4096, true),
      image.discard(SIZE - 8192, 8192),
      image.readModifyWrite(SIZE - 4096, 4096, (found) => {
        found.fill(0xbb);
        return true;
      }),
    ];
    const inside = image.writev(4096, IoVec.of(bytes));
    const results = await Promise.allSettled(changes);
    await shrunk;
    await inside;
    assert.deepEqual(
      results.map((result) => (result.status === 'rejected' ? (result.reason as { code: string }).code : 'done')),
      changes.map(() => 'OUT_OF_RANGE'),
    );
    await image.resize(SIZE);
    const shown = await readAll(image);
    const expected = new Uint8Array(SIZE);
    expected.fill(0xaa, 0, 8192);
    assert.ok(Buffer.compare(shown, expected) === 0, 'what was cut off shows again');
    await image.close();
  });
}
