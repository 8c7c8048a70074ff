import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lifetime } from '../../../../formats/core/lifetime.ts';

test('close waits for work in flight, refuses new work and releases once', async () => {
  const lifetime = new Lifetime('thing');
  let released = 0;
  lifetime.enter();
  const closed = lifetime.close(() => {
    released++;
  });
  const again = lifetime.close(() => {
    released++;
  });
  assert.throws(() => lifetime.enter(), { code: 'CLOSED', message: 'thing is closed' });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(released, 0);
  lifetime.leave();
  await Promise.all([closed, again]);
  assert.equal(released, 1);
});

test('a release that fails fails every close', async () => {
  const lifetime = new Lifetime('thing');
  const release = async () => {
    throw new Error('disk gone');
  };
  await assert.rejects(lifetime.close(release), /disk gone/);
  await assert.rejects(lifetime.close(release), /disk gone/);
});
