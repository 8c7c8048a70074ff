import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COMMANDS } from '../../../src/scsi/opcodes.ts';
import { OPTICAL } from '../../../src/scsi/unit.ts';
import { cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const INVALID_FIELD = 0x05_24_00;

test('the table: CDB usage data begins with the opcode, has the length of its group, and lengths lie inside', () => {
  const lengths = [6, 10, 10, undefined, 16, 12];
  for (const command of COMMANDS) {
    assert.equal(command.usage[0], command.opcode, command.name);
    assert.equal(command.usage.length, lengths[command.opcode >> 5], command.name);
    if (command.serviceAction >= 0)
      assert.equal((command.usage[1] as number) & 0x1f, command.serviceAction, command.name);
    for (let i = 0; i < command.lengthSize; i++) assert.equal(command.usage[command.lengthAt + i], 0xff, command.name);
    assert.ok(((command.usage.at(-1) as number) & 4) !== 0, `${command.name}: NACA is evaluated`);
  }
  const ids = COMMANDS.map(({ opcode, serviceAction }) => `${opcode} ${serviceAction}`);
  assert.equal(new Set(ids).size, ids.length);
});

test('all commands are reported, with timeouts descriptors when asked', async () => {
  const { initiator } = await makeBench({ removable: true });
  const commands = COMMANDS.filter((command) => (command.needs & OPTICAL) === 0);
  const plain = Buffer.from(await initiator.good(cdb.opcodes(0)));
  assert.equal(plain.readUInt32BE(0), plain.length - 4);
  assert.equal(plain.length, 4 + commands.length * 8);
  const timed = Buffer.from(await initiator.good(cdb.opcodes(0x80)));
  assert.equal(timed.length, 4 + commands.length * 20);
  commands.forEach((command, index) => {
    const at = 4 + index * 20;
    assert.equal(timed[at], command.opcode);
    assert.equal(timed[at + 5], command.serviceAction >= 0 ? 3 : 2);
    assert.equal(timed.readUInt16BE(at + 2), Math.max(0, command.serviceAction));
    assert.equal(timed.readUInt16BE(at + 6), command.usage.length);
    assert.equal(timed.readUInt16BE(at + 8), 10);
  });
});

test('one command: by opcode, by opcode and service action, by whichever it is', async () => {
  const { initiator } = await makeBench();
  const one = async (options: number, opcode: number, action = 0) => [
    ...(await initiator.good(cdb.opcodes(options, opcode, action))),
  ];
  const readTen = [0, 3, 0, 10, 0x28, 0xf8, 255, 255, 255, 255, 0, 255, 255, 4];
  assert.deepEqual(await one(1, 0x28), readTen);
  assert.deepEqual(await one(3, 0x28), readTen);
  assert.equal((await one(2, 0x9e, 0x10))[5], 0x10);
  assert.equal((await one(3, 0x9e, 0x12))[5], 0x12);
  for (const [options, opcode, action] of [
    [1, 0xff, 0],
    [2, 0x9e, 0x1f],
    [3, 0x9e, 0x1f],
    [3, 0x28, 1],
    [1, 0x1e, 0], // PREVENT ALLOW: not for a fixed disk
  ] as const) {
    assert.deepEqual(await one(options, opcode, action), [0, 1, 0, 0]);
  }
  for (const command of [cdb.opcodes(1, 0x9e), cdb.opcodes(2, 0x28), cdb.opcodes(4), cdb.opcodes(7)])
    await initiator.refused(INVALID_FIELD, command);
  const timed = await one(0x81, 0x28);
  assert.deepEqual([timed[1], timed.length, timed[15]], [0x83, 26, 10]);
});

test('what is reported is what is executed, and nothing else', async () => {
  const { initiator } = await makeBench();
  for (let opcode = 0; opcode < 256; opcode++) {
    const supported = (await initiator.send(cdb.opcodes(1, opcode))).data[1] === 3;
    const withActions = [0x48, 0x5e, 0x5f, 0x83, 0x84, 0x9e, 0xa3].includes(opcode);
    const { sense } = await initiator.send([opcode, 0x1f]);
    assert.equal(sense === 0x05_20_00, !supported && !withActions, `opcode ${opcode.toString(16)}`);
    if (withActions && opcode !== 0x48) assert.equal(sense, INVALID_FIELD);
  }
});

test('task management functions, target port groups and defect lists', async () => {
  const { initiator } = await makeBench();
  const tmf = (flags: number) => initiator.good([0xa3, 0x0d, flags, 0, 0, 0, 0, 0, 0, 255, 0, 0]);
  assert.deepEqual([...(await tmf(0))], [0xda, 0, 0, 0]);
  assert.deepEqual([...(await tmf(0x80))].slice(0, 4), [0xda, 0, 0, 12]);
  const groups = [0, 0, 0, 12, 0x80, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
  assert.deepEqual([...(await initiator.good([0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]))], groups);
  const extended = await initiator.good([0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]);
  assert.deepEqual([...extended], [0, 0, 0, 16, 0x10, 0, 0, 0, ...groups.slice(4)]);
  assert.deepEqual([...(await initiator.good([0x37, 0, 0x1d, 0, 0, 0, 0, 0, 255, 0]))], [0, 0x1d, 0, 0]);
  assert.deepEqual(
    [...(await initiator.good([0xb7, 0x0d, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]))],
    [0, 0x0d, 0, 0, 0, 0, 0, 0],
  );
});

test('SYNCHRONIZE CACHE flushes; with IMMED a failure follows as a deferred error', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  for (const command of [
    [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0x91, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0],
  ])
    await initiator.good(command);
  assert.deepEqual(image.log, ['flush', 'flush']);
  await initiator.refused(0x05_21_00, [0x35, 0, 0, 0, 0x08, 0, 0, 0, 1, 0]);
  image.failures.set('flush', new Error('x'));
  await initiator.refused(0x04_44_00, [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  await initiator.good([0x35, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
  await new Promise((resolve) => setImmediate(resolve));
  const { senseBytes } = await initiator.refused(0x04_44_00, cdb.testUnitReady);
  assert.equal(senseBytes[0], 0x71);
});

test('PRE-FETCH reads ahead, also to the end, and keeps failures to itself with IMMED', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  await initiator.good([0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  await initiator.good([0x90, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0]);
  await initiator.refused(0x05_21_00, [0x34, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0]);
  image.failures.set('readv', new Error('x'));
  await initiator.refused(0x04_44_00, [0x34, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
  await initiator.good([0x34, 2, 0, 0, 0, 0, 0, 0, 1, 0]);
  await new Promise((resolve) => setImmediate(resolve));
  await initiator.good(cdb.testUnitReady);
});
