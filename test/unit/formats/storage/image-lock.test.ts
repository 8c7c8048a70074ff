/** How an image lock is taken, with a locker that answers as it is told. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ByteLocker, ImageLock, type LockOutcome } from '../../../../formats/storage/image-lock.ts';
import type { OpenFile } from '../../../../formats/storage/open-file.ts';

const FILE: OpenFile = {
  fd: -1,
  path: 'disk.img',
  readOnly: false,
  isDevice: false,
  id: '0:0',
  identity: { device: 0n, inode: 0n },
  size: 0,
};
const CONFLICT: LockOutcome = { kind: 'conflict', byte: 201 };

/** Others are in the way for the first `times` times. */
function lockerThatIsRefused(times: number): ByteLocker & { asked: number } {
  return {
    asked: 0,
    async change() {
      return ++this.asked > times ? { kind: 'done' } : CONFLICT;
    },
  };
}

test('of two writers that see each other one gets the lock: who writes looks again', async () => {
  const locker = lockerThatIsRefused(1);
  await new ImageLock(FILE, locker).set('write');
  assert.equal(locker.asked, 2);
});

test('a writer gives way to who stays, and says so', async () => {
  const locker = lockerThatIsRefused(Number.POSITIVE_INFINITY);
  await assert.rejects(new ImageLock(FILE, locker).set('write'), { code: 'LOCKED' });
  assert.ok(locker.asked < 10);
});

test('who only reads does not look again', async () => {
  const locker = lockerThatIsRefused(1);
  await assert.rejects(new ImageLock(FILE, locker).set('read'), { code: 'LOCKED' });
});
