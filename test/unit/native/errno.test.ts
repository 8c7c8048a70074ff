import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { test } from 'node:test';
import { codeOf, fromSystemError } from '../../../formats/core/errors.ts';
import { systemError } from '../../../src/native/errno.ts';

test('a quota that is used up is a full disk, whether the addon or Node says so', () => {
  const ours = systemError(-constants.errno.EDQUOT, 'pwritev');
  assert.equal(ours.message, 'EDQUOT: disk quota exceeded, pwritev');
  // As Node makes them of a number that it does not know.
  const nodes = Object.assign(new Error('Unknown system error -122: Unknown system error -122, write'), {
    errno: -constants.errno.EDQUOT,
    code: 'Unknown system error -122',
    syscall: 'write',
  });
  for (const error of [ours, nodes]) {
    assert.equal(codeOf(error), 'NO_SPACE');
    assert.equal(fromSystemError(error, 'writing').code, 'NO_SPACE');
  }
});

test('an error number that nothing has a name for keeps its number', () => {
  assert.equal(systemError(-4000, 'pwritev').message, 'errno 4000: unknown error, pwritev');
});

test('an error of Node keeps its name', async () => {
  await assert.rejects(writeFile('/dev/full', 'x'), (error) => codeOf(error) === 'NO_SPACE');
});
