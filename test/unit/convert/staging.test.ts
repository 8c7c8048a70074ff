import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { link, readdir, readFile, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { IoVec, type StorageOpener } from '../../../formats/index.ts';
import { StagedTarget, temporaryName } from '../../../src/convert/staging.ts';
import { openStorage } from '../../../src/io/open-storage.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

/** A disk in two files, written and closed, before it has its names. */
async function twoFiles(t: TestContext, folder: string, opener: StorageOpener = openStorage) {
  const staged = await StagedTarget.begin(join(folder, 'main'), { openStorage: opener, sync: false });
  t.after(() => staged.abort());
  const main = await staged.open(staged.path, { readOnly: false });
  await main.writev(0, IoVec.of(Buffer.from('new main')));
  const extent = await staged.createFile(join(folder, 'extent'));
  await extent.writev(0, IoVec.of(Buffer.from('new extent')));
  for (const storage of [main, extent]) await storage.close();
  return staged;
}

const text = (folder: string, name: string): Promise<string> => readFile(join(folder, name), 'utf8');

test('all files get their names, and what had them is gone', async (t) => {
  const folder = await temporaryDirectory(t);
  for (const name of ['main', 'extent']) await writeFile(join(folder, name), `old ${name}`);
  await (await twoFiles(t, folder)).commit();
  assert.equal(await text(folder, 'main'), 'new main');
  assert.equal(await text(folder, 'extent'), 'new extent');
  assert.deepEqual((await readdir(folder)).sort(), ['extent', 'main']);
});

test('a file that vanished meanwhile is not missed', async (t) => {
  const folder = await temporaryDirectory(t);
  await writeFile(join(folder, 'main'), 'old main');
  const staged = await twoFiles(t, folder);
  await unlink(join(folder, 'main'));
  await staged.commit();
  assert.equal(await text(folder, 'main'), 'new main');
  assert.deepEqual((await readdir(folder)).sort(), ['extent', 'main']);
});

for (const replaced of [true, false]) {
  test(`when one of several files cannot have its name, all names lead where they led (${replaced ? 'old files' : 'none'})`, async (t) => {
    const folder = await temporaryDirectory(t);
    if (replaced) for (const name of ['main', 'extent']) await writeFile(join(folder, name), `old ${name}`);
    const lost = temporaryName(join(folder, 'main'));
    let committing = false;
    // Once all are locked for the last time, the main one is lost: the extent has its name before that shows.
    const staged = await twoFiles(t, folder, async (path, options) => {
      const storage = await openStorage(path, options);
      if (committing && path === temporaryName(join(folder, 'extent'))) await unlink(lost);
      return storage;
    });
    committing = true;
    await assert.rejects(staged.commit(), { code: 'NOT_FOUND', path: join(folder, 'main') });
    await staged.abort();
    if (replaced) {
      assert.equal(await text(folder, 'main'), 'old main');
      assert.equal(await text(folder, 'extent'), 'old extent');
    }
    assert.deepEqual((await readdir(folder)).sort(), replaced ? ['extent', 'main'] : []);
    assert.equal(existsSync(lost), false);
  });
}

test('what an attempt left under the temporary name is not written into where it has another name', async (t) => {
  const folder = await temporaryDirectory(t);
  for (const name of ['main', 'extent']) {
    await writeFile(join(folder, `backup-${name}`), `old ${name}`);
    await link(join(folder, `backup-${name}`), temporaryName(join(folder, name)));
  }
  await (await twoFiles(t, folder)).commit();
  assert.equal(await text(folder, 'main'), 'new main');
  assert.equal(await text(folder, 'backup-main'), 'old main');
  assert.equal(await text(folder, 'backup-extent'), 'old extent');
});
