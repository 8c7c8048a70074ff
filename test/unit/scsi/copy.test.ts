import assert from 'node:assert/strict';
import { test } from 'node:test';
import { another, blockCdb, cdb, type Initiator, makeBench, memoryImage, type Outcome } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const COPY_ABORTED = 0x0a_00_00;

interface Segment {
  source?: number;
  target?: number;
  blocks: number;
  from: number;
  to: number;
  flags?: number;
  type?: number;
}

function targetDescriptor(naa: Uint8Array, type = 0xe4): Buffer {
  const bytes = Buffer.alloc(32);
  bytes[0] = type;
  bytes[4] = 1;
  bytes[5] = 3;
  bytes[7] = naa.length;
  bytes.set(naa, 8);
  return bytes;
}

function parameterList(targets: Buffer[], segments: Segment[], listId = 1): Buffer {
  const described = segments.map(({ source = 0, target = 0, blocks, from, to, flags = 0, type = 2 }) => {
    const bytes = Buffer.alloc(28);
    bytes[0] = type;
    bytes[1] = flags;
    bytes.writeUInt16BE(24, 2);
    bytes.writeUInt16BE(source, 4);
    bytes.writeUInt16BE(target, 6);
    bytes.writeUInt16BE(blocks, 10);
    bytes.writeBigUInt64BE(BigInt(from), 12);
    bytes.writeBigUInt64BE(BigInt(to), 20);
    return bytes;
  });
  const header = Buffer.alloc(16);
  header[0] = listId;
  header.writeUInt16BE(targets.length * 32, 2);
  header.writeUInt32BE(described.length * 28, 8);
  return Buffer.concat([header, ...targets, ...described]);
}

function copy(initiator: Initiator, list: Buffer, lun = 0): Promise<Outcome> {
  const command = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, list.length >> 8, list.length & 255, 0, 0];
  return initiator.send(command, { out: list, lun });
}

async function twoUnits() {
  const bench = await makeBench({ image: memoryImage({ size: 8 * 1024 * 1024 }) });
  const second = new SpyImage(memoryImage({ size: 8 * 1024 * 1024 }));
  bench.device.addUnit(1, { image: second, identity: 'second' });
  await bench.initiator.clearAttentions();
  await bench.initiator.clearAttentions(1);
  const naa = (lun: number) => bench.device.unit(lun)?.identity.naa as Uint8Array;
  const targets = [targetDescriptor(naa(0)), targetDescriptor(naa(1))];
  const data = new Uint8Array(6000 * 512).map((_, i) => i >> 9);
  await bench.initiator.good(blockCdb(0x8a, 0, 6000), { out: data });
  return { ...bench, targets, data, second };
}

test('blocks are copied from unit to unit, segment by segment', async () => {
  const { initiator, targets, data } = await twoUnits();
  const segments = [
    { source: 0, target: 1, blocks: 5000, from: 100, to: 7 },
    { source: 1, target: 1, blocks: 3, from: 7, to: 9000 },
  ];
  assert.equal((await copy(initiator, parameterList(targets, segments))).status, 0);
  const copied = await initiator.good(blockCdb(0x88, 7, 5000), { lun: 1 });
  assert.equal(Buffer.compare(copied, data.subarray(100 * 512, 5100 * 512)), 0);
  const again = await initiator.good(blockCdb(0x88, 9000, 3), { lun: 1 });
  assert.deepEqual(again, copied.subarray(0, 3 * 512));
});

test('FFFFh names the unit that gets the command', async () => {
  const { initiator, data } = await twoUnits();
  const segment = { source: 0xffff, target: 0xffff, blocks: 2, from: 5, to: 10_000 };
  assert.equal((await copy(initiator, parameterList([], [segment]))).status, 0);
  assert.deepEqual(await initiator.good(blockCdb(0x88, 10_000, 2)), data.slice(5 * 512, 7 * 512));
});

