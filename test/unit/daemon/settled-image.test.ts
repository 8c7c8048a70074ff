import assert from 'node:assert/strict';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { SettledImage } from '../../../src/daemon/settled-image.ts';
import { createHost } from '../../../src/open/host.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const CLUSTER = 64 * 1024;
const bytes = (value: number, length = 4096): IoVec => IoVec.of(new Uint8Array(length).fill(value));

function counted(image: ReturnType<typeof memoryImage>): { settled: SettledImage; flushes: () => number } {
  let flushes = 0;
  const flush = image.flush.bind(image);
  image.flush = () => {
    flushes++;
    return flush();
  };
  return { settled: new SettledImage(image), flushes: () => flushes };
}

test('a write into new space is acknowledged after a flush, one into old space without', async () => {
  const { settled, flushes } = counted(memoryImage({ clusterSize: CLUSTER }));
  await settled.writev(0, bytes(1));
  assert.equal(flushes(), 1);
  await settled.writev(4096, bytes(2));
  assert.equal(flushes(), 1);
  await settled.writeZeroes(0, CLUSTER, true);
  assert.equal(flushes(), 2);
});

test('writes that wait together share flushes', async () => {
  const { settled, flushes } = counted(memoryImage({ clusterSize: CLUSTER }));
  await Promise.all(Array.from({ length: 12 }, (_, i) => settled.writev(i * CLUSTER, bytes(i))));
  assert.ok(flushes() <= 13);
  assert.equal(settled.tryWritev(0, bytes(9)), true);
});

test('nothing is written at once into space that is not durable yet', async () => {
  const image = memoryImage({ clusterSize: CLUSTER });
  const settled = new SettledImage(image);
  await image.writev(0, bytes(1));
  assert.equal(settled.tryWritev(0, bytes(2)), false);
  await settled.flush();
  assert.equal(settled.tryWritev(0, bytes(2)), true);
});

test('a disk without a mapping is never flushed for it', async () => {
  const image = new SpyImage(memoryImage());
  const settled = new SettledImage(image);
  await settled.writev(0, bytes(1));
  assert.ok(!image.log.some((line) => line.startsWith('flush')));
});

/** What the file holds when the process ends now: what other programs see of it. */
async function asKilled(t: Cleanup, path: string): Promise<string> {
  const copy = join(await temporaryDirectory(t), 'copy');
  await copyFile(path, copy);
  return copy;
}

for (const format of ['qcow2', 'vmdk', 'vdi'] as const) {
  test(`${format}: what was acknowledged is in the file, without a flush of the initiator’s`, {
    skip: requires.qemuIo(),
  }, async (t) => {
    const path = await qemu.create(t, { format, size: 8 * 1024 * 1024 });
    const host = createHost();
    t.after(() => host.close());
    const image = await host.open(path);
    const settled = new SettledImage(image);
    await Promise.all([1, 2, 3].map((n) => settled.writev(n * 1024 * 1024 + 512, bytes(n, 8192))));
    await settled.writev(1024 * 1024 + 16384, bytes(4));
    const copy = await asKilled(t, path);
    await qemu.io(
      copy,
      ...[1, 2, 3].map((n) => `read -P ${n} ${n * 1024 * 1024 + 512} 8192`),
      `read -P 4 ${1024 * 1024 + 16384} 4096`,
    );
  });
}
