import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ScsiDevice } from '../../../src/scsi/device.ts';
import { another, cdb, Initiator, makeBench, makeNexus, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const NO_UNIT = 0x05_25_00;

test('a LUN without a unit says so to INQUIRY, and refuses the rest', async () => {
  const { initiator } = await makeBench();
  const data = await initiator.good(cdb.inquiry(), { lun: 7 });
  assert.deepEqual([data[0], data.length], [0x7f, 36]);
  assert.deepEqual([...(await initiator.good(cdb.inquiry(0), { lun: 7 }))], [0x7f, 0, 0, 1, 0]);
  await initiator.refused(0x05_24_00, cdb.inquiry(0x83), { lun: 7 });
  const sense = await initiator.good(cdb.requestSense(), { lun: 7 });
  assert.deepEqual([sense[2], sense[12]], [5, 0x25]);
  for (const command of [cdb.testUnitReady, cdb.read10(0, 1), cdb.readCapacity10(), cdb.prIn(0)])
    await initiator.refused(NO_UNIT, command, { lun: 7 });
  await initiator.refused(NO_UNIT, cdb.write10(0, 1), { lun: 7, out: new Uint8Array(512) });
});

test('REPORT LUNS lists the units in either addressing, from any LUN', async () => {
  const { device, initiator } = await makeBench();
  for (const lun of [1, 255, 256, 16383]) device.addUnit(lun, { image: memoryImage(), identity: `unit ${lun}` });
  for (const lun of [0, 9]) {
    const data = Buffer.from(await initiator.good(cdb.reportLuns(), { lun }));
    assert.equal(data.readUInt32BE(0), data.length - 8);
    const luns = Array.from({ length: 5 }, (_, i) => data.toString('hex', 8 + i * 8, 10 + i * 8));
    assert.deepEqual(luns, ['0000', '0001', '00ff', '4100', '7fff']);
  }
  assert.equal((await initiator.good(cdb.reportLuns(1))).length, 8);
  assert.equal((await initiator.good(cdb.reportLuns(2))).length, 48);
  assert.equal((await initiator.good(cdb.reportLuns(0, 16))).length, 16);
  await initiator.refused(0x05_24_00, cdb.reportLuns(0x10));
  for (const lun of [-1, 16384, 1.5, 0])
    assert.throws(() => device.addUnit(lun, { image: memoryImage(), identity: '' }), RangeError);
});

test('adding and removing units is told on the others until REPORT LUNS', async () => {
  const { device, initiator } = await makeBench();
  device.addUnit(1, { image: memoryImage(), identity: 'second' });
  await initiator.refused(0x06_3f_0e, cdb.testUnitReady);
  assert.deepEqual(await initiator.clearAttentions(1), [0x06_29_00]);
  assert.equal(await device.removeUnit(1), true);
  assert.equal(await device.removeUnit(1), false);
  await initiator.good(cdb.reportLuns());
  await initiator.good(cdb.testUnitReady);
  await initiator.refused(NO_UNIT, cdb.testUnitReady, { lun: 1 });
});

test('a unit that is removed ends its tasks first, and leaves the image open', async () => {
  const image = new SpyImage(memoryImage());
  const { device, initiator } = await makeBench({ image });
  const open = image.hold();
  const pending = initiator.send(cdb.read10(0, 1));
  const removed = device.removeUnit(0);
  open();
  assert.equal((await pending).aborted, true);
  await removed;
  await image.flush();
});

test('a new nexus hears of POWER ON once, on every unit; INQUIRY, REPORT LUNS and REQUEST SENSE pass it', async () => {
  const { device } = await makeBench();
  device.addUnit(1, { image: memoryImage(), identity: 'second' });
  const nexus = new Initiator(device, makeNexus('iqn.2026-11.example:new'));
  for (const lun of [0, 1]) {
    await nexus.good(cdb.inquiry(), { lun });
    await nexus.good(cdb.reportLuns(), { lun });
    await nexus.refused(0x06_29_00, [0xc1], { lun }); // before anything else is judged
    await nexus.good(cdb.testUnitReady, { lun });
  }
});

test('resets: to all units for a target, told to every nexus as what they are', async () => {
  const { device, initiator } = await makeBench();
  device.addUnit(1, { image: memoryImage(), identity: 'second' });
  const other = await another(device);
  await other.clearAttentions(1);
  for (const [action, units, sense] of [
    [5, [1], 0x06_29_03],
    [6, [0, 1], 0x06_29_03],
    [7, [0, 1], 0x06_29_01],
  ] as const) {
    await initiator.clearAttentions(0);
    await initiator.clearAttentions(1);
    assert.equal(await device.manage(other.nexus, 1, action), 0);
    for (const lun of [0, 1]) {
      const expected = (units as readonly number[]).includes(lun) ? [sense] : [];
      assert.deepEqual(await initiator.clearAttentions(lun), expected);
      assert.deepEqual(await other.clearAttentions(lun), expected);
    }
  }
  assert.equal(await device.manage(initiator.nexus, 5, 5), 2); // no such LUN
  assert.equal(await device.manage(initiator.nexus, 0, 3), 5); // CLEAR ACA
});

test('a reset replaces what was pending; a nexus that never asks does not gather without bound', async () => {
  const { device, initiator } = await makeBench();
  const unit = device.unit(0);
  for (let i = 0; i < 100; i++) unit?.attentions.raise(initiator.nexus, 0x06_2a_00 + i);
  assert.ok((unit?.attentions.pending ?? 99) <= 8);
  await device.manage(initiator.nexus, 0, 5);
  assert.deepEqual(await initiator.clearAttentions(), [0x06_29_03]);
  assert.equal(unit?.attentions.pending, 0);
});

test('a detached nexus is forgotten: nothing is kept for it', async () => {
  const { device, initiator } = await makeBench();
  const unit = device.unit(0);
  for (let i = 0; i < 50; i++) {
    const nexus = makeNexus(`iqn.2026-11.example:${i}`);
    device.attach(nexus);
    await device.detach(nexus);
  }
  assert.equal(unit?.attentions.pending, 0);
  assert.deepEqual(
    [...(unit?.attentions.states() ?? [])].map(({ nexus }) => nexus.id),
    [initiator.nexus.id],
  );
});

test('the observer sees every command with its bytes, status and time', async () => {
  const seen: number[][] = [];
  const image = new SpyImage(memoryImage());
  const observer = (...values: number[]) => seen.push(values);
  const { initiator } = await makeBench({ image, observer });
  seen.length = 0;
  await initiator.good(cdb.write10(0, 2), { out: new Uint8Array(1024) });
  await initiator.good(cdb.read10(0, 1));
  await initiator.refused(0x05_21_00, cdb.read10(9999, 1));
  const open = image.hold();
  const slow = initiator.good(cdb.read10(0, 1));
  open();
  await slow;
  assert.deepEqual(
    seen.map((values) => values.slice(0, 4)),
    [
      [0x2a, 0, 0, 1024],
      [0x28, 0, 512, 0],
      [0x28, 2, 0, 0],
      [0x28, 0, 512, 0],
    ],
  );
  assert.ok(seen.every(([, , , , ms]) => (ms as number) >= 0 && (ms as number) < 1000));
});

test('closing a device ends all units', async () => {
  const device = new ScsiDevice();
  const image = memoryImage();
  device.addUnit(3, { image, identity: 'x' });
  await device.close();
  assert.deepEqual(device.luns(), []);
  assert.equal(image.size, 1024 * 1024);
});
