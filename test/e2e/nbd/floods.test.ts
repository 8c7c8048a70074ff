/** Peers that mean no good, against `lunette export --transport nbd`: it goes on serving the others, from bounded memory. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { startNbdExport } from '../../support/nbd.ts';
import { chunk, clientFlags, go, option, request, text, u32, u64 } from '../../support/nbd-endpoint.ts';
import { runOk } from '../../support/process.ts';
import { openDescriptors, peakResidentBytes } from '../../support/process-usage.ts';
import { qemu } from '../../support/qemu.ts';
import { Random, randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;
const SIZE = 8 * MiB;
const needs = requires.nbdinfo() || requires.qemuNbd() || requires.linux();
/** The pool of all connections (256 MiB), what the heap grows to, and what the allocator keeps. */
const MARGIN = 420 * MiB;

/** Connects, waiting while more do so at once than the system queues for a unix socket. */
async function connected(path: string): Promise<Socket> {
  for (;;) {
    const socket = connect(path).on('error', () => undefined);
    const came = await Promise.race([
      once(socket, 'connect').then(() => true),
      once(socket, 'close').then(() => false),
    ]).catch(() => false);
    if (came) return socket;
    await sleep(5);
  }
}

async function served(t: TestContext) {
  const disk = join(await temporaryDirectory(t), 'disk.raw');
  const bytes = new Random(6).bytes(SIZE);
  await writeFile(disk, bytes);
  const server = await startNbdExport(t, disk, { args: ['--socket', '', '-f', 'raw'] });
  const path = /socket=(.*)/.exec(server.url)?.[1] as string;
  assert.equal((await runOk('nbdinfo', ['--size', server.url])).trim(), String(SIZE));
  const { pid } = server.process;
  const before = peakResidentBytes(pid);
  const descriptors = openDescriptors(pid);
  const sockets: Socket[] = [];
  t.after(() => {
    for (const socket of sockets) socket.destroy();
  });
  return {
    url: server.url,
    /** A connection that says this and then whatever the test says. Its answers are taken unless told. */
    open: async (words: Uint8Array = Buffer.alloc(0), reads = true): Promise<Socket> => {
      const socket = await connected(path);
      sockets.push(socket);
      if (reads) socket.resume();
      socket.write(words);
      return socket;
    },
    /** A decent client still gets what it asks for, and memory stays in its bounds. */
    holds: async (what: string): Promise<void> => {
      assert.ok(await qemu.compare(server.url, disk, '-f', 'raw', '-F', 'raw'), what);
      const grown = peakResidentBytes(pid) - before;
      t.diagnostic(`${what}: ${(grown / MiB).toFixed(0)} MiB more than an idle server`);
      assert.ok(grown < MARGIN, `${what}: ${grown} bytes more`);
    },
    /** All that was opened is closed, on the server's side as well. */
    over: async (): Promise<void> => {
      for (const socket of sockets) socket.destroy();
      for (let i = 0; openDescriptors(pid) > descriptors && i < 1000; i++) await sleep(10);
      assert.ok(openDescriptors(pid) <= descriptors, 'descriptors are left');
      assert.equal((await server.process.stop()).status, 0);
    },
  };
}

test('a thousand connections that do not get on with their negotiation push out each other, not those who work', {
  skip: needs,
}, async (t) => {
  const { open, holds, over } = await served(t);
  const worker = await open(Buffer.concat([clientFlags, go()]));
  const halves = [
    Buffer.alloc(0),
    clientFlags.subarray(0, 3),
    clientFlags,
    Buffer.concat([clientFlags, option(7, text('disk')).subarray(0, 20)]),
    Buffer.concat([clientFlags, Buffer.from('IHAVEOPT'), u32(10), u32(65_536), Buffer.alloc(65_535)]),
  ];
  for (let i = 0; i < 1000; i++) await open(halves[i % halves.length]);
  await holds('half-open handshakes');
  const answered = once(worker, 'data');
  worker.write(request({ type: 0, length: 512 }));
  assert.equal((await answered)[0].readUInt32BE(0), 0x67446698);
  await over();
});

test('two hundred clients that ask for all and take nothing', { skip: needs }, async (t) => {
  const { open, holds, over } = await served(t);
  const questions = Array.from({ length: 256 }, (_, i) => request({ type: 0, length: 4 * MiB, cookie: i }));
  for (let i = 0; i < 200; i++) await open(Buffer.concat([clientFlags, option(8), go(), ...questions]), false);
  await sleep(500);
  await holds('200 slow readers, 200 GiB asked for');
  await over();
});

test('a hundred clients that begin long writes and send half of each', { skip: needs }, async (t) => {
  const { open, holds, over } = await served(t);
  const begun = request({ type: 1, offset: 0, length: SIZE });
  const half = Buffer.alloc(SIZE / 2);
  for (let i = 0; i < 100; i++) await open(Buffer.concat([clientFlags, go(), begun, half]));
  await sleep(500);
  await holds('100 writes half-way');
  await over();
});

test('options without end, options of lying length, and lists asked for again and again', {
  skip: needs,
}, async (t) => {
  const { open, holds, over } = await served(t);
  const closed: Promise<unknown>[] = [];
  for (const words of [
    Buffer.concat([clientFlags, ...Array.from({ length: 5000 }, () => option(3))]),
    Buffer.concat([clientFlags, Buffer.from('IHAVEOPT'), u32(7), u32(0xffffffff)]),
    Buffer.concat([clientFlags, Buffer.from('IHAVEOPT'), u32(1), u32(0x7fffffff)]),
    u32(0xffffffff),
    Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'),
    Buffer.concat([clientFlags, go(), request({ type: 1, length: 0xffffffff })]),
    Buffer.concat([clientFlags, go(), Buffer.alloc(28)]),
  ]) {
    closed.push(once(await open(words), 'close'));
  }
  // One that never takes its lists: they pile up in its socket, not in the server.
  const lists = Buffer.concat([clientFlags, ...Array.from({ length: 900 }, () => option(9, text('disk'), u32(0)))]);
  for (let i = 0; i < 50; i++) await open(lists, false);
  await Promise.all(closed);
  await holds('option floods');
  await over();
});

test('frames at random, whole and in single bytes, from many at once', { skip: needs }, async (t) => {
  const random = randomFor(t);
  const { open, holds, over } = await served(t);
  const frame = (): Uint8Array =>
    random.pick([
      () => random.bytes(random.below(100)),
      () => option(random.below(14), random.bytes(random.below(200))),
      () =>
        request({ type: random.pick([0, 3, 5, 7, 9, 99]), offset: random.below(2 * SIZE), length: random.below(MiB) }),
      () => request({ type: 1, offset: SIZE, payload: random.bytes(random.below(3000)) }),
      () => chunk(random.below(9), random.bytes(20)),
      () => u64(random.below(2 ** 32)),
    ])();
  const one = async (): Promise<void> => {
    const socket = await open(Buffer.concat([clientFlags, ...(random.chance(0.7) ? [go()] : [])]));
    let gone = false;
    socket.on('close', () => {
      gone = true;
    });
    for (let i = 0; i < 20 && !gone; i++) {
      const bytes = frame();
      if (random.chance(0.3)) for (const byte of bytes.subarray(0, 60)) socket.write(Buffer.from([byte]));
      else socket.write(bytes);
      await new Promise((resolve) => setImmediate(resolve));
    }
    socket.destroy();
  };
  for (let round = 0; round < 30; round++) await Promise.all(Array.from({ length: 20 }, one));
  await holds('600 connections of junk');
  await over();
});
