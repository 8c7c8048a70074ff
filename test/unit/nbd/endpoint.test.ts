import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Image } from '../../../formats/image/image.ts';
import { createQcow2, ImageHost, IoVec, MemoryStorage } from '../../../formats/index.ts';
import {
  chunk,
  clientFlags,
  extendedChunk,
  extendedRequest,
  go,
  MemoryEndpoint,
  option,
  pattern,
  patternDisk,
  request,
  simpleReply,
  text,
  u32,
  u64,
} from '../../support/nbd-endpoint.ts';
import { SpyImage } from '../../support/spy-image.ts';

const SIZE = 1024 * 1024;
const STRUCTURED = option(8);
const EXTENDED = option(11);
const CONTEXTS = option(10, text('disk'), u32(2), text('base:allocation'), text('qemu:allocation-depth'));

function exportOf(image: Image, readOnly = false) {
  return { name: 'disk', description: 'a disk', image, readOnly };
}

async function connected(options: Uint8Array[] = [], { readOnly = false, limits = {} } = {}) {
  const spy = new SpyImage(patternDisk(SIZE));
  const wire = new MemoryEndpoint([exportOf(spy, readOnly)], { limits });
  for (const bytes of [clientFlags, ...options, go()]) wire.endpoint.receive(bytes);
  assert.ok(wire.endpoint.transmission !== undefined);
  wire.take();
  return { wire, spy };
}

describe('negotiation', () => {
  test('cut into single bytes, a session reads the same', async () => {
    const image = patternDisk(SIZE);
    const stream = Buffer.concat([
      clientFlags,
      STRUCTURED,
      CONTEXTS,
      option(6, text('disk'), Buffer.from([0, 0])),
      option(99, Buffer.from('junk')),
      go(),
      request({ type: 0, offset: 1000, length: 300 }),
      request({ type: 1, offset: 10, payload: pattern(5, 100), cookie: 8 }),
      request({ type: 0, offset: 0, length: 200, cookie: 9 }),
      request({ type: 3, cookie: 10 }),
    ]);
    const whole = new MemoryEndpoint([exportOf(image)]);
    whole.endpoint.receive(stream);
    const expected = await whole.settle();
    const again = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
    for (const byte of stream) again.endpoint.receive(Buffer.from([byte]));
    assert.deepEqual(await again.settle(), expected);
    assert.equal(again.closed, undefined);
  });

  test('says its magic first, lists exports, and gives size, flags and block sizes', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
    assert.deepEqual(wire.take(), Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]));
    wire.endpoint.receive(clientFlags);
    wire.endpoint.receive(option(3));
    const head = (code: number, type: number, data: Buffer) =>
      Buffer.concat([Buffer.from('0003e889045565a9', 'hex'), u32(code), u32(type), u32(data.length), data]);
    assert.deepEqual(
      wire.take(),
      Buffer.concat([head(3, 2, Buffer.concat([text('disk'), Buffer.from('a disk')])), head(3, 1, Buffer.alloc(0))]),
    );
    wire.endpoint.receive(go());
    assert.deepEqual(
      wire.take(),
      Buffer.concat([
        head(7, 3, Buffer.concat([Buffer.from([0, 0]), u64(SIZE), Buffer.from('0d6d', 'hex')])),
        head(7, 3, Buffer.concat([Buffer.from([0, 3]), u32(1), u32(4096), u32(32 * 1024 * 1024)])),
        head(7, 1, Buffer.alloc(0)),
      ]),
    );
  });

  test('EXPORT_NAME answers with size, flags and zeroes unless those were waived', async () => {
    for (const [flags, zeroes] of [
      [1, 124],
      [3, 0],
    ] as const) {
      const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
      wire.take();
      wire.endpoint.receive(u32(flags));
      wire.endpoint.receive(option(1, Buffer.from('disk')));
      assert.equal(wire.take().length, 10 + zeroes);
    }
  });

  test('a name that is not there is refused in GO and ends the connection in EXPORT_NAME', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
    wire.endpoint.receive(clientFlags);
    wire.take();
    wire.endpoint.receive(go('other'));
    assert.equal(wire.take().readUInt32BE(12), 0x80000006);
    assert.equal(wire.closed, undefined);
    wire.endpoint.receive(option(1, Buffer.from('other')));
    assert.match(wire.reason, /no export "other"/);
  });

  test('lengths that lie are errors, and long ones end the connection before they are waited for', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
    wire.endpoint.receive(clientFlags);
    wire.take();
    for (const data of [u32(0xffffffff), Buffer.concat([u32(9), Buffer.from('disk\0\0')]), Buffer.alloc(0)]) {
      wire.endpoint.receive(option(7, data));
      assert.equal(wire.take().readUInt32BE(12), 0x80000003);
    }
    wire.endpoint.receive(STRUCTURED);
    wire.take();
    for (const data of [u32(0xffffffff), Buffer.concat([text('disk'), u32(0xffffffff), text('base:')])]) {
      wire.endpoint.receive(option(10, data));
      assert.equal(wire.take().readUInt32BE(12), 0x80000003);
    }
    wire.endpoint.receive(Buffer.concat([Buffer.from('IHAVEOPT'), u32(7), u32(0x7fffffff)]));
    assert.match(wire.reason, /an option of 2147483647 bytes/);
  });

  test('where TLS is required nothing is told before it, and bytes in the clear behind STARTTLS end the connection', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))], { tls: 'required' });
    wire.endpoint.receive(clientFlags);
    wire.take();
    for (const bytes of [option(3), go(), STRUCTURED]) {
      wire.endpoint.receive(bytes);
      assert.equal(wire.take().readUInt32BE(12), 0x80000005);
    }
    wire.endpoint.receive(Buffer.concat([option(5), go()]));
    assert.match(wire.reason, /in the clear/);
  });

  test('what was agreed in the clear is void under TLS', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))], { tls: 'optional' });
    for (const bytes of [clientFlags, STRUCTURED, option(5)]) wire.endpoint.receive(bytes);
    wire.endpoint.encrypted();
    wire.endpoint.receive(go());
    assert.equal(wire.endpoint.transmission?.agreement.mode, 0);
  });

  test('contexts are for the export that they were asked for', async () => {
    const { wire } = await connected([STRUCTURED, option(10, text(''), u32(1), text('base:allocation'))]);
    assert.deepEqual(wire.endpoint.transmission?.agreement.contexts, []);
    const other = await connected([STRUCTURED, CONTEXTS]);
    assert.deepEqual(other.wire.endpoint.transmission?.agreement.contexts, [1, 2]);
  });
});

