import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StorageError } from '../../../../formats/core/errors.ts';
import { SharedSync } from '../../../../formats/storage/shared-sync.ts';

/** A sync whose calls end when the test says so. */
function controlled() {
  const calls: { end(): void; fail(error: Error): void }[] = [];
  const sync = new SharedSync(
    () =>
      new Promise<void>((resolve, reject) => {
        calls.push({ end: resolve, fail: reject });
      }),
  );
  return { sync, calls };
}

async function settle(): Promise<void> {
  for (let i = 0; i < 10; i++) await Promise.resolve();
}

test('a sync that was asked for after another started gets a run of its own, shared by all who wait', async () => {
  const { sync, calls } = controlled();
  const ended: string[] = [];
  const first = sync.run().then(() => ended.push('first'));
  const second = sync.run().then(() => ended.push('second'));
  const third = sync.run().then(() => ended.push('third'));
  assert.equal(calls.length, 1);
  calls[0]?.end();
  await settle();
  assert.deepEqual(ended, ['first']);
  assert.equal(calls.length, 2);
  // The second run has started: this one may not join it.
  const fourth = sync.run().then(() => ended.push('fourth'));
  calls[1]?.end();
  await settle();
  assert.deepEqual(ended, ['first', 'second', 'third']);
  assert.equal(calls.length, 3);
  calls[2]?.end();
  await Promise.all([first, second, third, fourth]);
  assert.equal(calls.length, 3);
});

test('after a failure every later sync fails with the same error, without asking the system again', async () => {
  const { sync, calls } = controlled();
  const error = new Error('EIO');
  const first = sync.run();
  const waiting = sync.run();
  calls[0]?.fail(error);
  await assert.rejects(first, error);
  await assert.rejects(waiting, error);
  await assert.rejects(sync.run(), error);
  assert.equal(calls.length, 1);
});

test('a sync that fails because the disk is full is no full disk to try again on: what it dropped is gone', async () => {
  const { sync, calls } = controlled();
  const first = sync.run();
  calls[0]?.fail(new StorageError('NO_SPACE', 'syncing /disk: ENOSPC', { path: '/disk' }));
  await assert.rejects(first, { code: 'IO', path: '/disk' });
  await assert.rejects(sync.run(), { code: 'IO' });
});

test('where nothing was written since the last sync began, the system is not asked', async () => {
  const { sync, calls } = controlled();
  // Whoever wrote before this process may have been killed: the first one counts.
  const first = sync.run();
  assert.equal(calls.length, 1);
  calls[0]?.end();
  await first;
  await sync.run();
  assert.equal(calls.length, 1);
  sync.wrote();
  const second = sync.run();
  assert.equal(calls.length, 2);
  sync.wrote(); // while it runs: it may have come too late for it
  calls[1]?.end();
  await second;
  const third = sync.run();
  assert.equal(calls.length, 3);
  calls[2]?.end();
  await third;
});
