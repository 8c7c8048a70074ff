import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LunetteError } from '../../../formats/core/errors.ts';
import { createQcow2, ImageHost, IoVec, MemoryStorage } from '../../../formats/index.ts';
import { ChunkPool, ChunkShare } from '../../../src/wire/chunk-pool.ts';
import {
  CONTEXTS,
  chunk,
  clientFlags,
  connected,
  ENDPOINT_DISK_SIZE,
  EXTENDED,
  exportOf,
  extendedChunk,
  extendedRequest,
  go,
  MemoryEndpoint,
  pattern,
  patternDisk,
  request,
  STRUCTURED,
  simpleReply,
  u32,
  u64,
} from '../../support/nbd-endpoint.ts';

const SIZE = ENDPOINT_DISK_SIZE;

describe('transmission', () => {
  test('a read that hits is answered in the tick it came in, all of a tick in one batch', async () => {
    const { wire } = connected();
    wire.endpoint.receive(
      Buffer.concat([
        request({ type: 0, offset: 100, length: 50, cookie: 1 }),
        request({ type: 0, offset: 0, length: 512, cookie: 2 }),
      ]),
    );
    assert.equal(wire.sent.length, 1);
    assert.deepEqual(wire.take(), Buffer.concat([simpleReply(1), pattern(100, 50), simpleReply(2), pattern(0, 512)]));
  });

  test('structured and extended reads are one chunk each, however long', async () => {
    const length = 700_000;
    const { wire } = connected([STRUCTURED]);
    wire.endpoint.receive(request({ type: 0, offset: 3, length }));
    assert.deepEqual(await wire.settle(), chunk(1, Buffer.concat([u64(3), pattern(3, length)])));
    const other = connected([EXTENDED]);
    other.wire.endpoint.receive(extendedRequest({ type: 0, offset: 3, length }));
    assert.deepEqual(
      await other.wire.settle(),
      extendedChunk(1, Buffer.concat([u64(3), pattern(3, length)]), { offset: 3 }),
    );
  });

  test('a read that has to wait is answered when it can be, and others pass it', async () => {
    const { wire, spy } = connected();
    const open = spy.hold();
    wire.endpoint.receive(request({ type: 0, offset: 1, length: 5000, cookie: 1 }));
    spy.gate = undefined;
    wire.endpoint.receive(request({ type: 0, offset: 2, length: 10, cookie: 2 }));
    assert.deepEqual(wire.take(), Buffer.concat([simpleReply(2), pattern(2, 10)]));
    open();
    assert.deepEqual(await wire.settle(), Buffer.concat([simpleReply(1), pattern(1, 5000)]));
  });

  test('writes arrive whole in however many pieces, and FUA is answered behind a flush', async () => {
    for (const step of [1 << 20, 7777, 1000]) {
      const { wire, spy } = connected();
      const bytes = request({ type: 1, flags: 1, offset: 11, payload: pattern(99, 600_000) });
      for (let at = 0; at < bytes.length; at += step) wire.endpoint.receive(bytes.subarray(at, at + step));
      assert.deepEqual(await wire.settle(), simpleReply());
      assert.deepEqual(spy.log, ['write 11 600000', 'flush']);
      wire.endpoint.receive(request({ type: 0, offset: 11, length: 600_000 }));
      assert.deepEqual((await wire.settle()).subarray(16), pattern(99, 600_000));
    }
  });

  test('zeroes, trims and flushes reach the image with their flags', async () => {
    const { wire, spy } = connected();
    wire.endpoint.receive(request({ type: 6, offset: 4096, length: 4096, cookie: 1 }));
    wire.endpoint.receive(request({ type: 6, flags: 2, offset: 8192, length: 4096, cookie: 2 }));
    wire.endpoint.receive(request({ type: 4, offset: 0, length: 4096, cookie: 3 }));
    wire.endpoint.receive(request({ type: 3, cookie: 4 }));
    const replies = await wire.settle();
    assert.equal(replies.length, 64);
    assert.deepEqual(spy.log, ['unmap 4096 4096', 'zero 8192 4096', 'discard 0 4096', 'flush']);
  });

  test('ranges past the end, unknown commands and flags are errors, and the stream goes on', async () => {
    const { wire } = connected();
    // What would be written past the end has no space; the rest is no valid question.
    for (const bytes of [
      request({ type: 1, offset: SIZE, payload: Buffer.alloc(100) }),
      request({ type: 6, offset: SIZE, length: 1 }),
    ]) {
      wire.endpoint.receive(bytes);
      assert.deepEqual(await wire.settle(), simpleReply(7, 28));
    }
    const wrong = [
      request({ type: 0, offset: SIZE - 1, length: 2 }),
      request({ type: 0, offset: 2n ** 64n - 1n, length: 2 }),
      request({ type: 4, offset: 2n ** 63n, length: 0xffffffff }),
      request({ type: 5, offset: SIZE, length: 1 }),
      request({ type: 7, offset: 0, length: 10 }),
      request({ type: 99, length: 1 }),
      request({ type: 0, flags: 0x8000, length: 1 }),
      request({ type: 0, flags: 4, length: 1 }),
      request({ type: 1, flags: 2, payload: Buffer.alloc(1) }),
      request({ type: 3, flags: 8 }),
      request({ type: 4, flags: 2, length: 1 }),
      request({ type: 5, flags: 2, length: 1 }),
      request({ type: 6, flags: 4, length: 1 }),
      request({ type: 0, length: 40_000_000 }),
    ];
    for (const bytes of wrong) {
      wire.endpoint.receive(bytes);
      assert.deepEqual(await wire.settle(), simpleReply(7, 22));
    }
    wire.endpoint.receive(request({ type: 0, offset: 5, length: 5 }));
    assert.deepEqual(await wire.settle(), Buffer.concat([simpleReply(), pattern(5, 5)]));
  });

  test('FUA goes with every command, and a change is answered after the flush that makes it durable', async () => {
    const { wire, spy } = connected([STRUCTURED, CONTEXTS]);
    for (const type of [0, 3, 5, 7]) {
      wire.endpoint.receive(request({ type, flags: 1, length: type === 3 ? 0 : 512 }));
      const reply = await wire.settle();
      assert.ok(reply.readUInt32BE(0) === 0x67446698 ? reply.readUInt32BE(4) === 0 : reply.readUInt16BE(6) < 0x8000);
    }
    spy.log.length = 0;
    for (const [type, payload] of [
      [1, Buffer.alloc(512)],
      [4, undefined],
      [6, undefined],
    ] as const) {
      wire.endpoint.receive(request({ type, flags: 1, ...(payload === undefined ? { length: 512 } : { payload }) }));
      await wire.settle();
      assert.equal(spy.log.at(-1), 'flush', `command ${type}`);
    }
    assert.equal(spy.log.filter((line) => line === 'flush').length, 3);
  });

  test('a read that DF forbids to cut and that is too long says so; ENOTSUP is said of zeros only', async () => {
    const { wire, spy } = connected([STRUCTURED]);
    wire.endpoint.receive(request({ type: 0, flags: 4, length: 40_000_000 }));
    assert.equal((await wire.settle()).readUInt32BE(20), 75);
    wire.endpoint.receive(request({ type: 0, length: 40_000_000 }));
    assert.equal((await wire.settle()).readUInt32BE(20), 22);
    spy.failures.set('readv', new LunetteError('UNSUPPORTED', 'x'));
    wire.endpoint.receive(request({ type: 0, length: 10 }));
    assert.equal((await wire.settle()).readUInt32BE(20), 22);
  });

  test('a failing image is an error reply with its errno, without paths in it', async () => {
    const { wire, spy } = connected([STRUCTURED]);
    spy.failures.set('readv', Object.assign(new Error('no space on /home/guest/x'), { code: 'ENOSPC' }));
    wire.endpoint.receive(request({ type: 0, length: 10 }));
    const reply = await wire.settle();
    assert.equal(reply.readUInt16BE(6), 0x8001);
    assert.equal(reply.readUInt32BE(20), 28);
    assert.ok(!reply.includes('guest'));
  });

  test('a read-only export refuses every change', async () => {
    const { wire, spy } = connected([], { readOnly: true });
    for (const bytes of [
      request({ type: 1, payload: Buffer.alloc(70_000) }),
      request({ type: 4, length: 1 }),
      request({ type: 6, length: 1 }),
    ]) {
      for (let at = 0; at < bytes.length; at += 5000) wire.endpoint.receive(bytes.subarray(at, at + 5000));
      assert.deepEqual(await wire.settle(), simpleReply(7, 1));
    }
    assert.deepEqual(spy.log, []);
  });

  test('block status covers what was asked for, in both contexts; one descriptor with REQ_ONE', async () => {
    const { wire } = connected([STRUCTURED, CONTEXTS]);
    wire.endpoint.receive(request({ type: 6, offset: 65536, length: 65536 }));
    await wire.settle();
    wire.endpoint.receive(request({ type: 7, length: 262_144 }));
    const pairs = (...values: number[]) => Buffer.concat(values.map(u32));
    const found = await wire.settle();
    const holes = pairs(65536, 0, 65536, 3, 131_072, 0);
    assert.deepEqual(
      found,
      Buffer.concat([
        chunk(5, Buffer.concat([u32(1), holes]), { done: false }),
        chunk(5, Buffer.concat([u32(2), pairs(262_144, 1)])),
      ]),
    );
    wire.endpoint.receive(request({ type: 7, flags: 8, length: 262_144 }));
    assert.deepEqual(
      (await wire.settle()).subarray(0, 32),
      chunk(5, Buffer.concat([u32(1), pairs(65536, 0)]), { done: false }),
    );
  });

  test('extended block status and zeroes take 64-bit lengths', async () => {
    const { wire } = connected([EXTENDED, CONTEXTS]);
    wire.endpoint.receive(extendedRequest({ type: 7, length: SIZE }));
    const payload = (id: number, flags: number) => Buffer.concat([u32(id), u32(1), u64(SIZE), u64(flags)]);
    assert.equal((await wire.settle()).subarray(32, 32 + 24).compare(payload(1, 0)), 0);
    wire.endpoint.receive(extendedRequest({ type: 6, length: 2 ** 40 }));
    assert.equal((await wire.settle()).readUInt32BE(32), 28);
    wire.endpoint.receive(extendedRequest({ type: 1, flags: 0x20, offset: 9, payload: pattern(1, 9) }));
    assert.deepEqual(await wire.settle(), extendedChunk(0, Buffer.alloc(0), { offset: 9 }));
  });

  test('a client that takes nothing is not read from, and costs no more than its limits', async () => {
    const { wire } = connected([], { limits: { outputLimit: 1 << 20, connectionMemory: 2 << 20 } });
    wire.stuck = true;
    const flood = Buffer.concat(
      Array.from({ length: 2000 }, (_, i) => request({ type: 0, length: 200_000, cookie: i })),
    );
    wire.endpoint.receive(flood);
    assert.ok(wire.paused);
    assert.ok(wire.host.pool.used < 4 << 20, `${wire.host.pool.used}`);
    let bytes = 0;
    while (bytes < 2000 * 200_016) {
      bytes += wire.take().length;
      wire.unstick();
      wire.stuck = false;
      await wire.settle().then((more) => {
        bytes += more.length;
      });
    }
    assert.equal(bytes, 2000 * 200_016);
    assert.ok(!wire.paused);
  });

  test('long requests of all clients wait for memory that others hold, short ones do not', async () => {
    const limits = { totalMemory: 2 << 20, connectionMemory: 2 << 20, ownMemory: 300_000 };
    const pool = new ChunkPool(limits.totalMemory);
    const disk = exportOf(patternDisk(SIZE));
    const [greedy, other, third] = [0, 1, 2].map(() => {
      const wire = new MemoryEndpoint([disk], { limits, pool });
      for (const bytes of [clientFlags, go()]) wire.endpoint.receive(bytes);
      wire.take();
      return wire;
    }) as [MemoryEndpoint, MemoryEndpoint, MemoryEndpoint];
    greedy.stuck = true;
    greedy.endpoint.receive(request({ type: 0, length: SIZE }));
    assert.equal(greedy.take().length, 16 + SIZE);
    // What is promised counts from the first byte on: the head of a long write, cut in two.
    const write = request({ type: 1, payload: pattern(3, 800_000) });
    for (const part of [write.subarray(0, 10), write.subarray(10, 100)]) third.endpoint.receive(part);
    for (const bytes of [request({ type: 0, length: SIZE }), request({ type: 0, length: 1000 })]) {
      for (let at = 0; at < bytes.length; at += 9) other.endpoint.receive(bytes.subarray(at, at + 9));
    }
    assert.ok(other.paused);
    assert.deepEqual(await other.settle(), Buffer.alloc(0));
    const fourth = new MemoryEndpoint([disk], { limits, pool });
    for (const bytes of [clientFlags, go()]) fourth.endpoint.receive(bytes);
    fourth.take();
    fourth.endpoint.receive(request({ type: 0, length: 290_000 }));
    assert.equal((await fourth.settle()).length, 16 + 290_000);
    assert.ok(pool.used < 3 << 20, `${pool.used}`);
    greedy.unstick();
    third.endpoint.receive(write.subarray(100));
    assert.deepEqual(await third.settle(), simpleReply());
    const bytes = await other.settle();
    assert.equal(bytes.length, 16 + SIZE + 16 + 1000);
    assert.ok(bytes.subarray(-1000).equals(pattern(3, 1000)));
    for (const wire of [greedy, other, third, fourth]) await wire.settle();
    assert.equal(pool.used, 0);
  });

  test('a long request does not wait for ever while others ask for a little again and again', async () => {
    const limits = { totalMemory: 3 << 20, connectionMemory: 2 << 20, ownMemory: 0, outputLimit: 600_000 };
    const pool = new ChunkPool(limits.totalMemory);
    const disk = exportOf(patternDisk(SIZE));
    const connect = (): MemoryEndpoint => {
      const wire = new MemoryEndpoint([disk], { limits, pool });
      for (const bytes of [clientFlags, go()]) wire.endpoint.receive(bytes);
      wire.take();
      return wire;
    };
    // Each has two answers on the way at any time: together more than what would leave room for a long one.
    const busy = Array.from({ length: 4 }, connect);
    const ask = (wire: MemoryEndpoint): void => wire.endpoint.receive(request({ type: 0, length: 250_000 }));
    for (const wire of busy) {
      wire.stuck = true;
      for (let i = 0; i < 4; i++) ask(wire);
    }
    const long = connect();
    const last = connect();
    long.endpoint.receive(request({ type: 0, length: SIZE }));
    assert.ok(long.paused, `${pool.used}`);
    last.endpoint.receive(request({ type: 0, length: SIZE, cookie: 8 }));
    let answered = 0;
    for (let round = 0; round < 40; round++) {
      for (const wire of busy) {
        for (let i = 0; i < 4; i++) ask(wire);
        wire.unstick(true);
        await new Promise((resolve) => setImmediate(resolve));
      }
      answered += long.take().length;
      if (answered > 0 && last.take().length > 0) break;
      assert.ok(round < 20, `a long request was not answered in ${round} rounds`);
    }
    assert.equal(answered, 16 + SIZE);
    // One that goes while it waits keeps nothing from the others.
    for (const wire of [long, last]) await wire.settle();
    for (const wire of busy) wire.unstick(true);
    const gone = connect();
    await gone.settle();
    gone.endpoint.receive(request({ type: 0, length: SIZE }));
    assert.equal(gone.paused, true);
    const anybody = new ChunkShare(pool, limits.totalMemory);
    assert.equal(anybody.allows(limits.totalMemory - pool.used), false);
    gone.endpoint.gone();
    assert.equal(anybody.allows(limits.totalMemory - pool.used), true);
    for (const wire of busy) {
      wire.stuck = false;
      wire.unstick();
    }
    for (const wire of busy) await wire.settle();
    assert.equal(pool.used, 0);
  });

  test('DISC closes once what is under way is answered', async () => {
    const { wire, spy } = connected();
    const open = spy.hold();
    wire.endpoint.receive(
      Buffer.concat([request({ type: 0, length: 10 }), request({ type: 2 }), request({ type: 0, length: 5 })]),
    );
    assert.equal(wire.closed, undefined);
    open();
    assert.deepEqual(await wire.settle(), Buffer.concat([simpleReply(), pattern(0, 10)]));
    assert.deepEqual(wire.closed, { reason: 'the client has disconnected', graceful: true });
    assert.equal(wire.host.pool.used, 0);
  });

  test('a write longer than the limit ends the connection before it is waited for', async () => {
    const { wire } = connected();
    wire.endpoint.receive(request({ type: 1, length: 0xffffffff }));
    assert.match(wire.reason, /a write of 4294967295 bytes/);
  });

  test('a client that stops inside a request is dropped, an idle one only when that is wanted', async () => {
    const { wire } = connected();
    wire.endpoint.tick(0);
    wire.endpoint.tick(1e9);
    assert.equal(wire.closed, undefined);
    wire.endpoint.receive(request({ type: 0 }).subarray(0, 5));
    wire.endpoint.tick(1e9 + 1);
    wire.endpoint.tick(1e9 + 61_000);
    assert.match(wire.reason, /stopped inside a request/);
    const idle = connected([], { limits: { idleTimeoutMs: 5000 } });
    idle.wire.endpoint.tick(0);
    idle.wire.endpoint.tick(6000);
    assert.match(idle.wire.reason, /idle/);
  });
});

