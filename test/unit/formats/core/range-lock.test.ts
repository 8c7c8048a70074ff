import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type RangeHold, RangeLock } from '../../../../formats/core/range-lock.ts';
import { randomFor } from '../../../support/random.ts';

test('ranges that do not touch are granted at once', () => {
  const locks = new RangeLock();
  assert.ok(!(locks.acquire(0, 10) instanceof Promise));
  assert.ok(!(locks.acquire(10, 10) instanceof Promise));
  assert.equal(locks.overlaps(20, 5), false);
  assert.equal(locks.overlaps(9, 1), true);
});

test('a range waits for earlier ones that wait themselves, so nothing is overtaken', async () => {
  const locks = new RangeLock();
  const order: string[] = [];
  const first = locks.acquire(0, 10) as RangeHold;
  const second = Promise.resolve(locks.acquire(5, 10)).then((hold) => {
    order.push('second');
    return hold;
  });
  const third = Promise.resolve(locks.acquire(12, 10)).then((hold) => {
    order.push('third');
    return hold;
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(order, []);
  locks.release(first);
  locks.release(await second);
  locks.release(await third);
  assert.deepEqual(order, ['second', 'third']);
  assert.ok(locks.idle);
});

test('no two overlapping holders exist at a time, and all get their turn in order', async (t) => {
  const random = randomFor(t);
  const locks = new RangeLock();
  const held = new Set<RangeHold>();
  const granted: { start: number; end: number; turn: number }[] = [];
  const work = Array.from({ length: 500 }, async (_, turn) => {
    const start = random.below(100);
    const hold = await locks.acquire(start, random.between(1, 20));
    for (const other of held) assert.ok(other.end <= hold.start || hold.end <= other.start);
    for (const other of granted) assert.ok(other.turn < turn || other.end <= hold.start || hold.end <= other.start);
    held.add(hold);
    granted.push({ start: hold.start, end: hold.end, turn });
    for (let wait = random.below(4); wait > 0; wait--) await new Promise((resolve) => setImmediate(resolve));
    held.delete(hold);
    locks.release(hold);
  });
  await Promise.all(work);
  assert.equal(granted.length, 500);
  assert.ok(locks.idle);
});

test('overlapsMove sees only holders that may move bytes', () => {
  const locks = new RangeLock();
  locks.acquire(0, 10, false);
  locks.acquire(20, 10);
  assert.equal(locks.overlapsMove(0, 15), false);
  assert.equal(locks.overlapsMove(0, 25), true);
});

test('releasing twice is a bug that shows', () => {
  const locks = new RangeLock();
  const hold = locks.acquire(0, 1) as RangeHold;
  locks.release(hold);
  assert.throws(() => locks.release(hold), /twice/);
});
