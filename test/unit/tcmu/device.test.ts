import assert from 'node:assert/strict';
import { readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { ScsiDevice } from '../../../src/scsi/device.ts';
import { parseSense } from '../../../src/scsi/sense.ts';
import type { DeviceServer } from '../../../src/scsi/task.ts';
import type { UnitOptions } from '../../../src/scsi/unit.ts';
import { TcmuDevice, type TcmuDeviceOptions } from '../../../src/tcmu/device.ts';
import { identityBySerial } from '../../../src/tcmu/identity.ts';
import { requireAddon } from '../../support/addon.ts';
import { FakeDeviceServer } from '../../support/fake-device-server.ts';
import { type MockOptions, MockTcmu } from '../../support/mock-tcmu.ts';
import { requiresCompiler } from '../../support/sanitized.ts';
import { blockCdb, cdb, makeNexus, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';
import type { Cleanup } from '../../support/temporary.ts';

const skip = requireAddon() || requiresCompiler();
const NO_READ_LENGTH = 1 | 4 | 8;
const CHECK_CONDITION = 2;

interface Setup {
  readonly kernel: MockTcmu;
  readonly device: TcmuDevice;
  readonly image: SpyImage;
  readonly server: ScsiDevice;
  readonly broken: string[];
}

/** A disk of 1 MiB whose bytes are their block number, served to the mock kernel. */
async function setUp(t: Cleanup, options: MockOptions & { unit?: Partial<UnitOptions> } = {}): Promise<Setup> {
  const kernel = await MockTcmu.start(t, options);
  const server = new ScsiDevice({ ports: [] });
  const image = new SpyImage(memoryImage());
  const content = new Uint8Array(1024 * 1024).map((_, i) => (i >> 9) % 251);
  await image.inner.writev(0, IoVec.of(content));
  const unit = server.addUnit(0, { image, identity: 'test', ...options.unit });
  const broken: string[] = [];
  const device = new TcmuDevice({
    memoryFd: kernel.memoryFd,
    eventFd: kernel.eventFd,
    kickFd: kernel.kickFd,
    regionSize: kernel.regionSize,
    server,
    nexus: makeNexus(),
    refreshNames: async () => {
      unit.identity = identityBySerial('12345678-aaaa-bbbb-cccc-0123456789ab');
    },
    onBroken: (reason) => broken.push(reason),
    onGone: () => broken.push('gone'),
  });
  t.after(() => device.close());
  device.start();
  return { kernel, device, image, server, broken };
}

function openDevice(kernel: MockTcmu, server: DeviceServer, options: Partial<TcmuDeviceOptions> = {}): TcmuDevice {
  const { memoryFd, eventFd, kickFd, regionSize } = kernel;
  return new TcmuDevice({
    ...{ memoryFd, eventFd, kickFd, regionSize },
    server,
    nexus: makeNexus(),
    onBroken: () => undefined,
    onGone: () => undefined,
    ...options,
  });
}

test('a read fills the initiator’s buffer, however it is scattered over the data area', { skip }, async (t) => {
  const { kernel } = await setUp(t);
  const { status, flags, data } = await kernel.in(cdb.read10(3, 40), 40 * 512);
  assert.deepEqual([status, flags, data.length], [0, 0, 40 * 512]);
  for (let block = 0; block < 40; block++)
    assert.ok(data.subarray(block * 512, block * 512 + 512).every((byte) => byte === block + 3));
});

test('a write takes the initiator’s data, and is read back', { skip }, async (t) => {
  const { kernel } = await setUp(t);
  const bytes = Buffer.alloc(24 * 512).map((_, i) => (i * 7) % 256);
  assert.equal((await kernel.out(blockCdb(0x8a, 100, 24), bytes)).status, 0);
  assert.deepEqual((await kernel.in(cdb.read16(100, 24), bytes.length)).data, bytes);
});

for (const [what, flags] of [
  ['says how much there is', 15],
  ['is filled with zeros by us, where the kernel cannot be told', NO_READ_LENGTH],
] as const) {
  test(`data-in that is shorter than the buffer ${what}: nobody’s old data gets out`, { skip }, async (t) => {
    const { kernel } = await setUp(t, { flags });
    const inquiry = await kernel.in(cdb.inquiry(undefined, 36), 512);
    const length = flags === 15 ? 36 : 512;
    assert.deepEqual([inquiry.status, inquiry.readLength, inquiry.data.length], [0, flags === 15 ? 36 : 0, length]);
    assert.ok(inquiry.data.subarray(36).every((byte) => byte === 0));
    // The transfer is shorter than what the initiator expects, over several pages.
    const read = await kernel.in(cdb.read10(0, 3), 5 * 4096);
    assert.ok(read.data.subarray(3 * 512).every((byte) => byte === 0));
    assert.deepEqual([...new Set(read.data.subarray(0, 3 * 512))], [0, 1, 2]);
  });
}

for (const [what, flags] of [
  ['of which the kernel is told', 15],
  ['filled with zeros', NO_READ_LENGTH],
] as const) {
  test(`a write whose initiator says that it reads gets nobody’s old data: a buffer ${what}`, { skip }, async (t) => {
    const { kernel } = await setUp(t, { flags });
    // What the data area holds then.
    await kernel.in(cdb.read10(1, 40), 40 * 512);
    for (const blocks of [8, 3]) {
      const { status, data, readLength } = await kernel.in(blockCdb(0x8a, 100, blocks), 8 * 512);
      assert.equal(status, 0);
      assert.equal(readLength, flags === 15 ? 1 : 0);
      assert.deepEqual(data, Buffer.alloc(flags === 15 ? 1 : 8 * 512));
    }
  });
}

test('a command without data leaves no old data in a buffer that came with it', { skip }, async (t) => {
  const { kernel } = await setUp(t);
  for (const command of [cdb.testUnitReady, cdb.inquiry(undefined, 0), cdb.read10(0, 0)]) {
    const { status, data } = await kernel.in(command, 6000);
    assert.equal(status, 0);
    assert.deepEqual(data, Buffer.alloc(6000));
  }
});

test('an initiator that expects less than the command reads gets the beginning', { skip }, async (t) => {
  const { kernel } = await setUp(t);
  const { status, data } = await kernel.in(cdb.read10(7, 8), 1024);
  assert.equal(status, 0);
  assert.deepEqual(data, Buffer.concat([Buffer.alloc(512, 7), Buffer.alloc(512, 8)]));
});

test('an unknown opcode is an invalid command operation code, with all 96 bytes of sense written', {
  skip,
}, async (t) => {
  const { kernel } = await setUp(t);
  for (const opcode of [0x60, 0xc1, 0xff, 0x02]) {
    const { status, flags, sense } = await kernel.in([opcode, ...new Array(15).fill(0x55)], 512);
    assert.deepEqual([status, flags, parseSense(sense)?.toString(16)], [CHECK_CONDITION, 0, (0x052000).toString(16)]);
    assert.equal(sense.length, 96);
    assert.ok(sense.subarray(18).every((byte) => byte === 0));
  }
});

test('a variable-length CDB comes whole', { skip }, async (t) => {
  const { kernel } = await setUp(t);
  const { status, sense } = await kernel.in([0x7f, 0, 0, 0, 0, 0, 0, 24, 0, 9, ...new Array(22).fill(1)], 512);
  assert.deepEqual([status, parseSense(sense)], [CHECK_CONDITION, 0x052000]);
});

test('an entry that points outside of the data area fails, and the others go on', { skip }, async (t) => {
  const { kernel, device } = await setUp(t);
  const { status, sense } = await kernel.outcome(await kernel.sendMalformed());
  assert.deepEqual([status, parseSense(sense)], [CHECK_CONDITION, 0x044400]);
  assert.equal((await kernel.in(cdb.testUnitReady)).status, 0);
  assert.equal(device.counters.malformed, 1);
});

test('an entry of an opcode that nobody knows, however short, is over at once, and what follows it is served', {
  skip,
}, async (t) => {
  const { kernel, image, device, broken } = await setUp(t);
  for (const length of [8, 16, 104, 200]) {
    const { status, flags } = await kernel.outcome(await kernel.sendUnknown(length));
    assert.deepEqual([status, flags], [CHECK_CONDITION, 1]);
  }
  // Behind a command that takes its time, and before one that does not.
  const open = image.hold();
  const slow = await kernel.sendOut(cdb.write10(0, 1), Buffer.alloc(512, 1));
  const unknown = await kernel.sendUnknown(8);
  assert.equal((await kernel.in(cdb.inquiry(undefined, 36), 36)).status, 0);
  open();
  assert.equal((await kernel.outcome(slow)).status, 0);
  assert.equal((await kernel.outcome(unknown)).flags, 1);
  assert.deepEqual([device.counters.unknown, broken], [5, []]);
});

test('a ring that is found unusable twice in one turn is told of once', { skip }, async (t) => {
  const kernel = await MockTcmu.start(t);
  const server = new ScsiDevice({ ports: [] });
  server.addUnit(0, { image: memoryImage(), identity: 'test' });
  const broken: string[] = [];
  const device = openDevice(kernel, server, { onBroken: (reason) => broken.push(reason) });
  t.after(() => device.close());
  // A command, and behind it an entry that is longer than what was published: both are met by one fetch.
  await kernel.sendIn(cdb.testUnitReady);
  const head = Buffer.alloc(4);
  readSync(kernel.memoryFd, head, 0, 4, 12);
  const at = head.readUInt32LE(0);
  writeSync(kernel.memoryFd, new Uint32Array([4096 | 1]), 0, 4, 128 + at);
  writeSync(kernel.memoryFd, new Uint32Array([at + 16]), 0, 4, 12);
  device.start();
  while (broken.length === 0) await new Promise((resolve) => setImmediate(resolve));
  await device.close();
  assert.deepEqual(broken, ['an entry ends outside of what the kernel has published']);
});

test('a descriptor that cannot be waited for is an error when the device is opened', { skip }, async (t) => {
  const kernel = await MockTcmu.start(t);
  const server = new ScsiDevice({ ports: [] });
  assert.throws(() => openDevice(kernel, server, { eventFd: kernel.memoryFd }), {
    syscall: 'uv_poll_init',
    code: 'EPERM',
  });
});

test('COMPARE AND WRITE gets both halves in one buffer', { skip }, async (t) => {
  const { kernel } = await setUp(t);
  const halves = (expected: number, fresh: number): Buffer =>
    Buffer.concat([Buffer.alloc(512, expected), Buffer.alloc(512, fresh)]);
  assert.equal((await kernel.out(cdb.compareAndWrite(5, 1), halves(5, 0x77))).status, 0);
  const { status, sense } = await kernel.out(cdb.compareAndWrite(5, 1), halves(5, 0x78));
  assert.deepEqual([status, parseSense(sense)], [CHECK_CONDITION, 0x0e1d00]);
  assert.deepEqual((await kernel.in(cdb.read10(5, 1), 512)).data, Buffer.alloc(512, 0x77));
});

test('commands complete in the order in which they are done, not in which they came', { skip }, async (t) => {
  const { kernel, image, device } = await setUp(t);
  const open = image.hold();
  const slow = await kernel.sendOut(cdb.write10(0, 1), Buffer.alloc(512, 1));
  assert.equal((await kernel.in(cdb.testUnitReady)).status, 0);
  assert.equal(device.inFlight, 1);
  open();
  assert.equal((await kernel.outcome(slow)).status, 0);
});

test('what the kernel has given up ends with TASK ABORTED, and the ring goes on', { skip }, async (t) => {
  const { kernel, image, device } = await setUp(t);
  const open = image.hold();
  const id = await kernel.sendIn(cdb.read10(0, 1), 512);
  assert.equal((await kernel.in(cdb.testUnitReady)).status, 0);
  kernel.abort(1, id);
  while (device.counters.taskManagement === 0) await new Promise((resolve) => setImmediate(resolve));
  open();
  const { status, data } = await kernel.outcome(id);
  assert.equal(status, 0x40);
  assert.deepEqual(data, Buffer.alloc(512));
  assert.equal((await kernel.in(cdb.testUnitReady)).status, 0);
});

test('after a reset nothing new is fetched before what was in flight has ended, and none of that is completed', {
  skip,
}, async (t) => {
  const { kernel, image, device } = await setUp(t);
  assert.equal((await kernel.in(cdb.testUnitReady)).status, 0);
  const open = image.hold();
  await kernel.sendOut(cdb.write10(0, 1), Buffer.alloc(512, 1));
  while (device.inFlight === 0) await new Promise((resolve) => setImmediate(resolve));
  await kernel.reset();
  const id = await kernel.sendIn(cdb.testUnitReady);
  while (device.counters.resets === 0) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(device.counters.commands, 2);
  open();
  assert.equal((await kernel.outcome(id)).status, 0);
  assert.equal(device.counters.commands, 3);
  assert.equal(device.inFlight, 0);
});

test('what is written by commands that came before a reset was noticed is asked for again: reads from before may have gone over it', {
  skip,
}, async (t) => {
  const { kernel, image, device } = await setUp(t);
  await kernel.in(cdb.read10(1, 40), 40 * 512); // all that is sent lies where others' data was
  const open = image.hold();
  await kernel.sendIn(cdb.read10(0, 1), 512);
  while (device.inFlight === 0) await new Promise((resolve) => setImmediate(resolve));
  await kernel.reset();
  const write = await kernel.sendOut(cdb.write10(5, 1), Buffer.alloc(512, 1));
  const read = await kernel.sendIn(cdb.read10(0, 1), 512);
  const odd = await kernel.sendIn(cdb.write10(5, 1), 512);
  while (device.counters.resets === 0) await new Promise((resolve) => setImmediate(resolve));
  open();
  assert.equal((await kernel.outcome(write)).status, 8);
  const { status, data } = await kernel.outcome(odd);
  assert.equal(status, 8);
  assert.ok(
    data.every((byte) => byte === 0),
    'a buffer that nobody fills shows nothing of others',
  );
  assert.equal((await kernel.outcome(read)).status, 0);
  // The kernel may have been copying the next one's data when the ring began anew.
  assert.equal((await kernel.out(cdb.write10(5, 1), Buffer.alloc(512, 1))).status, 8);
  assert.equal((await kernel.out(cdb.write10(5, 1), Buffer.alloc(512, 1))).status, 0);
  assert.deepEqual((await kernel.in(cdb.read10(5, 1), 512)).data, Buffer.alloc(512, 1));
});

test('what was fetched before a reset that is noticed while it is begun is not begun, and the ring goes on', {
  skip,
}, async (t) => {
  const kernel = await MockTcmu.start(t);
  const server = new FakeDeviceServer();
  const broken: string[] = [];
  const device = openDevice(kernel, server, { onBroken: (reason) => broken.push(reason) });
  t.after(() => device.close());
  // Sense takes room: outcomes of so many are handed over before all are begun.
  for (let i = 0; i < 200; i++) await kernel.sendIn([0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  server.async = () => {
    if (server.executed.length === 1) {
      writeSync(kernel.memoryFd, new Uint32Array([0]), 0, 4, 64);
      writeSync(kernel.memoryFd, new Uint32Array([0]), 0, 4, 12);
    }
    return false;
  };
  device.start();
  while (server.executed.length === 0) await new Promise((resolve) => setImmediate(resolve));
  assert.ok(server.executed.length < 200, `${server.executed.length} commands were begun`);
  await kernel.reset();
  assert.equal((await kernel.in(cdb.testUnitReady)).status, 0);
  assert.deepEqual([device.counters.resets, broken], [1, []]);
});

test('stop() resolves when what was fetched has completed; what comes later stays in the ring for whoever comes next', {
  skip,
}, async (t) => {
  const { kernel, image, device } = await setUp(t);
  const open = image.hold();
  const id = await kernel.sendOut(cdb.write10(0, 1), Buffer.alloc(512, 1));
  while (device.inFlight === 0) await new Promise((resolve) => setImmediate(resolve));
  const stopped = device.stop();
  await kernel.sendIn(cdb.testUnitReady);
  open();
  await stopped;
  assert.equal((await kernel.outcome(id)).status, 0);
  assert.equal(device.counters.commands, 1);
});

test('the unit is called as LIO has named it since, and shows nothing of the host', { skip }, async (t) => {
  const { kernel } = await setUp(t);
  const { data } = await kernel.in(cdb.inquiry(0x83), 255);
  assert.ok(data.includes(Buffer.from('600140512345678aaaabbbbcccc01234', 'hex')));
  assert.ok(!data.includes('/'));
  const serial = await kernel.in(cdb.inquiry(0x80), 255);
  assert.equal(serial.data.toString('latin1', 4), '12345678-aaaa-bbbb-cccc-0123456789ab');
});

test('VPD page B0h keeps commands to what the data area has room for', { skip }, async (t) => {
  const { kernel } = await setUp(t, { unit: { maxTransfer: 256 * 1024 } });
  const { data } = await kernel.in(cdb.inquiry(0xb0), 64);
  assert.equal(data.readUInt32BE(8), 512);
  assert.equal(data.readUInt32BE(12), 512);
  assert.equal((await kernel.in(cdb.read10(0, 513), 513 * 512)).status, CHECK_CONDITION);
});

test('memory that is no command ring is refused with the reason', { skip }, async (t) => {
  const kernel = await MockTcmu.start(t, { flags: 2 });
  const server = new ScsiDevice({ ports: [] });
  const options = { server, nexus: makeNexus(), onBroken: () => undefined, onGone: () => undefined };
  const { memoryFd, eventFd, kickFd, regionSize } = kernel;
  assert.throws(() => new TcmuDevice({ ...options, memoryFd, eventFd, kickFd, regionSize }), /out of order/);
});
