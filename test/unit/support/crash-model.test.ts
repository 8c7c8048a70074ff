import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CrashModel, SECTOR, type TrackedWrite } from '../../support/crash-model.ts';

function put(disk: Buffer, write: TrackedWrite): void {
  CrashModel.stamp(write).copy(disk, write.start * SECTOR);
}

function setUp(): { model: CrashModel; disk: Buffer } {
  return { model: new CrashModel(16), disk: Buffer.alloc(16 * SECTOR) };
}

test('an unsynchronized write may be there or not', () => {
  const { model, disk } = setUp();
  const write = model.sent(2, 3, false);
  assert.deepEqual(model.judge(disk), []);
  model.completed(write, false);
  assert.deepEqual(model.judge(disk), []);
  put(disk, write);
  assert.deepEqual(model.judge(disk), []);
});

test('a write with FUA must be there', () => {
  const { model, disk } = setUp();
  const write = model.sent(2, 3, false);
  model.completed(write, true);
  assert.equal(model.judge(disk).length, 3);
  put(disk, write);
  assert.deepEqual(model.judge(disk), []);
});

test('a synchronization covers what had completed before it was sent, and only when it has completed itself', () => {
  const { model, disk } = setUp();
  const covered = model.sent(0, 1, false);
  const late = model.sent(5, 1, false);
  model.completed(covered, false);
  const synchronized = model.synchronizing();
  model.completed(late, false);
  assert.deepEqual(model.judge(disk), []);
  synchronized();
  assert.equal(model.judge(disk).length, 1);
  put(disk, covered);
  assert.deepEqual(model.judge(disk), []);
});

test('an older write than the durable one, garbage, and a stamp at the wrong place are found', () => {
  const { model, disk } = setUp();
  const old = model.sent(0, 1, false);
  model.completed(old, false);
  const newer = model.sent(0, 1, false);
  model.completed(newer, true);
  put(disk, old);
  assert.match(String(model.judge(disk)), /write 1, though write 2/);
  put(disk, newer);
  assert.deepEqual(model.judge(disk), []);
  disk[100] = 77;
  assert.match(String(model.judge(disk)), /garbage/);
  put(disk, newer);
  CrashModel.stamp({ number: newer.number, start: 9, count: 1, zero: false }).copy(disk, 9 * SECTOR);
  assert.match(String(model.judge(disk)), /did not write it/);
});

test('zeros are right where zeros were written, and wrong over something durable', () => {
  const { model, disk } = setUp();
  const write = model.sent(0, 2, false);
  model.completed(write, true);
  const zero = model.sent(1, 1, true);
  put(disk, write);
  assert.deepEqual(model.judge(disk), []);
  disk.fill(0, SECTOR, 2 * SECTOR);
  assert.deepEqual(model.judge(disk), []);
  disk.fill(0, 0, SECTOR);
  assert.equal(model.judge(disk).length, 1);
  put(disk, write);
  model.completed(zero, true);
  assert.match(String(model.judge(disk)), /sector 1: write 1, though write 2/);
});

test('after a crash was judged, what is there is what must stay', () => {
  const { model, disk } = setUp();
  const write = model.sent(3, 1, false);
  put(disk, write);
  model.settle(disk);
  disk.fill(0);
  assert.equal(model.judge(disk).length, 1);
});

test('writes in flight are kept apart', () => {
  const { model } = setUp();
  const write = model.sent(4, 4, false);
  assert.equal(model.isFree(0, 4), true);
  assert.equal(model.isFree(7, 1), false);
  model.completed(write, false);
  assert.equal(model.isFree(7, 1), true);
});
