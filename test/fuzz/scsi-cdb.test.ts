/** Random CDBs with random data against a device: whatever comes, every command ends, and what is refused changes nothing. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { ScsiDevice } from '../../src/scsi/device.ts';
import { COMMANDS } from '../../src/scsi/opcodes.ts';
import { parseSense } from '../../src/scsi/sense.ts';
import type { Nexus } from '../../src/scsi/task.ts';
import type { Random } from '../support/random.ts';
import { randomFor } from '../support/random.ts';
import { makeNexus, makeTask, memoryImage } from '../support/scsi.ts';

const COUNT = 20_000;
const SIZE = 64 * 1024;
const STATUSES = [0x00, 0x02, 0x18, 0x28, 0x40];

/** Mostly CDBs that mean something: a known opcode, fields that are often small or at a limit. */
function randomCdb(random: Random): Uint8Array {
  const cdb = random.bytes(16);
  if (random.chance(0.9)) {
    const command = random.pick(COMMANDS);
    cdb[0] = command.opcode;
    const length = command.usage.length;
    for (let i = 1; i < 16; i++) if (i >= length || random.chance(0.7)) cdb[i] = 0;
    if (command.serviceAction >= 0) cdb[1] = ((cdb[1] as number) & 0xe0) | command.serviceAction;
    else if (random.chance(0.5)) cdb[1] = 0;
    if (command.lengthSize > 0 && random.chance(0.8)) {
      cdb.fill(0, command.lengthAt, command.lengthAt + command.lengthSize);
      cdb[command.lengthAt + command.lengthSize - 1] = random.pick([0, 1, 2, 4, 8, 12, 24, 40, 128, 255]);
    }
    if (random.chance(0.9)) cdb[length - 1] = 0;
  }
  // Sanitizing and copying everything is fine, but not all the time.
  if (cdb[0] === 0x48 && random.chance(0.95)) cdb[2] = 1;
  return cdb;
}

/** Parameter lists: random bytes with lengths that often fit. */
function randomOut(random: Random, length: number): Uint8Array {
  const bytes = random.bytes(length);
  if (random.chance(0.5)) bytes.fill(0);
  if (length >= 8 && random.chance(0.5)) {
    bytes[2] = 0;
    bytes[3] = random.pick([0, 8, 16, 32, 64]);
    for (let at = 8; at < length; at++) if (random.chance(0.7)) bytes[at] = 0;
  }
  return bytes;
}

