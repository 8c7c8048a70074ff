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

interface CountedLocker extends ByteLocker {
  /** How often it took bytes, or was to. */
  taken: number;
  looked: number;
}

/** @param times the first ones that take are refused. @param seen whether who is in the way is there for those who only look */
function lockerThatRefuses(times: number, seen: boolean): CountedLocker {
  return {
    taken: 0,
    looked: 0,
    async change(_file, { take }) {
      if (take.length > 0) return ++this.taken > times ? { kind: 'done' } : CONFLICT;
      this.looked++;
      return seen ? CONFLICT : { kind: 'done' };
    },
  };
}

test('writers that see each other for a moment, even many times, give way to nobody', async () => {
  const locker = lockerThatRefuses(6, false);
  await new ImageLock(FILE, locker).set('write');
  assert.equal(locker.taken, 7);
});

test('a writer gives way to who stays, and says so; it takes nothing while it looks', async () => {
  const locker = lockerThatRefuses(Number.POSITIVE_INFINITY, true);
  await assert.rejects(new ImageLock(FILE, locker).set('write'), { code: 'LOCKED' });
  assert.equal(locker.taken, 1);
  assert.ok(locker.looked < 10);
});

test('a writer that is refused what nobody seems to hold gives up in the end', async () => {
  const locker = lockerThatRefuses(Number.POSITIVE_INFINITY, false);
  await assert.rejects(new ImageLock(FILE, locker).set('write'), { code: 'LOCKED' });
});

test('who only reads does not look again', async () => {
  const locker = lockerThatRefuses(1, false);
  await assert.rejects(new ImageLock(FILE, locker).set('read'), { code: 'LOCKED' });
  assert.equal(locker.taken, 1);
});