test('holes that the mapping knows are sent as holes, and as data when no chunks are wanted', async () => {
  const storage = new MemoryStorage();
  await createQcow2(storage, { size: SIZE });
  const host = new ImageHost({ openStorage: async () => storage });
  const image = await host.open('memory');
  await image.writev(131_072, IoVec.of(pattern(0, 65536)));
  const wire = new MemoryEndpoint([exportOf(image)]);
  for (const bytes of [clientFlags, STRUCTURED, go()]) wire.endpoint.receive(bytes);
  wire.take();
  wire.endpoint.receive(request({ type: 0, offset: 0, length: 262_144 }));
  const hole = (offset: number, length: number) => chunk(2, Buffer.concat([u64(offset), u32(length)]), { done: false });
  assert.deepEqual(
    await wire.settle(),
    Buffer.concat([
      hole(0, 131_072),
      chunk(1, Buffer.concat([u64(131_072), pattern(0, 65536)]), { done: false }),
      hole(196_608, 65536),
      chunk(0, Buffer.alloc(0)),
    ]),
  );
  wire.endpoint.receive(request({ type: 0, offset: 262_144, length: 65536 }));
  assert.deepEqual(await wire.settle(), chunk(2, Buffer.concat([u64(262_144), u32(65536)])));
  wire.endpoint.receive(request({ type: 0, flags: 4, offset: 262_144, length: 65536 }));
  assert.deepEqual(await wire.settle(), chunk(1, Buffer.concat([u64(262_144), Buffer.alloc(65536)])));
  await image.close();
});
