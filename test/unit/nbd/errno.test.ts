import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ERROR_CODES, LunetteError } from '../../../formats/core/errors.ts';
import { codeOfNbdErrno, ERRNO_TABLE, nbdErrno } from '../../../src/nbd/errno.ts';

test('every error code has an errno that NBD knows', () => {
  const known = new Set([1, 5, 12, 22, 28, 75, 95, 108]);
  assert.deepEqual(Object.keys(ERRNO_TABLE).sort(), Object.keys(ERROR_CODES).sort());
  for (const [code, errno] of Object.entries(ERRNO_TABLE)) assert.ok(known.has(errno), code);
});

test('what is no error of ours is EIO, and an unknown errno counts as EINVAL', () => {
  assert.equal(nbdErrno(new Error('x')), 5);
  assert.equal(nbdErrno(new LunetteError('NO_SPACE', 'x')), 28);
  assert.equal(codeOfNbdErrno(28), 'NO_SPACE');
  assert.equal(codeOfNbdErrno(4711), 'INVALID');
});
