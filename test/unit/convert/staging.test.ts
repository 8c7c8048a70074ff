import assert from 'node:assert/strict';
import { existsSync, renameSync } from 'node:fs';
import { link, mkdir, readdir, readFile, rename, rm, symlink, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { IoVec, type StorageOpener } from '../../../formats/index.ts';
import type { Change } from '../../../src/convert/name-change.ts';
import { temporaryName } from '../../../src/convert/staged-names.ts';
import { StagedTarget, type StagingOptions } from '../../../src/convert/staging.ts';
import { openStorage } from '../../../src/io/open-storage.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

/** A disk in two files, written and closed, before it has its names. */
async function twoFiles(
  t: TestContext,
  folder: string,
  opener: StorageOpener = openStorage,
  options: Partial<StagingOptions> = {},
) {
  const staged = await StagedTarget.begin(join(folder, 'main'), { openStorage: opener, sync: false, ...options });
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

/** A file system on which names cannot be swapped. */
const noExchange = { exchange: () => false };
const oldFiles = async (folder: string): Promise<void> => {
  for (const name of ['main', 'extent']) await writeFile(join(folder, name), `old ${name}`);
};
const HIDDEN = ['main', 'extent'].map((name) => `.${name}.lunette-new`);

test('where names cannot be swapped all files get theirs, too', async (t) => {
  const folder = await temporaryDirectory(t);
  await oldFiles(folder);
  await (await twoFiles(t, folder, openStorage, noExchange)).commit();
  assert.equal(await text(folder, 'main'), 'new main');
  assert.equal(await text(folder, 'extent'), 'new extent');
  assert.deepEqual((await readdir(folder)).sort(), ['extent', 'main']);
});

for (const [how, exchange] of Object.entries({ 'swapped names': {}, 'names that cannot be swapped': noExchange })) {
  for (const replaced of [true, false]) {
    test(`names that cannot be made durable lead where they led (${how}, ${replaced ? 'old files' : 'none'})`, async (t) => {
      const folder = await temporaryDirectory(t);
      if (replaced) await oldFiles(folder);
      const syncFolder = async (): Promise<void> => {
        assert.equal(await text(folder, 'main'), 'new main');
        throw Object.assign(new Error('EIO'), { code: 'EIO' });
      };
      const staged = await twoFiles(t, folder, openStorage, { ...exchange, sync: true, syncFolder });
      await assert.rejects(staged.commit(), { code: 'IO', help: undefined });
      await staged.release();
      assert.equal(staged.mixed, false);
      // Another attempt can go on from what is there.
      for (const name of ['main', 'extent']) {
        assert.equal(await text(folder, `.${name}.lunette-new`), `new ${name}`);
        if (replaced) assert.equal(await text(folder, name), `old ${name}`);
      }
      assert.deepEqual((await readdir(folder)).sort(), [...HIDDEN, ...(replaced ? ['extent', 'main'] : [])].sort());
    });
  }
}

test('where names cannot be swapped, and one file cannot have its name, no file of the new set has one', async (t) => {
  const folder = await temporaryDirectory(t);
  await oldFiles(folder);
  let committing = false;
  const staged = await twoFiles(
    t,
    folder,
    async (path, options) => {
      const storage = await openStorage(path, options);
      if (committing && path === join(folder, HIDDEN[1] as string)) await unlink(join(folder, HIDDEN[0] as string));
      return storage;
    },
    noExchange,
  );
  committing = true;
  await assert.rejects(staged.commit(), { code: 'NOT_FOUND', help: undefined });
  await staged.abort();
  for (const name of ['main', 'extent']) assert.equal(await text(folder, name), `old ${name}`);
  assert.deepEqual((await readdir(folder)).sort(), ['extent', 'main']);
});

test('a single file that replaced another one stays when its name cannot be made durable, and that is said', async (t) => {
  const folder = await temporaryDirectory(t);
  await oldFiles(folder);
  const syncFolder = (): Promise<void> => Promise.reject(Object.assign(new Error('EIO'), { code: 'EIO' }));
  const options = { openStorage, sync: true, syncFolder, ...noExchange };
  const staged = await StagedTarget.begin(join(folder, 'main'), options);
  await writeFile(staged.temporary, 'new main');
  await assert.rejects(staged.commit(), { code: 'IO', help: /^The new image is whole and has its name/ });
  assert.equal(staged.mixed, true);
  await staged.abort();
  assert.equal(await text(folder, 'main'), 'new main');
});

test('names that were swapped and cannot be swapped back: the old file stays, hidden, and that is said', async (t) => {
  const folder = await temporaryDirectory(t);
  await oldFiles(folder);
  let swaps = 0;
  const exchange = (one: string, other: string): boolean => {
    if (++swaps > 1) return false;
    renameSync(one, `${one}-`);
    renameSync(other, one);
    renameSync(`${one}-`, other);
    return true;
  };
  const syncFolder = (): Promise<void> => Promise.reject(Object.assign(new Error('EIO'), { code: 'EIO' }));
  const options = { openStorage, sync: true, syncFolder, exchange };
  const staged = await StagedTarget.begin(join(folder, 'main'), options);
  await writeFile(staged.temporary, 'new main');
  await assert.rejects(staged.commit(), { code: 'IO', help: /^The new image is whole and has its name/ });
  await staged.abort();
  assert.equal(swaps, 2);
  assert.equal(await text(folder, 'main'), 'new main');
  assert.equal(await text(folder, '.main.lunette-new'), 'old main');
});

/** Lets so many changes of names happen, and none after them: what a process that is killed leaves. */
function dying(after: number): { change: Change; died(): boolean } {
  let steps = 0;
  return {
    change: async (step) => {
      if (++steps > after) throw new Error('killed');
      return step();
    },
    died: () => steps > after,
  };
}

/** One attempt at a disk in two files, or in one, that ends in its names or is given up, or is killed. @returns whether it was killed */
async function attempt(
  folder: string,
  round: number,
  after: number,
  { files, commits = true, ...options }: { files: number; commits?: boolean } & Partial<StagingOptions>,
): Promise<boolean> {
  const { change, died } = dying(after);
  let staged: StagedTarget | undefined;
  try {
    staged = await StagedTarget.begin(join(folder, 'main'), { openStorage, sync: false, change, ...options });
    await writeFile(staged.temporary, `${round} main`);
    if (files > 1) {
      const extent = await staged.createFile(join(folder, 'extent'));
      await extent.writev(0, IoVec.of(Buffer.from(`${round} extent`)));
      await extent.close();
    }
    if (commits) await staged.commit();
    else await staged.abort();
  } catch (error) {
    if (!died()) throw error;
    // Its locks go with it, and nothing else.
    await staged?.release();
  }
  return died();
}

/** Which attempts the files under their names are of: the main one, and the extent. */
async function found(folder: string): Promise<(string | undefined)[]> {
  const of = async (name: string): Promise<string | undefined> =>
    (await text(folder, name).catch(() => undefined))?.split(' ')[0];
  return [await of('main'), await of('extent')];
}

for (const before of ['two files', 'one file'] as const) {
  test(`a disk in ${before} stays whole or is replaced when an attempt is killed at any step, and the next at any of its own`, async (t) => {
    const old = before === 'two files' ? ['main', 'extent'] : ['main'];
    let moments = 0;
    for (const next of [{ files: 2 }, { files: 1, commits: false }]) {
      for (let first = 0, killed = true; killed; first++) {
        for (let second = 0, again = true; again; second++) {
          const folder = await temporaryDirectory(t);
          for (const name of old) await writeFile(join(folder, name), `0 ${name}`);
          killed = await attempt(folder, 1, first, { files: 2, ...noExchange });
          const where = `${first} ${second} ${JSON.stringify(next)}`;
          const check = async (whole: boolean): Promise<void> => {
            const [main, extent] = await found(folder);
            if (main === undefined && !whole) return; // it does not open
            assert.ok(main !== undefined, where);
            // A main file alone does not look at the other.
            if (main !== '0' || old.length > 1) assert.equal(main, extent, where);
          };
          await check(false);
          again = await attempt(folder, 2, second, { ...next, ...noExchange });
          await check(false);
          await attempt(folder, 3, Number.POSITIVE_INFINITY, { files: 1, commits: false, ...noExchange });
          await check(true);
          assert.ok(!existsSync(join(folder, '.main.lunette-old')), where);
          assert.ok(!existsSync(join(folder, '.extent.lunette-old')), where);
          assert.ok(!existsSync(join(folder, '.main.lunette-names')), where);
          await rm(folder, { recursive: true });
          moments++;
        }
      }
    }
    t.diagnostic(`${moments} moments`);
  });
}

test('what an attempt that runs has moved aside stays its own', async (t) => {
  const folder = await temporaryDirectory(t);
  await oldFiles(folder);
  const names = { seen: false };
  const staged = await twoFiles(t, folder, openStorage, {
    change: async (step) => {
      const result = await step();
      if (!existsSync(join(folder, '.extent.lunette-old')) || names.seen) return result;
      names.seen = true;
      const before = await readdir(folder);
      await assert.rejects(twoFiles(t, folder), { code: 'LOCKED' });
      assert.deepEqual(await readdir(folder), before);
      return result;
    },
  });
  await staged.commit();
  assert.ok(names.seen);
  assert.equal(await text(folder, 'extent'), 'new extent');
  assert.deepEqual((await readdir(folder)).sort(), ['extent', 'main']);
});

test('a record of names that is none, or that somebody else put there, moves nothing', async (t) => {
  const folder = await temporaryDirectory(t);
  const record = join(folder, '.main.lunette-names');
  await writeFile(join(folder, '.other.lunette-old'), 'other');
  for (const nonsense of ['', '[{', 'null\n', `[{"final":"${folder}/other","replaced":true}]\n`, '[1]\n']) {
    await writeFile(record, nonsense);
    await (await twoFiles(t, folder)).abort();
    assert.deepEqual(await readdir(folder), ['.other.lunette-old'], nonsense);
  }
  await writeFile(join(folder, 'planted'), '[{"final":"other","replaced":true}]\n');
  await symlink('planted', record);
  await (await twoFiles(t, folder)).abort();
  assert.equal(await text(folder, '.other.lunette-old'), 'other');
});

test('an attempt that was killed at any step is ended also when the folder has another name by then', async (t) => {
  for (let step = 0, killed = true; killed; step++) {
    const folder = await temporaryDirectory(t);
    const [then, now] = [join(folder, 'then'), join(folder, 'now')];
    await mkdir(then);
    for (const name of ['main', 'extent']) await writeFile(join(then, name), `0 ${name}`);
    killed = await attempt(then, 1, step, { files: 2, ...noExchange });
    await rename(then, now);
    await attempt(now, 2, Number.POSITIVE_INFINITY, { files: 1, commits: false, ...noExchange });
    const [main, extent] = await found(now);
    assert.ok(main !== undefined && main === extent, `step ${step}: ${main}, ${extent}`);
  }
});
