import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import {
  appendFile,
  mkdir,
  readdir,
  readFile,
  readlink,
  rename,
  rmdir,
  stat,
  symlink,
  truncate,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import {
  JOURNAL_VERSION,
  Journal,
  type JournalHead,
  readJournal,
  removeJournal,
} from '../../../src/convert/journal.ts';
import { mountMemory } from '../../support/mounts.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const HEAD: JournalHead = {
  lunette: JOURNAL_VERSION,
  options: '{}',
  sources: ['/a'],
  identities: [null],
  files: ['b-s001.vmdk'],
};
const digest = (digit: string): string => digit.repeat(64);

test('a journal says again what was noted in it', async (t) => {
  const path = join(await temporaryDirectory(t), 'journal');
  const journal = await Journal.begin(path, HEAD, [{ done: 5, digest: digest('a') }], true);
  await journal.add({ done: 10, digest: digest('b') });
  await journal.close();
  assert.deepEqual(await readJournal(path), {
    head: HEAD,
    points: [
      { done: 5, digest: digest('a') },
      { done: 10, digest: digest('b') },
    ],
    whole: undefined,
  });
});

test('a journal of which nothing is to change is not cut before it is gone on with', async (t) => {
  const path = join(await temporaryDirectory(t), 'journal');
  const points = [
    { done: 5, digest: digest('a') },
    { done: 10, digest: digest('b') },
  ];
  await (await Journal.begin(path, HEAD, points, false)).close();
  const before = await stat(path);
  const text = await readFile(path, 'utf8');
  // Only its first point was proven.
  const again = await Journal.begin(path, HEAD, points.slice(0, 1), false);
  assert.ok((await readFile(path, 'utf8')).startsWith(text.slice(0, text.indexOf('{"done":10'))));
  await again.add({ done: 7, digest: digest('c') });
  assert.deepEqual((await readJournal(path))?.points, [points[0], { done: 7, digest: digest('c') }]);
  await again.close();
  assert.equal((await stat(path)).ino, before.ino);
  assert.doesNotMatch(await readFile(path, 'utf8'), /\0/);
});

test('what follows the last whole and sensible line of a journal does not count', async (t) => {
  const path = join(await temporaryDirectory(t), 'journal');
  await (await Journal.begin(path, HEAD, [{ done: 5, digest: digest('a') }], false)).close();
  const whole = await readFile(path, 'utf8');
  for (const tail of [
    `{"done":10,"digest":"${digest('b')}"}`, // no end of line: it may be cut
    `{"done":5,"digest":"${digest('b')}"}\n`,
    `{"done":1e300,"digest":"${digest('b')}"}\n`,
    `{"done":10,"digest":"short"}\n`,
    '\0\0\0\0\n',
    'null\n',
  ]) {
    await writeFile(path, whole);
    await appendFile(path, tail);
    assert.equal((await readJournal(path))?.points.length, 1, tail);
  }
});

test('what is no journal, or one of another version, is none', async (t) => {
  const path = join(await temporaryDirectory(t), 'journal');
  assert.equal(await readJournal(path), undefined);
  for (const text of [
    '',
    '\n',
    'null\n',
    '{}\n',
    `${JSON.stringify({ ...HEAD, lunette: 99 })}\n`,
    JSON.stringify(HEAD),
  ]) {
    await writeFile(path, text);
    assert.equal(await readJournal(path), undefined, text);
  }
});

test('a journal says which file was about to have the name', async (t) => {
  const path = join(await temporaryDirectory(t), 'journal');
  const journal = await Journal.begin(path, HEAD, [{ done: 5, digest: digest('a') }], false);
  await journal.end('4711');
  await journal.close();
  const text = await readJournal(path);
  assert.equal(text?.whole, '4711');
  assert.equal(text?.points.length, 1);
});

test('a link, a pipe, a folder and what is far too large are no journals, and nothing is read of them', async (t) => {
  const folder = await temporaryDirectory(t);
  const path = join(folder, 'journal');
  await (await Journal.begin(join(folder, 'other'), HEAD, [], false)).close();
  await symlink('other', path);
  assert.equal(await readJournal(path), undefined);
  await unlink(path);
  await promisify(execFile)('mkfifo', [path]);
  assert.equal(await readJournal(path), undefined);
  await unlink(path);
  await mkdir(path);
  assert.equal(await readJournal(path), undefined);
  await rmdir(path);
  // Sparse: reading it would be too much for one string.
  await rename(join(folder, 'other'), path);
  await truncate(path, 2 ** 40);
  assert.equal(await readJournal(path), undefined);
});

test('a journal is not written through a link', async (t) => {
  const folder = await temporaryDirectory(t);
  await writeFile(join(folder, 'precious'), 'precious');
  await symlink('precious', join(folder, 'journal'));
  await assert.rejects(Journal.begin(join(folder, 'journal'), HEAD, [], false), { path: join(folder, 'journal') });
  assert.equal(await readFile(join(folder, 'precious'), 'utf8'), 'precious');
});

test('a journal that a full disk does not take leaves no file open', { skip: requires.root() }, async (t) => {
  const path = join(await mountMemory(t, 64 * 1024), 'journal');
  const head = { ...HEAD, options: 'x'.repeat(1024 * 1024) };
  await assert.rejects(Journal.begin(path, head, [], false), { code: 'NO_SPACE' });
  const open = await Promise.all(
    (await readdir('/proc/self/fd')).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')),
  );
  assert.deepEqual(
    open.filter((file) => file.includes(path)),
    [],
  );
});

test('removing a journal says whether there was one', async (t) => {
  const path = join(await temporaryDirectory(t), 'journal');
  await writeFile(path, '');
  assert.equal(await removeJournal(path), true);
  assert.equal(await removeJournal(path), false);
});
