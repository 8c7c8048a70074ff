import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { type ChainImage, createQcow2, createSnapshot, deleteSnapshot, IoVec } from '../../../formats/index.ts';
import { SILENT } from '../../../src/daemon/log.ts';
import { NbdExports } from '../../../src/daemon/nbd-exports.ts';
import { openExport } from '../../../src/daemon/open-export.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { NbdServer } from '../../../src/nbd/server.ts';
import { createHost } from '../../../src/open/host.ts';
import { newFile } from '../../support/new-file.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const SIZE = 1024 * 1024;

test('snapshots come and go while the disk is served and written to; one that nobody reads any more can be deleted', async (t) => {
  const folder = await temporaryDirectory(t);
  const path = join(folder, 'disk.qcow2');
  const storage = await newFile(path);
  await createQcow2(storage, { size: SIZE });
  await storage.close();

  const host = createHost();
  const request = { image: path };
  const opened = await openExport(host, request, SILENT);
  const live = opened.image as ChainImage;
  const exports = new NbdExports(host, SILENT);
  await exports.add({ name: 'disk', request, opened });
  const server = new NbdServer({ listen: { path: join(folder, 's') }, catalog: exports });
  await server.listen();
  t.after(async () => {
    await server.close({ graceMs: 0 });
    await host.close();
  });
  const url = (name: string): string => `nbd+unix:///${name}?socket=${join(folder, 's')}`;
  const names = async (): Promise<string[]> => (await exports.list()).map(({ name }) => name);

  assert.deepEqual(await names(), ['disk']);
  await assert.rejects(NbdImage.open(url('disk@one')), { code: 'NOT_FOUND' });
  await live.writev(0, IoVec.of(Buffer.alloc(4096, 1)));
  const one = await createSnapshot(live, 'one', {});
  assert.deepEqual(await names(), ['disk', 'disk@one']);
  const first = await NbdImage.open(url('disk@one'));
  const second = await NbdImage.open(url('disk@one'));
  await live.writev(0, IoVec.of(Buffer.alloc(4096, 2)));
  for (const image of [first, second]) {
    const bytes = Buffer.alloc(4096);
    await image.readv(0, IoVec.of(bytes));
    assert.deepEqual([bytes[0], image.readOnly], [1, true]);
  }
  await first.close();
  await assert.rejects(deleteSnapshot(live, one.id), { code: 'LOCKED' });
  await second.close();
  // The server hears of it a little later.
  for (let i = 0; server.connections > 0 && i < 500; i++) await new Promise((resolve) => setTimeout(resolve, 10));
  await new Promise((resolve) => setTimeout(resolve, 20));
  await deleteSnapshot(live, one.id);
  assert.deepEqual(await names(), ['disk']);
  await assert.rejects(NbdImage.open(url('disk@one')), { code: 'NOT_FOUND' });
});
