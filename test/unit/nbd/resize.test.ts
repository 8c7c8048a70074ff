/** A disk that changes its size while it is exported: real images, real connections. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { createQcow2, type Image, IoVec, type Storage } from '../../../formats/index.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { NbdServer } from '../../../src/nbd/server.ts';
import { createHost } from '../../../src/open/host.ts';
import { newFile } from '../../support/new-file.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const SIZE = 4 * 1024 * 1024;
const HALF = SIZE / 2;
/** What a client says that was sent away, or that has come back and seen why. */
const GONE = /the server closed the connection|the connection failed|the export is not what it was/;

const FORMATS: Readonly<Record<string, (storage: Storage) => Promise<void>>> = {
  raw: (storage) => storage.resize(SIZE),
  qcow2: (storage) => createQcow2(storage, { size: SIZE }),
};

async function served(t: TestContext, format: string): Promise<{ image: Image; url: string; server: NbdServer }> {
  const folder = await temporaryDirectory(t);
  const path = join(folder, 'disk');
  const storage = await newFile(path);
  await FORMATS[format]?.(storage);
  await storage.close();
  const host = createHost();
  const image = await host.open(path, { format });
  const found = { name: 'disk', description: '', image, readOnly: false };
  const listen = { path: join(folder, 's') };
  const server = new NbdServer({ listen, catalog: { list: () => [found], find: () => found } });
  await server.listen();
  t.after(async () => {
    await server.close({ graceMs: 0 });
    await host.close();
  });
  return { image, server, url: `nbd+unix:///disk?socket=${listen.path}` };
}

for (const format of Object.keys(FORMATS)) {
  test(`${format}: shrinking under load sends clients away in order; nothing past the new end is read or written, and who comes back sees the new size`, async (t) => {
    const { image, url, server } = await served(t, format);
    const client = await NbdImage.open(url, { connections: 1, reconnectMs: 0 });
    let resized = false;
    const late: string[] = [];
    const loads = Array.from({ length: 8 }, async (_, i) => {
      const block = Buffer.alloc(4096, i + 1);
      for (let round = 0; ; round++) {
        const offset = (round * 8 + i) * 4096;
        const begunAfter = resized;
        try {
          if (offset >= SIZE) return;
          await client.writev(offset, IoVec.of(block));
          if (begunAfter && offset >= HALF) late.push(`written at ${offset}`);
        } catch (error) {
          assert.ok(['DISCONNECTED', 'NO_SPACE', 'IO'].includes((error as { code: string }).code), String(error));
          return;
        }
      }
    });
    while (server.counters.requests < 40) await new Promise((resolve) => setImmediate(resolve));
    await image.resize(HALF, { shrink: true });
    resized = true;
    await Promise.all(loads);
    await assert.rejects(client.readv(HALF, IoVec.of(Buffer.alloc(512))), GONE);
    await client.close().catch(() => undefined);
    assert.deepEqual(late, []);
    const next = await NbdImage.open(url, { connections: 1, reconnectMs: 0 });
    assert.equal(next.size, HALF);
    await assert.rejects(next.readv(HALF - 1, IoVec.of(Buffer.alloc(2))), { code: 'OUT_OF_RANGE' });
    await next.close();
  });

  test(`${format}: growing sends clients away, and what is new reads as zeros`, async (t) => {
    const { image, url, server } = await served(t, format);
    const client = await NbdImage.open(url, { connections: 1, reconnectMs: 0 });
    await client.writev(0, IoVec.of(Buffer.alloc(4096, 7)));
    await client.flush();
    await image.resize(2 * SIZE);
    while (server.connections > 0) await new Promise((resolve) => setImmediate(resolve));
    await assert.rejects(client.readv(0, IoVec.of(Buffer.alloc(1))), GONE);
    const next = await NbdImage.open(url, { connections: 1, reconnectMs: 0 });
    assert.equal(next.size, 2 * SIZE);
    const bytes = Buffer.alloc(4096, 1);
    await next.readv(2 * SIZE - 4096, IoVec.of(bytes));
    assert.ok(bytes.equals(Buffer.alloc(4096)));
    await next.readv(0, IoVec.of(bytes));
    assert.ok(bytes.equals(Buffer.alloc(4096, 7)));
    await next.close();
  });
}