test(`${COUNT} random commands end with a valid status, and those that are refused change nothing`, async (t) => {
  const random = randomFor(t);
  const device = new ScsiDevice({ name: 'iqn.2026-11.lunette.host:fuzz' });
  const images = [
    memoryImage({ size: SIZE }),
    memoryImage({ size: SIZE, clusterSize: 4096 }),
    memoryImage({ size: SIZE + 300 }),
  ];
  const [first, second, third] = images as [ChainImage, ChainImage, ChainImage];
  const addUnits = (): void => {
    device.addUnit(0, { image: first, identity: 'a' });
    device.addUnit(1, { image: second, identity: 'b', removable: true, blockSize: 4096 });
    device.addUnit(2, { image: third, identity: 'c', readOnly: true });
  };
  addUnits();
  const nexuses: Nexus[] = [makeNexus(), makeNexus('iqn.2026-11.example:b')];
  for (const nexus of nexuses) device.attach(nexus);

  const contents = async (): Promise<Buffer> => {
    const bytes = Buffer.alloc(images.reduce((sum, image) => sum + image.size, 0));
    let at = 0;
    for (const image of images) {
      await image.readv(0, IoVec.of(bytes, at, image.size));
      at += image.size;
    }
    return bytes;
  };
  const writers = new Set(COMMANDS.filter(({ modifies }) => modifies).map(({ opcode }) => opcode)).add(0x83);
  let before = await contents();
  const seen = new Map<string, number>();

  for (let i = 0; i < COUNT; i++) {
    const nexus = random.pick(nexuses);
    const cdb = randomCdb(random);
    const task = makeTask(nexus, cdb, {
      lun: random.pick([0, 0, 1, 1, 2, 3]),
      attribute: random.pick([0, 0, 0, 0, 1, 2, 4]),
    });
    const what = `command ${i}: LUN ${task.lun}, CDB ${Buffer.from(cdb).toString('hex')}`;
    device.plan(task);
    assert.ok(task.dataInLength <= 32 * 1024 * 1024 && task.dataOutLength <= 32 * 1024 * 1024, what);
    const longest = Math.max(task.dataInLength, task.dataOutLength);
    task.expectedLength = random.chance(0.8) ? longest : random.below(longest + 600);
    const out = Math.min(task.expectedLength, task.dataOutLength, SIZE);
    if (out > 0) task.dataOut.append(randomOut(random, out));
    const room = Math.min(task.expectedLength, task.dataInLength, SIZE);
    if (room > 0) task.dataIn.append(new Uint8Array(room));

    await device.execute(task);

    assert.ok(STATUSES.includes(task.status), `${what}: status ${task.status}`);
    assert.ok(task.dataInUsed <= task.dataIn.byteLength, what);
    assert.ok(task.transferLength >= 0 && Number.isSafeInteger(task.transferLength), what);
    const sense = parseSense(task.sense.subarray(0, task.senseLength));
    assert.equal(sense !== undefined, task.status === 2, what);
    // INTERNAL TARGET FAILURE would be an exception that nobody thought of.
    assert.notEqual(sense, 0x04_44_00, what);
    if (sense !== undefined)
      assert.ok([2, 3, 5, 6, 7, 0x0a, 0x0e].includes(sense >> 16), `${what}: sense ${sense.toString(16)}`);
    const kind = `${task.status} ${sense === undefined ? '' : (sense >> 16).toString(16)}`;
    seen.set(kind, (seen.get(kind) ?? 0) + 1);

    // Comparing everything every time would be slow: refused writers always, the others now and then.
    const mayChange = task.status === 0 && writers.has(cdb[0] as number);
    if (mayChange) before = await contents();
    else if (writers.has(cdb[0] as number) ? i % 8 === 0 : i % 500 === 0)
      assert.ok(before.equals(await contents()), `${what} was refused and changed the image`);

    // Now and then what holds others up goes away, so that not all end the same way.
    if (i % 100 === 0) await device.manage(nexus, random.below(4), random.pick([1, 2, 4, 5, 6]), i);
    if (i % 50 === 0) for (const unit of device.units()) unit.load();
    if (i % 200 === 0) {
      await device.close(); // reservations go with their units
      addUnits();
    }
  }
  t.diagnostic([...seen].map(([kind, count]) => `${kind}: ${count}`).join(', '));
  assert.ok((seen.get('0 ') ?? 0) > COUNT / 20, 'hardly anything succeeds: the commands are too random');
  await device.close();
});

test('tasks of many attributes at once all end', async (t) => {
  const random = randomFor(t);
  const device = new ScsiDevice();
  device.addUnit(0, { image: memoryImage({ size: SIZE, clusterSize: 4096 }), identity: 'a' });
  const nexuses = [makeNexus(), makeNexus('iqn.2026-11.example:b')];
  for (let round = 0; round < 50; round++) {
    const pending = Array.from({ length: 40 }, async (_, tag) => {
      const command = random.pick([0x28, 0x2a, 0x41, 0x8f, 0x00, 0x35]);
      const cdb = new Uint8Array(16);
      cdb[0] = command;
      cdb[5] = command === 0x8f ? 0 : random.below(200);
      cdb[command === 0x8f ? 13 : 8] = 1 + random.below(8);
      const task = makeTask(random.pick(nexuses), cdb, { attribute: random.pick([0, 0, 0, 1, 2]), tag });
      device.plan(task);
      task.expectedLength = Math.max(task.dataInLength, task.dataOutLength);
      if (task.dataOutLength > 0) task.dataOut.append(random.bytes(task.dataOutLength));
      if (task.dataInLength > 0) task.dataIn.append(new Uint8Array(task.dataInLength));
      await device.execute(task);
      return task;
    });
    const managed = random.chance(0.5)
      ? device.manage(random.pick(nexuses), 0, random.pick([1, 2, 4, 5]), random.below(40))
      : Promise.resolve(0);
    for (const task of await Promise.all(pending)) assert.ok(task.aborted || task.status !== 0xff);
    await managed;
    assert.equal(device.unit(0)?.tasks.size, 0);
  }
});