test('status of a copy is kept by list id, for the nexus that asked', async () => {
  const { device, initiator, targets } = await twoUnits();
  const other = await another(device);
  await copy(initiator, parameterList(targets, [{ target: 1, blocks: 4, from: 0, to: 0 }], 0x42));
  const status = (listId: number) => [0x84, 0, listId, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
  assert.deepEqual([...(await initiator.good(status(0x42)))], [0, 0, 0, 8, 1, 0, 1, 0, 0, 0, 8, 0]);
  await initiator.refused(0x05_24_00, status(0x43));
  await other.refused(0x05_24_00, status(0x42));
});

test('status of a copy is forgotten after half a minute', async (t) => {
  const { initiator, targets } = await twoUnits();
  let now = 1000;
  t.mock.method(performance, 'now', () => now);
  await copy(initiator, parameterList(targets, [{ target: 1, blocks: 4, from: 0, to: 0 }], 0x42));
  const status = [0x84, 0, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
  now += 30_000;
  assert.equal((await initiator.good(status))[4], 1);
  now += 1;
  await initiator.refused(0x05_24_00, status);
});

test('operating parameters say what is taken', async () => {
  const { initiator } = await makeBench();
  const data = Buffer.from(await initiator.good([0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]));
  assert.equal(data.readUInt32BE(0), data.length - 4);
  assert.deepEqual([data.readUInt16BE(8), data.readUInt16BE(10), data.readUInt32BE(12)], [8, 64, 4096]);
  assert.deepEqual([data[43], data[44], data[45]], [2, 0x02, 0xe4]);
});

test('a list is judged as a whole before anything is copied', async () => {
  const { initiator, targets, second } = await twoUnits();
  const fine = { target: 1, blocks: 1, from: 0, to: 0 };
  const many = <T>(count: number, item: T): T[] => Array.from({ length: count }, () => item);
  const cases: [string, number, Buffer][] = [
    ['unknown segment', 0x05_26_09, parameterList(targets, [fine, { ...fine, type: 0x0a }])],
    ['unknown target', 0x05_26_07, parameterList([...targets, targetDescriptor(new Uint8Array(8), 0xe0)], [fine])],
    [
      'a unit of another target',
      0x0a_0d_02,
      parameterList([targetDescriptor(new Uint8Array(8))], [{ ...fine, target: 0 }]),
    ],
    ['no such descriptor', COPY_ABORTED, parameterList(targets, [fine, { ...fine, source: 2 }])],
    ['beyond the source', COPY_ABORTED, parameterList(targets, [fine, { ...fine, from: 16384 }])],
    ['beyond the target', COPY_ABORTED, parameterList(targets, [fine, { ...fine, to: 16383, blocks: 2 }])],
    ['too many targets', 0x05_26_06, parameterList(many(9, targets[0] as Buffer), [fine])],
    ['too many segments', 0x05_26_08, parameterList(targets, many(65, fine))],
  ];
  const inline = parameterList(targets, [fine]);
  inline[15] = 1;
  cases.push(['inline data', 0x05_26_0b, inline]);
  const cut = parameterList(targets, [fine]).subarray(0, 90);
  cases.push(['a cut list', 0x05_1a_00, cut]);
  for (const [what, sense, list] of cases) {
    const outcome = await copy(initiator, list);
    assert.equal(outcome.sense?.toString(16), sense.toString(16), what);
  }
  assert.deepEqual(second.log, []);
  assert.equal((await copy(initiator, Buffer.alloc(0))).status, 0);
});

test('a unit that is write protected or reserved by another nexus is not copied to', async () => {
  const { device, initiator, targets } = await twoUnits();
  const list = parameterList(targets, [{ target: 1, blocks: 1, from: 0, to: 0 }]);
  const other = await another(device);
  await other.clearAttentions(1);
  await other.good(cdb.reserve6, { lun: 1 });
  assert.equal((await copy(initiator, list)).sense, 0x0a_0d_01);
  await other.good(cdb.release6, { lun: 1 });
  await device.removeUnit(1);
  device.addUnit(1, { image: memoryImage(), identity: 'second', readOnly: true });
  await initiator.clearAttentions();
  assert.equal((await copy(initiator, list)).sense, 0x07_27_00);
});

test('a copy that fails under way says how far it got', async () => {
  const { LunetteError } = await import('../../../formats/core/errors.ts');
  const { initiator, targets, second } = await twoUnits();
  const segments = [
    { source: 0, target: 0, blocks: 4, from: 0, to: 10_000 },
    { source: 0, target: 1, blocks: 4, from: 0, to: 0 },
  ];
  second.failures.set('writev', new LunetteError('NO_SPACE', 'full'));
  assert.equal((await copy(initiator, parameterList(targets, segments, 5))).sense, 0x07_27_07);
  const status = await initiator.good([0x84, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]);
  assert.deepEqual([...status].slice(4), [2, 0, 1, 0, 0, 0, 8, 0]);
});
