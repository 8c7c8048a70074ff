import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { loginFor, parseNetrc } from '../../../src/http/netrc.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const TEXT = `# machine comment login no password no
machine other login o password p
machine Images.example
  login me
  account x
  password s3cret#
default login anyone password everywhere
`;

test('the login of a host is that of its own entry', () => {
  assert.deepEqual(parseNetrc(TEXT, 'images.example'), { user: 'me', password: 's3cret#' });
  assert.deepEqual(parseNetrc(TEXT, 'other'), { user: 'o', password: 'p' });
});

test('entries for everybody, comments and macros give no login', () => {
  assert.equal(parseNetrc(TEXT, 'elsewhere'), undefined);
  assert.equal(parseNetrc(TEXT, 'comment'), undefined);
  assert.equal(parseNetrc('macdef init\nmachine a login b\n', 'a'), undefined);
  assert.equal(parseNetrc('machine', 'undefined'), undefined);
});

test('$NETRC names the file, and must be readable then', async (t) => {
  const path = join(await temporaryDirectory(t), 'netrc');
  await assert.rejects(loginFor('other', { NETRC: path }), { code: 'NOT_FOUND', path });
  await writeFile(path, TEXT);
  assert.deepEqual(await loginFor('other', { NETRC: path }), { user: 'o', password: 'p' });
});
