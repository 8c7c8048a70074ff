import assert from 'node:assert/strict';
import { appendFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  JOURNAL_VERSION,
  Journal,
  type JournalHead,
  readJournal,
  removeJournal,
} from '../../../src/convert/journal.ts';
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
  });
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

test('removing a journal says whether there was one', async (t) => {
  const path = join(await temporaryDirectory(t), 'journal');
  await writeFile(path, '');
  assert.equal(await removeJournal(path), true);
  assert.equal(await removeJournal(path), false);
});
