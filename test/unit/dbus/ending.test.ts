import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Ending } from '../../../src/dbus/ending.ts';

const late = (): Error => new Error('too late');
const before = <T>(ending: Ending, work: Promise<T>, ms = 60_000): Promise<T> => ending.before(work, ms, late);

test('what comes before the end is what it is; what would come later fails with the reason', async () => {
  const ending = new Ending();
  assert.equal(await before(ending, Promise.resolve(3)), 3);
  await assert.rejects(before(ending, Promise.reject(new Error('no'))), /no/);
  const waiting = before(ending, new Promise(() => undefined));
  ending.end(new Error('first'));
  ending.end(new Error('second'));
  await assert.rejects(waiting, /first/);
  await assert.rejects(before(ending, Promise.resolve(3)), /first/);
});

test('nothing is kept of what waited and waits no more', async () => {
  const ending = new Ending();
  const work = Array.from({ length: 100 }, (_, i) =>
    before(ending, i % 2 === 0 ? Promise.resolve(i) : Promise.reject(i)),
  );
  assert.equal(ending.waiting, 100);
  await Promise.allSettled(work);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(ending.waiting, 0);
});

test('what takes too long fails, and nothing is kept of it', async () => {
  const ending = new Ending();
  const endless = new Promise(() => undefined);
  await assert.rejects(before(ending, endless, 1), /too late/);
  assert.equal(ending.waiting, 0);
  assert.equal(await before(ending, Promise.resolve(1), 1), 1);
});

test('nobody waits for what may never come once it has ended', async () => {
  const timers = (): number => process.getActiveResourcesInfo().filter((each) => each === 'Timeout').length;
  const others = timers();
  const ending = new Ending();
  const endless = new Promise(() => undefined);
  const waiting = before(ending, endless);
  assert.equal(timers(), others + 1);
  ending.end(new Error('over'));
  await assert.rejects(waiting, /over/);
  await assert.rejects(before(ending, endless), /over/);
  assert.equal(timers(), others);
});
