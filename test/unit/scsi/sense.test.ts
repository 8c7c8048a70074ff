import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ERROR_CODES, type ErrorCode, LunetteError } from '../../../formats/core/errors.ts';
import {
  asCheckCondition,
  CheckCondition,
  DEFERRED,
  ERROR_SENSE,
  invalidField,
  invalidParameter,
  MISCOMPARE,
  parseSense,
  WRITE_ERROR,
  writeSense,
} from '../../../src/scsi/sense.ts';
import { cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

test('every error code has a row, with a sense key that says that something is wrong', () => {
  assert.deepEqual(Object.keys(ERROR_SENSE).sort(), Object.keys(ERROR_CODES).sort());
  for (const [code, row] of Object.entries(ERROR_SENSE)) {
    for (const sense of [row.read, row.write]) {
      assert.ok([2, 3, 4, 5, 7, 0x0b].includes(sense >> 16), `${code} has key ${sense >> 16}`);
    }
  }
});

test('what fails in the image is told by its code, and by the direction', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  const cases: [ErrorCode, read: number, write: number][] = [
    ['IO', 0x03_11_00, 0x03_0c_00],
    ['CORRUPT', 0x03_11_00, 0x03_0c_00],
    ['NO_SPACE', 0x07_27_07, 0x07_27_07],
    ['LOCKED', 0x02_04_00, 0x02_04_00],
    ['CLOSED', 0x02_04_03, 0x02_04_03],
    ['OUT_OF_RANGE', 0x05_21_00, 0x05_21_00],
    ['READ_ONLY', 0x07_27_00, 0x07_27_00],
    ['TIMEOUT', 0x0b_08_01, 0x0b_08_01],
    ['INTERNAL', 0x04_44_00, 0x04_44_00],
  ];
  for (const [code, read, write] of cases) {
    for (const call of ['readv', 'writev', 'flush']) image.failures.set(call, new LunetteError(code, 'made to fail'));
    await initiator.refused(read, cdb.read10(0, 1));
    await initiator.refused(write, cdb.write10(0, 1), { out: new Uint8Array(512) });
    await initiator.refused(write, [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  }
  image.failures.clear();
  await initiator.good(cdb.read10(0, 1));
});

test('an error of the operating system or a bug is no exception to the initiator', () => {
  assert.equal(asCheckCondition(Object.assign(new Error('x'), { code: 'ENOSPC' }), true).sense, 0x07_27_07);
  assert.equal(asCheckCondition(new TypeError('x'), false).sense, 0x04_44_00);
  assert.equal(asCheckCondition('x', false).sense, 0x04_44_00);
});

test('fixed format: key, code, information and the field at fault where SPC-4 has them', () => {
  const out = new Uint8Array(252).fill(0xff);
  assert.equal(writeSense(out, MISCOMPARE, false, { information: 0x01020304 }), 18);
  assert.equal(hex(out.subarray(0, 18)), 'f0000e010203040a000000001d0000000000');
  writeSense(out, 0x05_24_00, false, invalidField(3, 5).details);
  assert.equal(hex(out.subarray(0, 18)), '70000500000000 0a00000000 24 00 00 cd 0003'.replaceAll(' ', ''));
  writeSense(out, 0x05_26_00, false, invalidParameter(0x1234).details);
  assert.equal(hex(out.subarray(15, 18)), '801234');
});

test('information of more than 32 bits is left out of the fixed format and fits the descriptor format', () => {
  const out = new Uint8Array(252);
  writeSense(out, MISCOMPARE, false, { information: 2 ** 32 });
  assert.equal(out[0], 0x70);
  const length = writeSense(out, MISCOMPARE, true, { information: 2 ** 32 + 5 });
  assert.equal(hex(out.subarray(0, length)), '720e1d000000000c000a80000000000100000005');
});

test('descriptor format: the field at fault is a descriptor of its own', () => {
  const out = new Uint8Array(252);
  const length = writeSense(out, 0x05_24_00, true, invalidField(2, 5).details);
  assert.equal(hex(out.subarray(0, length)), '7205240000000008' + '02060000cd000200');
});

test('deferred errors say so in the response code of both formats', () => {
  const out = new Uint8Array(252);
  writeSense(out, WRITE_ERROR + DEFERRED, false);
  assert.equal(out[0], 0x71);
  assert.equal(parseSense(out), WRITE_ERROR);
  writeSense(out, WRITE_ERROR + DEFERRED, true);
  assert.equal(out[0], 0x73);
  assert.equal(parseSense(out), WRITE_ERROR);
});

test('parseSense refuses what is no sense data', () => {
  assert.equal(parseSense(new Uint8Array(0)), undefined);
  assert.equal(parseSense(Uint8Array.of(0x70, 0, 5)), undefined);
  assert.equal(parseSense(Uint8Array.of(0x12, ...new Array(20).fill(0))), undefined);
  assert.ok(new CheckCondition(MISCOMPARE).message.includes('0e1d00'));
});

test('REQUEST SENSE returns and clears the oldest unit attention, in the format asked for', async () => {
  const { device, initiator } = await makeBench();
  device.unit(0)?.attentions.raise(initiator.nexus, 0x06_2a_09);
  const first = await initiator.good(cdb.requestSense(1));
  assert.equal(first[0], 0x72);
  assert.equal(parseSense(first), 0x06_2a_09);
  const second = await initiator.good(cdb.requestSense());
  assert.equal(second[0], 0x70);
  assert.equal(parseSense(second), 0);
});
