import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Ending } from '../../../src/dbus/ending.ts';

test('what comes before the end is what it is; what would come later fails with the reason', async () => {
  const ending = new Ending();
  assert.equal(await ending.before(Promise.resolve(3)), 3);
  await assert.rejects(ending.before(Promise.reject(new Error('no'))), /no/);
  const late = ending.before(new Promise(() => undefined));
  ending.end(new Error('first'));
  ending.end(new Error('second'));
  await assert.rejects(late, /first/);
  await assert.rejects(ending.before(Promise.resolve(3)), /first/);
});

test('nothing is kept of what waited and waits no more', async () => {
  const ending = new Ending();
  const work = Array.from({ length: 100 }, (_, i) =>
    ending.before(i % 2 === 0 ? Promise.resolve(i) : Promise.reject(i)),
  );
  assert.equal(ending.waiting, 100);
  await Promise.allSettled(work);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(ending.waiting, 0);
});
