import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type ChainImage,
  createQcow2,
  createSnapshot,
  deleteSnapshot,
  type Image,
  IoVec,
} from '../../../formats/index.ts';
import { SILENT } from '../../../src/daemon/log.ts';
import { NbdExports } from '../../../src/daemon/nbd-exports.ts';
import { openExport } from '../../../src/daemon/open-export.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { NbdServer } from '../../../src/nbd/server.ts';
import { createHost } from '../../../src/open/host.ts';
import { clientFlags, go, option, text, u32 } from '../../support/nbd-endpoint.ts';
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

async function newDisk(path: string): Promise<void> {
  const storage = await newFile(path);
  await createQcow2(storage, { size: SIZE });
  await storage.close();
}

/** Makes an image with a snapshot and serves it, counting what it opens. */
async function serveSnapshot(t: TestContext) {
  const folder = await temporaryDirectory(t);
  const path = join(folder, 'disk.qcow2');
  await newDisk(path);
  const host = createHost();
  const open = new Set<Image>();
  const openImage = host.open.bind(host);
  host.open = async (...args) => {
    const image = await openImage(...args);
    open.add(image);
    const close = image.close.bind(image);
    image.close = () => close().finally(() => open.delete(image));
    return image;
  };
  const request = { image: path };
  const opened = await openExport(host, request, SILENT);
  await createSnapshot(opened.image as ChainImage, 'one', {});
  const exports = new NbdExports(host, SILENT);
  await exports.add({ name: 'disk', request, opened });
  const socket = join(folder, 's');
  const server = new NbdServer({ listen: { path: socket }, catalog: exports });
  await server.listen();
  t.after(async () => {
    await server.close({ graceMs: 0 });
    await host.close();
  });
  return { folder, socket, server, host, open, exports };
}

test('a snapshot that two clients ask for at the same time is opened once, and closed when both have gone', async (t) => {
  const { folder, host, open, exports } = await serveSnapshot(t);
  const request = { image: join(folder, 'other.qcow2') };
  await newDisk(request.image);
  const other = await openExport(host, request, SILENT);
  await exports.add({ name: 'other', request, opened: other });
  await createSnapshot(exports.images[0]?.opened.image as ChainImage, 'two', {}); // nobody has looked yet
  // Looking at the second image takes the one longer than the other.
  const [layer] = (other.image as ChainImage).layers;
  assert.ok(layer !== undefined);
  const describe = layer.describe.bind(layer);
  let looks = 0;
  layer.describe = async () => {
    await sleep(looks++ === 0 ? 1 : 50);
    return describe();
  };
  const found = await Promise.all([exports.find('disk@two'), exports.find('disk@two')]);
  assert.ok(found[0] !== undefined && found[0] === found[1]);
  assert.equal(open.size, 3);
  exports.released(found[0]);
  while (open.size > 2) await sleep(5);
});

test('a snapshot that is being opened when its image is removed is not found, and closed', async (t) => {
  const { host, open, exports } = await serveSnapshot(t);
  const openImage = host.open.bind(host);
  let may: () => void = () => undefined;
  const held = new Promise<void>((resolve) => {
    may = resolve;
  });
  let asked: () => void = () => undefined;
  const opening = new Promise<void>((resolve) => {
    asked = resolve;
  });
  host.open = async (...args) => {
    asked();
    await held;
    return openImage(...args);
  };
  const found = exports.find('disk@one');
  await opening;
  const removed = exports.remove('disk', async () => may());
  assert.equal(await found, undefined);
  await removed;
  assert.equal(open.size, 0);
});

test('a snapshot that a client asked about and did not use is closed when the client is gone, however it has asked', async (t) => {
  const { socket, server, open } = await serveSnapshot(t);
  assert.equal(open.size, 1);
  const none = Buffer.from([0, 0]);
  const questions = {
    INFO: [option(6, text('disk@one'), none)],
    SET_META_CONTEXT: [option(8), option(10, text('disk@one'), u32(1), text('base:allocation'))],
    LIST_META_CONTEXT: [option(8), option(9, text('disk@one'), u32(0))],
    GO: [go('disk@one')],
    EXPORT_NAME: [option(1, Buffer.from('disk@one'))],
    'INFO, then GO of another': [option(6, text('disk@one'), none), go('disk')],
  };
  for (const [name, options] of Object.entries(questions)) {
    const client = connect(socket);
    await once(client, 'data');
    const answered = once(client, 'data');
    client.write(Buffer.concat([clientFlags, ...options]));
    await answered;
    // Whoever chooses another one has let go of it at once.
    if (!name.endsWith('another')) while (open.size === 1) await sleep(5);
    client.destroy();
    for (let i = 0; (open.size > 1 || server.connections > 0) && i < 1000; i++) await sleep(5);
    assert.deepEqual([open.size, server.connections], [1, 0], `${name}: it is closed`);
  }
});

test('a snapshot that two clients look at stays open for the second; one whose client does not wait for its opening is closed', async (t) => {
  const { socket, server, host, open } = await serveSnapshot(t);
  const question = Buffer.concat([clientFlags, option(6, text('disk@one'), Buffer.from([0, 0]))]);
  const ask = async (): Promise<Socket> => {
    const client = connect(socket);
    await once(client, 'data');
    const answered = once(client, 'data');
    client.write(question);
    await answered;
    return client;
  };
  const [first, second] = [await ask(), await ask()];
  first.destroy();
  while (server.connections > 1) await sleep(5);
  await sleep(20);
  assert.equal(open.size, 2);
  second.write(go('disk@one'));
  await once(second, 'data');
  second.destroy();
  while (open.size > 1) await sleep(5);

  const openImage = host.open.bind(host);
  let went = false;
  host.open = async (...args) => {
    while (!went) await sleep(5);
    return openImage(...args);
  };
  const hasty = connect(socket);
  await once(hasty, 'data');
  hasty.write(question);
  await sleep(20);
  hasty.destroy();
  while (server.connections > 0) await sleep(5);
  went = true;
  await sleep(50);
  while (open.size > 1) await sleep(5);
});
