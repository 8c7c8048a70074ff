import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseLockLine } from '../../../../formats/storage/lock-holders.ts';
import { deviceNumbers } from '../../../../formats/storage/open-file.ts';

test('a line of /proc/locks gives file and range', () => {
  assert.deepEqual(parseLockLine('12: OFDLCK ADVISORY  READ -1 fe:00:2164248 100 101'), {
    ofd: true,
    pid: -1,
    major: 0xfen,
    minor: 0n,
    inode: 2164248n,
    first: 100,
    last: 101,
  });
  assert.deepEqual(parseLockLine('lock:\t3: POSIX  ADVISORY  WRITE 4711 103:1f:99 0 EOF'), {
    ofd: false,
    pid: 4711,
    major: 0x103n,
    minor: 0x1fn,
    inode: 99n,
    first: 0,
    last: Number.POSITIVE_INFINITY,
  });
});

test('waiting locks and locks of other kinds are left out', () => {
  assert.equal(parseLockLine('1: -> POSIX  ADVISORY  WRITE 4711 fe:00:99 0 EOF'), undefined);
  assert.equal(parseLockLine('1: FLOCK  ADVISORY  WRITE 4711 fe:00:99 0 EOF'), undefined);
  assert.equal(parseLockLine('1: LEASE  ACTIVE    READ 4711 fe:00:99 0 EOF'), undefined);
  assert.equal(parseLockLine(''), undefined);
});

test('a dev_t splits into major and minor as glibc does it', () => {
  assert.deepEqual(deviceNumbers(0xfe00n), [0xfen, 0n]);
  assert.deepEqual(deviceNumbers(0x10301n), [0x103n, 1n]);
  // 12 low bits of the major above 8 low bits of the minor, the rest of the minor above, of the major at bit 44.
  assert.deepEqual(deviceNumbers(0x0000_1000_1230_0145n), [0x1001n, 0x12345n]);
});
