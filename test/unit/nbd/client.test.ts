import assert from 'node:assert/strict';
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { DATA, ExtentBuffer, type Image, IoVec, ZERO } from '../../../formats/index.ts';
import { NbdImage, type NbdImageOptions } from '../../../src/nbd/client.ts';
import { NbdServer } from '../../../src/nbd/server.ts';
import { pattern, patternDisk } from '../../support/nbd-endpoint.ts';
import { SpyImage } from '../../support/spy-image.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const SIZE = 4 * 1024 * 1024;

async function serve(t: TestContext, image: Image, path: string): Promise<NbdServer> {
  const found = { name: 'disk', description: '', image, readOnly: false };
  const server = new NbdServer({
    listen: { path },
    catalog: { list: () => [found], find: (name) => (name === 'disk' ? found : undefined) },
  });
  await server.listen();
  t.after(() => server.close({ graceMs: 0 }));
  return server;
}

async function connected(t: TestContext, options: NbdImageOptions = {}) {
  const path = join(await temporaryDirectory(t), 's');
  const spy = new SpyImage(patternDisk(SIZE));
  const server = await serve(t, spy, path);
  const url = `nbd+unix:///disk?socket=${path}`;
  const image = await NbdImage.open(url, options);
  t.after(() => image.close().catch(() => undefined));
  return { path, url, spy, server, image };
}

async function read(image: Image, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  await image.readv(offset, IoVec.of(bytes));
  return bytes;
}

test('reads, writes, zeroes and discards reach the disk, many in flight over several connections', async (t) => {
  const { image, spy, server } = await connected(t);
  assert.equal(image.size, SIZE);
  for (let round = 0; round < 5; round++) {
    const reads = Array.from({ length: 100 }, (_, i) => read(image, i * 1000, 20_000 + i));
    for (const [i, bytes] of (await Promise.all(reads)).entries()) {
      assert.ok(bytes.equals(pattern(i * 1000, 20_000 + i)));
    }
  }
  assert.ok(server.connections > 1);
  await image.writev(70_000, IoVec.of(pattern(3, 500_000)));
  assert.ok((await read(image, 70_000, 500_000)).equals(pattern(3, 500_000)));
  await image.writeZeroes(100, 50, false);
  await image.discard(1000, 3000);
  await image.flush();
  assert.deepEqual(spy.log, ['write 70000 500000', 'zero 100 50', 'unmap 1000 3000', 'flush']);
});

test('writers that overlap take effect in the order of their calls, and readers see those before them', async (t) => {
  const { image } = await connected(t);
  const writes = Array.from({ length: 20 }, (_, i) => image.writev(i, IoVec.of(Buffer.alloc(1000, i + 1))));
  const seen = await read(image, 0, 1019);
  await Promise.all(writes);
  assert.deepEqual(
    [...seen.subarray(0, 20)],
    Array.from({ length: 20 }, (_, i) => i + 1),
  );
  assert.equal(seen[1018], 20);
});

test('the map has the holes of the server, and reading modified is atomic', async (t) => {
  const { image } = await connected(t);
  await image.writeZeroes(65536, 65536, true);
  const extents = new ExtentBuffer();
  await image.map(0, 200_000, extents);
  assert.deepEqual([...extents.kinds.subarray(0, 3)], [DATA, ZERO, DATA]);
  assert.deepEqual([...extents.lengths.subarray(0, 3)], [65536, 65536, 200_000 - 131_072]);
  const add = (bytes: Uint8Array): boolean => {
    bytes[0] = (bytes[0] as number) + 1;
    return true;
  };
  await Promise.all(Array.from({ length: 50 }, () => image.readModifyWrite(0, 1, add)));
  assert.equal((await read(image, 0, 1))[0], 50);
});

test('errors of the server have codes, and what is out of range is not even asked', async (t) => {
  const { image, spy } = await connected(t);
  spy.failures.set('writev', Object.assign(new Error('full'), { code: 'ENOSPC' }));
  await assert.rejects(image.writev(0, IoVec.of(Buffer.alloc(10))), { code: 'NO_SPACE', path: image.path });
  await assert.rejects(read(image, SIZE - 1, 2), { code: 'OUT_OF_RANGE' });
  await assert.rejects(NbdImage.open(image.path.replace('disk', 'other')), { code: 'NOT_FOUND' });
});

test('requests wait for a server that comes back, and are sent again', async (t) => {
  const { image, server, path, spy } = await connected(t, { connections: 1, reconnectMs: 10_000 });
  const open = spy.hold();
  const pending = [read(image, 0, 1000), image.writev(5000, IoVec.of(Buffer.alloc(10, 9)))];
  await server.close({ graceMs: 0 });
  open();
  await serve(t, spy, path);
  await Promise.all(pending);
  assert.ok((await read(image, 0, 1000)).equals(pattern(0, 1000)));
  await image.flush();
});

test('writes that a lost server had acknowledged are not called durable', async (t) => {
  const { image, server, path, spy } = await connected(t, { connections: 1, reconnectMs: 10_000 });
  await image.writev(0, IoVec.of(Buffer.alloc(10)));
  await server.close({ graceMs: 0 });
  await serve(t, spy, path);
  await read(image, 0, 10);
  await assert.rejects(image.flush(), { code: 'IO', message: /may be lost/ });
  await assert.rejects(image.writev(0, IoVec.of(Buffer.alloc(10))), { code: 'IO' });
  assert.equal((await read(image, 0, 10)).length, 10);
});

test('an export that came back with another size is not the same disk', async (t) => {
  const { image, server, path } = await connected(t, { connections: 1, reconnectMs: 10_000 });
  await server.close({ graceMs: 0 });
  await serve(t, patternDisk(SIZE / 2), path);
  await assert.rejects(read(image, 0, 10), { code: 'IO', message: /not what it was/ });
});

test('a server that hangs is given up in time, at the start and later', async (t) => {
  const path = join(await temporaryDirectory(t), 's');
  const sockets: Socket[] = [];
  const silent = createServer((socket) => sockets.push(socket)).listen(path);
  t.after(() => {
    silent.close();
    for (const socket of sockets) socket.destroy();
  });
  const url = `nbd+unix:///disk?socket=${path}`;
  await assert.rejects(NbdImage.open(url, { connectTimeoutMs: 50 }), { code: 'TIMEOUT', path: url });
  const other = await connected(t, { requestTimeoutMs: 100, reconnectMs: 0, connections: 1 });
  other.spy.hold();
  await assert.rejects(read(other.image, 0, 10), { code: 'TIMEOUT' });
});

test('a resize sends clients away in order, and nothing past the end is served', async (t) => {
  const { image, spy, server } = await connected(t, { connections: 1, reconnectMs: 0 });
  const open = spy.hold();
  const pending = read(image, 0, 100);
  while (server.counters.requests === 0) await new Promise((resolve) => setImmediate(resolve));
  spy.showSize(SIZE / 2);
  open();
  assert.ok((await pending).equals(pattern(0, 100)));
  await assert.rejects(read(image, SIZE - 10, 10), { code: 'DISCONNECTED' });
});

test('a unix socket is its owner’s, and goes at the end; what is in its place is left alone unless it is dead', async (t) => {
  const { path, server, spy } = await connected(t);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  await assert.rejects(serve(t, spy, path), /EADDRINUSE/);
  assert.ok(existsSync(path), 'a socket in use stays');
  await server.close({ graceMs: 0 });
  assert.ok(!existsSync(path));
  writeFileSync(path, 'a file');
  await assert.rejects(serve(t, spy, path), /EADDRINUSE/);
  assert.equal(statSync(path).size, 6);
});
