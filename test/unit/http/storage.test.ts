import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { IoVec } from '../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { HttpStorage, type HttpStorageOptions } from '../../../src/http/storage.ts';
import { type FileServer, serveFile } from '../../support/http.ts';
import { randomFor } from '../../support/random.ts';

function content(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = (i * 2654435761) >>> 13;
  return bytes;
}

const QUICK: HttpStorageOptions = { delayMs: 1, timeoutMs: 5000, login: async () => undefined };

async function opened(t: TestContext, server: FileServer, options: HttpStorageOptions = {}): Promise<HttpStorage> {
  const storage = await HttpStorage.open(server.url, { ...QUICK, ...options });
  t.after(() => storage.close());
  return storage;
}

async function read(storage: HttpStorage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length).fill(0xee);
  await storage.readv(offset, IoVec.of(bytes));
  return bytes;
}

test('random reads give the bytes of the file, and zeros behind its end', async (t) => {
  const random = randomFor(t);
  const bytes = content(5 * MiB + 12_345);
  const server = await serveFile(t, bytes);
  const storage = await opened(t, server, { cacheBytes: MiB });
  assert.equal(storage.size, bytes.length);
  const whole = new Uint8Array(bytes.length + 2 * MiB);
  whole.set(bytes);
  const reads = Array.from({ length: 60 }, async () => {
    const offset = Math.floor(random.fraction() * bytes.length);
    const length = Math.floor(random.fraction() * 1.5 * MiB);
    const expected = whole.subarray(offset, offset + length);
    assert.ok(Buffer.from(await read(storage, offset, length)).equals(expected), `${length} at ${offset}`);
  });
  await Promise.all(reads);
});

test('what was read is kept, within bounds, and read at once the next time', async (t) => {
  const server = await serveFile(t, content(4 * MiB));
  const storage = await opened(t, server, { cacheBytes: MiB });
  const out = IoVec.of(new Uint8Array(4 * KiB));
  assert.equal(storage.tryReadv(0, out), true, 'the head came with the first request');
  assert.equal(storage.tryReadv(3 * MiB, out), false);
  await storage.readv(3 * MiB, out);
  const before = server.asked.length;
  assert.equal(storage.tryReadv(3 * MiB, out), true);
  assert.equal(server.asked.length, before);
  for (let at = 0; at < 4 * MiB; at += 128 * KiB) await storage.readv(at, out);
  assert.equal(storage.tryReadv(0, out), false, 'older blocks made room');
});

test('several requests are under way at the same time, no more than there are connections', async (t) => {
  const server = await serveFile(t, content(16 * MiB));
  server.instead = async () => {
    await sleep(20);
    return false;
  };
  const storage = await opened(t, server, { connections: 3 });
  await Promise.all(Array.from({ length: 16 }, (_, i) => read(storage, ((i * 7) % 16) * MiB, 4 * KiB)));
  assert.equal(server.busiest, 3);
});

test('who reads in order is read ahead for, in larger and larger requests', async (t) => {
  const server = await serveFile(t, content(8 * MiB));
  const storage = await opened(t, server);
  for (let at = 0; at < 8 * MiB; at += 64 * KiB) await read(storage, at, 64 * KiB);
  assert.ok(server.asked.length < 24, `${server.asked.length} requests for 8 MiB`);
});

test('a server that gives files as a whole only is refused', async (t) => {
  const server = await serveFile(t, content(MiB));
  server.instead = (_, response) => {
    response.end(server.bytes);
    return true;
  };
  await assert.rejects(opened(t, server), {
    code: 'UNSUPPORTED',
    path: server.url,
    message: /no range requests/,
    help: 'Download it first: curl -LO URL.',
  });
});

test('a file that changes on the server is an error, whatever of it changes', async (t) => {
  for (const change of ['etag', 'size'] as const) {
    const server = await serveFile(t, content(2 * MiB));
    const storage = await opened(t, server);
    if (change === 'etag') server.etag = '"second"';
    else server.bytes = content(2 * MiB + 512);
    await assert.rejects(read(storage, MiB, 512), { code: 'IO', message: /was changed since it was opened/ });
  }
});

test('trouble that passes is waited out: busy servers, cut connections, half answers', async (t) => {
  const bytes = content(2 * MiB);
  const server = await serveFile(t, bytes);
  const storage = await opened(t, server);
  const troubles: FileServer['instead'][] = [
    (_, response) => {
      response.writeHead(503, { 'retry-after': '0' }).end();
      return true;
    },
    (request) => {
      request.socket.destroy();
      return true;
    },
    (_, response) => {
      response.writeHead(206, {
        'content-range': `bytes ${MiB}-${MiB + 128 * KiB - 1}/${bytes.length}`,
        'content-length': 128 * KiB,
        etag: '"first"',
      });
      response.write(bytes.subarray(MiB, MiB + 1000));
      setImmediate(() => response.destroy());
      return true;
    },
  ];
  server.instead = (...args) => troubles.shift()?.(...args) ?? false;
  assert.deepEqual(await read(storage, MiB + 10, 100), bytes.subarray(MiB + 10, MiB + 110));
  assert.equal(troubles.length, 0);
});