describe('transmission', () => {
  test('a read that hits is answered in the tick it came in, all of a tick in one batch', async () => {
    const { wire } = await connected();
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
    const { wire } = await connected([STRUCTURED]);
    wire.endpoint.receive(request({ type: 0, offset: 3, length }));
    assert.deepEqual(await wire.settle(), chunk(1, Buffer.concat([u64(3), pattern(3, length)])));
    const other = await connected([EXTENDED]);
    other.wire.endpoint.receive(extendedRequest({ type: 0, offset: 3, length }));
    assert.deepEqual(
      await other.wire.settle(),
      extendedChunk(1, Buffer.concat([u64(3), pattern(3, length)]), { offset: 3 }),
    );
  });

  test('a read that has to wait is answered when it can be, and others pass it', async () => {
    const { wire, spy } = await connected();
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
      const { wire, spy } = await connected();
      const bytes = request({ type: 1, flags: 1, offset: 11, payload: pattern(99, 600_000) });
      for (let at = 0; at < bytes.length; at += step) wire.endpoint.receive(bytes.subarray(at, at + step));
      assert.deepEqual(await wire.settle(), simpleReply());
      assert.deepEqual(spy.log, ['write 11 600000', 'flush']);
      wire.endpoint.receive(request({ type: 0, offset: 11, length: 600_000 }));
      assert.deepEqual((await wire.settle()).subarray(16), pattern(99, 600_000));
    }
  });

  test('zeroes, trims and flushes reach the image with their flags', async () => {
    const { wire, spy } = await connected();
    wire.endpoint.receive(request({ type: 6, offset: 4096, length: 4096, cookie: 1 }));
    wire.endpoint.receive(request({ type: 6, flags: 2, offset: 8192, length: 4096, cookie: 2 }));
    wire.endpoint.receive(request({ type: 4, offset: 0, length: 4096, cookie: 3 }));
    wire.endpoint.receive(request({ type: 3, cookie: 4 }));
    const replies = await wire.settle();
    assert.equal(replies.length, 64);
    assert.deepEqual(spy.log, ['unmap 4096 4096', 'zero 8192 4096', 'discard 0 4096', 'flush']);
  });

  test('ranges past the end, unknown commands and flags are errors, and the stream goes on', async () => {
    const { wire } = await connected();
    const wrong = [
      request({ type: 0, offset: SIZE - 1, length: 2 }),
      request({ type: 0, offset: 2n ** 64n - 1n, length: 2 }),
      request({ type: 1, offset: SIZE, payload: Buffer.alloc(100) }),
      request({ type: 6, offset: SIZE, length: 1 }),
      request({ type: 4, offset: 2n ** 63n, length: 0xffffffff }),
      request({ type: 7, offset: 0, length: 10 }),
      request({ type: 99, length: 1 }),
      request({ type: 0, flags: 0x8000, length: 1 }),
    ];
    for (const bytes of wrong) {
      wire.endpoint.receive(bytes);
      assert.deepEqual(await wire.settle(), simpleReply(7, 22));
    }
    wire.endpoint.receive(request({ type: 0, length: 40_000_000 }));
    assert.deepEqual(await wire.settle(), simpleReply(7, 75));
    wire.endpoint.receive(request({ type: 0, offset: 5, length: 5 }));
    assert.deepEqual(await wire.settle(), Buffer.concat([simpleReply(), pattern(5, 5)]));
  });

  test('a failing image is an error reply with its errno, without paths in it', async () => {
    const { wire, spy } = await connected([STRUCTURED]);
    spy.failures.set('readv', Object.assign(new Error('no space on /home/guest/x'), { code: 'ENOSPC' }));
    wire.endpoint.receive(request({ type: 0, length: 10 }));
    const reply = await wire.settle();
    assert.equal(reply.readUInt16BE(6), 0x8001);
    assert.equal(reply.readUInt32BE(20), 28);
    assert.ok(!reply.includes('guest'));
  });

  test('a read-only export refuses every change', async () => {
    const { wire, spy } = await connected([], { readOnly: true });
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
    const { wire } = await connected([STRUCTURED, CONTEXTS]);
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
    const { wire } = await connected([EXTENDED, CONTEXTS]);
    wire.endpoint.receive(extendedRequest({ type: 7, length: SIZE }));
    const payload = (id: number, flags: number) => Buffer.concat([u32(id), u32(1), u64(SIZE), u64(flags)]);
    assert.equal((await wire.settle()).subarray(32, 32 + 24).compare(payload(1, 0)), 0);
    wire.endpoint.receive(extendedRequest({ type: 6, length: 2 ** 40 }));
    assert.equal((await wire.settle()).readUInt32BE(32), 22);
    wire.endpoint.receive(extendedRequest({ type: 1, flags: 0x20, offset: 9, payload: pattern(1, 9) }));
    assert.deepEqual(await wire.settle(), extendedChunk(0, Buffer.alloc(0), { offset: 9 }));
  });

  test('a client that takes nothing is not read from, and costs no more than its limits', async () => {
    const { wire } = await connected([], { limits: { outputLimit: 1 << 20, connectionMemory: 2 << 20 } });
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

  test('DISC closes once what is under way is answered', async () => {
    const { wire, spy } = await connected();
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
    const { wire } = await connected();
    wire.endpoint.receive(request({ type: 1, length: 0xffffffff }));
    assert.match(wire.reason, /a write of 4294967295 bytes/);
  });

  test('a client that stops inside a request is dropped, an idle one only when that is wanted', async () => {
    const { wire } = await connected();
    wire.endpoint.tick(0);
    wire.endpoint.tick(1e9);
    assert.equal(wire.closed, undefined);
    wire.endpoint.receive(request({ type: 0 }).subarray(0, 5));
    wire.endpoint.tick(1e9 + 1);
    wire.endpoint.tick(1e9 + 61_000);
    assert.match(wire.reason, /stopped inside a request/);
    const idle = await connected([], { limits: { idleTimeoutMs: 5000 } });
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
