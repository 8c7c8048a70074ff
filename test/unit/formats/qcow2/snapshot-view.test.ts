import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB } from '../../../../formats/core/units.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../../../formats/image/snapshots.ts';
import { ImageHost } from '../../../../formats/open.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, readAll } from '../../../support/qcow2-images.ts';
import { randomFor } from '../../../support/random.ts';
import { type Cleanup, temporaryDirectory } from '../../../support/temporary.ts';

const SIZE = 256 * KiB;

async function newImage(t: Cleanup): Promise<string> {
  const path = join(await temporaryDirectory(t), 'disk.qcow2');
  await writeFile(path, (await createImage({ size: SIZE, clusterSize: 4096 })).toBytes());
  return path;
}

test('a snapshot is read while the live image is written, applied over and snapshotted in the same process', async (t) => {
  const random = randomFor(t);
  const path = await newImage(t);
  const host = new ImageHost();
  const live = await host.open(path);
  const content = random.bytes(SIZE);
  await live.writev(0, IoVec.of(content));
  await createSnapshot(live, 'base');
  const view = await host.open(path, { snapshot: 'base' });
  assert.equal(view.readOnly, true);
  for (let i = 0; i < 40; i++) {
    const offset = random.below(SIZE - 1);
    const write = live.writev(offset, IoVec.of(random.bytes(1 + random.below(Math.min(20_000, SIZE - offset - 1)))));
    const read = readAll(view);
    await write;
    if (i % 10 === 3) await createSnapshot(live, `step ${i}`);
    if (i % 10 === 5) await applySnapshot(live, 'base');
    if (i % 10 === 7) await deleteSnapshot(live, `step ${i - 4}`);
    if (i % 4 === 0) await live.flush();
    assert.ok(Buffer.compare(await read, content) === 0, `step ${i}`);
  }
  await view.close();
  await live.close();
  assert.deepEqual(new Qcow2File(await readFile(path)).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
});

test('a snapshot that is open cannot be deleted, one that is closed again can', async (t) => {
  const path = await newImage(t);
  const host = new ImageHost();
  const live = await host.open(path);
  await createSnapshot(live, 'one');
  const first = await host.open(path, { snapshot: 'one' });
  const second = await host.open(path, { snapshot: '1' });
  await first.close();
  await assert.rejects(deleteSnapshot(live, 'one'), { code: 'LOCKED', message: /snapshot 1 is open/ });
  await second.close();
  await deleteSnapshot(live, 'one');
  await assert.rejects(host.open(path, { snapshot: 'one' }), { code: 'NOT_FOUND' });
  await live.close();
});

test('a view outlives the live image; the file can be written again when both are closed', async (t) => {
  const path = await newImage(t);
  const host = new ImageHost();
  const live = await host.open(path);
  await live.writev(0, IoVec.of(new Uint8Array(4096).fill(7)));
  await createSnapshot(live, 'one');
  const view = await host.open(path, { snapshot: 'one' });
  await live.close();
  assert.equal((await readAll(view))[4095], 7);
  await assert.rejects(host.open(path), { code: 'LOCKED' });
  await view.close();
  await (await host.open(path)).close();
});