test('trouble that stays is an error in the end, and the next read tries again', async (t) => {
  const server = await serveFile(t, content(2 * MiB));
  const storage = await opened(t, server, { attempts: 3 });
  server.asked.length = 0;
  server.instead = (_, response) => {
    response.writeHead(500).end();
    return true;
  };
  await assert.rejects(read(storage, MiB, 512), { code: 'IO', message: /has trouble \(status 500\)/ });
  assert.equal(server.asked.length, 3);
  server.instead = () => false;
  await read(storage, MiB, 512);
});

test('a server that says nothing any more is given up', async (t) => {
  const server = await serveFile(t, content(2 * MiB));
  const storage = await opened(t, server, { timeoutMs: 50, attempts: 2 });
  server.instead = () => true;
  await assert.rejects(read(storage, MiB, 512), { code: 'TIMEOUT', message: /has said nothing for 0.05 s/ });
});

test('statuses mean what they say, at once', async (t) => {
  const expected = { 401: 'AUTH', 403: 'ACCESS', 404: 'NOT_FOUND', 410: 'NOT_FOUND', 400: 'IO' } as const;
  for (const [status, code] of Object.entries(expected)) {
    const server = await serveFile(t, content(MiB));
    server.instead = (_, response) => {
      response.writeHead(Number(status)).end();
      return true;
    };
    await assert.rejects(opened(t, server), { code }, status);
    assert.equal(server.asked.length, 1, status);
  }
});

test('answers that do not fit what was asked are refused', async (t) => {
  const lies: Record<string, Record<string, string>> = {
    'another part': { 'content-range': `bytes 512-1023/${MiB}` },
    'no part': {},
    'a size beyond all': { 'content-range': `bytes 0-${128 * KiB - 1}/99999999999999999999` },
    'another encoding': { 'content-range': `bytes 0-${128 * KiB - 1}/${MiB}`, 'content-encoding': 'gzip' },
  };
  for (const [what, headers] of Object.entries(lies)) {
    const server = await serveFile(t, content(MiB));
    server.instead = (_, response) => {
      response.writeHead(206, headers).end(new Uint8Array(128 * KiB));
      return true;
    };
    await assert.rejects(opened(t, server), { code: 'PROTOCOL' }, what);
  }
});

test('redirects are followed, not without end, and logins do not go with them', async (t) => {
  const bytes = content(MiB);
  const [first, second] = [await serveFile(t, bytes), await serveFile(t, bytes)];
  const seen: (string | undefined)[] = [];
  first.instead = (request, response) => {
    seen.push(request.headers.authorization);
    response.writeHead(302, { location: second.url.replace('127.0.0.1', 'localhost') }).end();
    return true;
  };
  second.instead = (request) => {
    seen.push(request.headers.authorization);
    return false;
  };
  const storage = await opened(t, first, { login: async () => ({ user: 'me', password: 'secret' }) });
  assert.deepEqual(seen, [`Basic ${Buffer.from('me:secret').toString('base64')}`, undefined]);
  assert.deepEqual(await read(storage, 600_000, 10), bytes.subarray(600_000, 600_010));
  assert.equal(first.asked.length, 1, 'where it leads is kept');
  // The address that it leads to has run out: asked again from the start.
  second.instead = () => false;
  let refused = false;
  second.instead = (_, response) => {
    if (refused) return false;
    refused = true;
    response.writeHead(403).end();
    return true;
  };
  await read(storage, 300_000, 10);
  assert.equal(first.asked.length, 2);
  first.instead = (_, response) => {
    response.writeHead(302, { location: first.url }).end();
    return true;
  };
  await assert.rejects(opened(t, first), { code: 'PROTOCOL', message: /without end/ });
});

test('an empty file has no bytes', async (t) => {
  const server = await serveFile(t, new Uint8Array(0));
  const storage = await opened(t, server);
  assert.equal(storage.size, 0);
  assert.deepEqual(await read(storage, 0, 4), new Uint8Array(4));
});

test('nobody writes on a web server, and closing ends what is waited for', async (t) => {
  const server = await serveFile(t, content(2 * MiB));
  const storage = await opened(t, server);
  await assert.rejects(storage.writev(), { code: 'READ_ONLY' });
  await assert.rejects(storage.lock('write'), { code: 'READ_ONLY' });
  await storage.lock('read');
  await storage.close();
  await assert.rejects(read(storage, 0, 1), { code: 'CLOSED' });
});

test('names beside the file stay on its server, whatever they hold; absolute paths are on this machine', async (t) => {
  const server = await serveFile(t, content(512));
  const storage = await opened(t, server);
  assert.equal(storage.resolve('base.qcow2'), `${server.origin}/images/base.qcow2`);
  assert.equal(storage.resolve('sub/my #1?.qcow2'), `${server.origin}/images/sub/my%20%231%3F.qcow2`);
  assert.equal(storage.resolve('../x'), `${server.origin}/x`);
  assert.equal(storage.resolve('/etc/passwd'), '/etc/passwd');
});

test('a login in an address is refused, without saying it again', async () => {
  await assert.rejects(HttpStorage.open('http://me:secret@127.0.0.1:9/x'), (error: Error & { path?: string }) => {
    assert.equal((error as { code?: string }).code, 'INVALID');
    assert.doesNotMatch(`${error.message} ${error.path}`, /secret/);
    return true;
  });
});
