import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LunetteError } from '../../../formats/core/errors.ts';
import { another, cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const NO_MEDIUM = 0x02_3a_00;
const PREVENTED = 0x05_53_02;
const EJECT = 0x02;
const LOAD = 0x03;

test('an ejected medium is not present for whatever needs it; what does not need it still works', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ removable: true, image });
  await initiator.good(cdb.startStop(EJECT));
  assert.deepEqual(image.log, ['flush']);
  for (const command of [
    cdb.testUnitReady,
    cdb.read10(0, 1),
    cdb.readCapacity10(),
    cdb.readCapacity16(),
    cdb.getLbaStatus(0),
  ]) {
    await initiator.refused(NO_MEDIUM, command);
  }
  await initiator.refused(NO_MEDIUM, cdb.write10(0, 1), { out: new Uint8Array(512) });
  for (const command of [cdb.inquiry(), cdb.requestSense(), cdb.reportLuns(), cdb.prIn(0), cdb.startStop(EJECT)])
    await initiator.good(command);
  const mode = await initiator.good(cdb.modeSense6(0x08));
  assert.deepEqual([...mode.subarray(4, 8)], [0, 0, 0, 0]); // no blocks
});

test('loading tells the other nexuses that the medium may have changed', async () => {
  const { device, initiator } = await makeBench({ removable: true });
  const other = await another(device);
  await initiator.good(cdb.startStop(EJECT));
  await initiator.good(cdb.startStop(LOAD));
  await initiator.good(cdb.testUnitReady);
  await other.refused(0x06_28_00, cdb.testUnitReady);
  await other.good(cdb.testUnitReady);
  await initiator.good(cdb.startStop(LOAD)); // is in: nothing changes
  await other.good(cdb.testUnitReady);
});

test('one nexus that prevents removal is enough; allowing, logging out and resets end it', async () => {
  const { device, initiator } = await makeBench({ removable: true });
  const other = await another(device);
  await initiator.good(cdb.preventAllow(1));
  await other.good(cdb.preventAllow(1));
  await initiator.good(cdb.preventAllow(0));
  await initiator.refused(PREVENTED, cdb.startStop(EJECT));
  await device.detach(other.nexus);
  await initiator.good(cdb.startStop(EJECT));
  await initiator.good(cdb.preventAllow(1));
  await initiator.refused(PREVENTED, cdb.startStop(LOAD));
  for (const action of [5, 6, 7] as const) {
    await initiator.good(cdb.preventAllow(1));
    await device.manage(initiator.nexus, 0, action);
    await initiator.clearAttentions();
    await initiator.good(cdb.startStop(LOAD));
    await initiator.good(cdb.startStop(EJECT));
  }
});

test('stopping without LOEJ, and power conditions, leave the medium in', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ removable: true, image });
  await initiator.good(cdb.startStop(0));
  assert.deepEqual(image.log.splice(0), ['flush']);
  await initiator.good(cdb.startStop(0x04)); // NO_FLUSH
  assert.deepEqual(image.log, []);
  await initiator.good(cdb.startStop(0x22)); // a power condition: LOEJ does not count
  await initiator.good(cdb.testUnitReady);
});

test('a fixed disk is not ejected, and PREVENT ALLOW is unknown to it', async () => {
  const { initiator } = await makeBench();
  await initiator.good(cdb.startStop(EJECT));
  await initiator.good(cdb.testUnitReady);
  await initiator.refused(0x05_20_00, cdb.preventAllow(1));
});

test('a medium stays in when it cannot be flushed; with IMMED that is a deferred error', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ removable: true, image });
  image.failures.set('flush', new LunetteError('IO', 'made to fail'));
  assert.equal((await initiator.send(cdb.startStop(EJECT))).status, 2);
  await initiator.good(cdb.testUnitReady);
  await initiator.good(cdb.startStop(EJECT, 1));
  await new Promise((resolve) => setImmediate(resolve));
  const { senseBytes } = await initiator.refused(0x03_0c_00, cdb.testUnitReady);
  assert.equal(senseBytes[0], 0x71);
  await initiator.good(cdb.testUnitReady);
});

test('a medium that is ejected with IMMED is gone for the next command, also while it is flushed', async () => {
  const { initiator } = await makeBench({ removable: true });
  await initiator.good(cdb.startStop(EJECT, 1));
  await initiator.refused(0x02_3a_00, cdb.testUnitReady);
});
