import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  CONTEXTS,
  clientFlags,
  connected,
  ENDPOINT_DISK_SIZE,
  EXTENDED,
  exportOf,
  go,
  MemoryEndpoint,
  option,
  pattern,
  patternDisk,
  request,
  STRUCTURED,
  text,
  u32,
  u64,
} from '../../support/nbd-endpoint.ts';

const SIZE = ENDPOINT_DISK_SIZE;

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

  test('what is over after the negotiation is given back: exports that were looked at and not chosen, all of them at the end', async () => {
    const [one, two] = [exportOf(patternDisk(SIZE)), { ...exportOf(patternDisk(SIZE)), name: 'two' }];
    const wire = new MemoryEndpoint([one, two]);
    for (const bytes of [clientFlags, option(6, text('two'), Buffer.from([0, 0])), go()]) wire.endpoint.receive(bytes);
    assert.deepEqual([wire.left, wire.endpoint.holds(one), wire.endpoint.holds(two)], [[two], true, false]);
    wire.endpoint.close('the test is over');
    assert.deepEqual([wire.left, wire.endpoint.holds(one)], [[two, one], false]);
  });

  test('a client that does not say that it speaks fixed newstyle gets no TLS', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))], { tls: 'optional' });
    wire.take();
    for (const bytes of [u32(0), option(5)]) wire.endpoint.receive(bytes);
    assert.equal(wire.take().readUInt32BE(12), 0x80000002);
  });

  test('client flags that nobody offered end the connection', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
    wire.endpoint.receive(u32(7));
    assert.match(wire.reason, /unknown client flags 0x7/);
  });

  test('TLS that is not set up, asked for twice or with data is refused', async () => {
    const none = new MemoryEndpoint([]);
    const secure = new MemoryEndpoint([], { tls: 'optional' });
    const answer = (wire: MemoryEndpoint, bytes: Uint8Array): number => {
      wire.take();
      wire.endpoint.receive(bytes);
      return wire.take().readUInt32BE(12);
    };
    for (const wire of [none, secure]) wire.endpoint.receive(clientFlags);
    assert.equal(answer(none, option(5)), 0x80000002);
    assert.equal(answer(secure, option(5, Buffer.from('x'))), 0x80000003);
    assert.equal(answer(secure, option(5)), 1);
    secure.endpoint.encrypted();
    assert.equal(answer(secure, option(5)), 0x80000003);
  });

  test('replies are structured, then extended, and not back; contexts need structured ones and are named', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
    wire.endpoint.receive(clientFlags);
    const answer = (bytes: Uint8Array): Buffer => {
      wire.take();
      wire.endpoint.receive(bytes);
      return wire.take();
    };
    const type = (bytes: Uint8Array): number => answer(bytes).readUInt32BE(12);
    assert.equal(type(CONTEXTS), 0x80000003);
    assert.equal(type(STRUCTURED), 1);
    assert.equal(type(STRUCTURED), 0x80000003);
    // An empty list of queries lists all, and sets none; what does not exist is nobody's fault.
    const names = (bytes: Buffer): string[] => [...bytes.toString('latin1').matchAll(/[a-z]+:[a-z-]+/g)].map(String);
    assert.deepEqual(names(answer(option(9, text('disk'), u32(0)))), ['base:allocation', 'qemu:allocation-depth']);
    assert.deepEqual(names(answer(option(9, text('disk'), u32(1), text('base:')))), ['base:allocation']);
    assert.deepEqual(names(answer(option(10, text('disk'), u32(0)))), []);
    assert.equal(type(option(10, text('disk'), u32(1), text('x-none:y'))), 1);
    assert.equal(type(option(10, text('other'), u32(1), text('base:allocation'))), 0x80000006);
    assert.equal(type(EXTENDED), 1);
    assert.equal(type(STRUCTURED), 0x8000000a);
    assert.equal(type(EXTENDED), 0x80000003);
    assert.equal(type(option(8, Buffer.from('x'))), 0x80000003);
  });

  test('a failed SET leaves no contexts of an earlier one', async () => {
    const { wire } = connected([STRUCTURED, CONTEXTS, option(10, text('disk'), u32(9))]);
    assert.deepEqual(wire.endpoint.transmission?.agreement.contexts, []);
  });

  test('INFO gives what was asked for: name and description; its message for a long name is valid UTF-8 of a lawful length', async () => {
    const wire = new MemoryEndpoint([exportOf(patternDisk(SIZE))]);
    wire.endpoint.receive(clientFlags);
    wire.take();
    wire.endpoint.receive(option(6, text(''), Buffer.from([0, 2, 0, 1, 0, 2])));
    const info = wire.take().toString('latin1');
    assert.ok(info.includes('\0\x01disk') && info.includes('\0\x02a disk'));
    wire.endpoint.receive(option(6, text('ü'.repeat(2048)), Buffer.from([0, 0])));
    const refusal = wire.take();
    assert.equal(refusal.readUInt32BE(12), 0x80000006);
    assert.ok(refusal.length - 20 <= 4096);
    assert.doesNotMatch(refusal.toString('utf8', 20), /\ufffd/);
  });

  test('ABORT is acknowledged and ends the connection, also where TLS is required', async () => {
    const wire = new MemoryEndpoint([], { tls: 'required' });
    wire.endpoint.receive(clientFlags);
    wire.take();
    wire.endpoint.receive(option(2));
    assert.equal(wire.take().readUInt32BE(12), 1);
    assert.match(wire.reason, /the client has ended the negotiation/);
  });

  test('contexts are for the export that they were asked for', async () => {
    const { wire } = connected([STRUCTURED, option(10, text(''), u32(1), text('base:allocation'))]);
    assert.deepEqual(wire.endpoint.transmission?.agreement.contexts, []);
    const other = connected([STRUCTURED, CONTEXTS]);
    assert.deepEqual(other.wire.endpoint.transmission?.agreement.contexts, [1, 2]);
  });
});
