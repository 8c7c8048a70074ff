/** What files have beyond the contract of all storages: kinds of files, errors, locks' notices. Both implementations. */

import assert from 'node:assert/strict';
import { chmod, type FileHandle, open, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { openFileStorage } from '../../../../formats/storage/file.ts';
import type { StorageOpener } from '../../../../formats/storage/storage.ts';
import { openNativeStorage } from '../../../../src/io/native-storage.ts';
import { openStorage } from '../../../../src/io/open-storage.ts';
import { native } from '../../../../src/native/binding.ts';
import { requireAddon } from '../../../support/addon.ts';
import { memoryFolder } from '../../../support/memory-folder.ts';
import { mountMemory } from '../../../support/mounts.ts';
import { run, runOk } from '../../../support/process.ts';
import { requires } from '../../../support/requires.ts';
import { temporaryDirectory, temporaryFile } from '../../../support/temporary.ts';

const kinds: readonly { name: string; open: StorageOpener; skip: string | false }[] = [
  { name: 'FileStorage', open: openFileStorage, skip: false },
  {
    name: 'NativeStorage',
    open: openNativeStorage,
    skip: requireAddon(),
  },
];

for (const { name, open: openIt, skip } of kinds) {
  test(`${name}: what is no regular file or block device is refused by its kind`, { skip }, async (t) => {
    const folder = await temporaryDirectory(t);
    const fifo = join(folder, 'fifo');
    await runOk('mkfifo', [fifo]);
    for (const [path, kind] of [
      [folder, 'a directory'],
      [fifo, 'a FIFO'],
      ['/dev/null', 'a character device'],
    ] as const) {
      for (const readOnly of [true, false]) {
        await assert.rejects(openIt(path, { readOnly }), {
          code: 'INVALID',
          path,
          message: `${path} is ${kind}, not a regular file or block device`,
        });
      }
    }
  });

  test(`${name}: what cannot be opened is NOT_FOUND or ACCESS, with the path`, { skip }, async (t) => {
    const folder = await temporaryDirectory(t);
    const missing = join(folder, 'missing.qcow2');
    await assert.rejects(openIt(missing, { readOnly: true }), { code: 'NOT_FOUND', errno: 'ENOENT', path: missing });
    const dangling = join(folder, 'dangling');
    await symlink(missing, dangling);
    await assert.rejects(openIt(dangling, { readOnly: true }), { code: 'NOT_FOUND', path: dangling });
    await assert.rejects(openIt(join(import.meta.filename, 'x'), { readOnly: true }), { code: 'NOT_FOUND' });
    if (process.getuid?.() !== 0) {
      const secret = join(folder, 'secret');
      await writeFile(secret, 'x');
      await chmod(secret, 0);
      await assert.rejects(openIt(secret, { readOnly: true }), { code: 'ACCESS', path: secret });
    }
  });

  test(`${name}: two opens of one file have one id, also through a link; other files have another`, {
    skip,
  }, async (t) => {
    const folder = await temporaryDirectory(t);
    await writeFile(join(folder, 'a'), 'x');
    await writeFile(join(folder, 'b'), 'x');
    await symlink('a', join(folder, 'link'));
    const storages = await Promise.all(
      ['a', 'a', 'link', 'b'].map((file) => openIt(join(folder, file), { readOnly: true })),
    );
    const [first, ...others] = storages.map(({ id }) => id);
    assert.match(first as string, /^\d+:\d+$/);
    assert.deepEqual(
      others.map((id) => id === first),
      [true, true, false],
    );
    await Promise.all(storages.map((storage) => storage.close()));
  });

  test(`${name}: the descriptor is not inherited by programs that we start`, { skip }, async (t) => {
    const path = await temporaryFile(t, 'disk', 'x');
    const storage = await openIt(path, { readOnly: true });
    const { stdout } = await run('ls', ['-l', '/proc/self/fd']);
    assert.ok(!stdout.includes(path));
    await storage.close();
  });

  test(`${name}: a file that somebody else made shorter reads as zeros where it ended`, { skip }, async (t) => {
    const path = await temporaryFile(t, 'disk', new Uint8Array(10_000).fill(1));
    const storage = await openIt(path, { readOnly: true });
    const other = await open(path, 'r+');
    await other.truncate(5000);
    await other.close();
    const memory = new Uint8Array(10_000).fill(9);
    if (!storage.tryReadv(0, IoVec.of(memory))) await storage.readv(0, IoVec.of(memory));
    assert.deepEqual(memory, new Uint8Array(10_000).fill(1, 0, 5000));
    await storage.close();
  });

  test(`${name}: after close nothing is read from or written to the file that has the descriptor's number next`, {
    skip,
  }, async (t) => {
    const folder = memoryFolder ?? tmpdir();
    const path = join(folder, `lunette-test-${process.pid}-${name}`);
    t.after(() => rm(path, { force: true }));
    await writeFile(path, new Uint8Array(8192).fill(1));
    const storage = await openIt(path, { readOnly: false });
    const { fd } = storage;
    await storage.close();
    // The lowest free number is the next: take it, and those below it.
    const others: FileHandle[] = [];
    t.after(() => Promise.all(others.map((other) => other.close())));
    for (let i = 0; i < 200 && others.at(-1)?.fd !== fd; i++) others.push(await open(path, 'r+'));
    assert.equal(others.at(-1)?.fd, fd);
    const memory = new Uint8Array(4096);
    assert.equal(storage.tryReadv(0, IoVec.of(memory)), false);
    assert.equal(storage.tryWritev(0, IoVec.of(memory)), false);
    assert.deepEqual([memory[0], (await readFile(path))[0]], [0, 1]);
  });

  const noRoot = skip || requires.root();
  test(`${name}: a full file system is NO_SPACE with path and offset, and writing goes on once there is room`, {
    skip: noRoot,
  }, async (t) => {
    const folder = await mountMemory(t, 1 << 20);
    const path = join(folder, 'disk');
    await writeFile(path, '');
    const storage = await openIt(path, { readOnly: false });
    t.after(() => storage.close());
    const piece = new Uint8Array(256 * 1024).fill(5);
    let offset = 0;
    const error = { code: 'NO_SPACE', errno: 'ENOSPC', path };
    await assert.rejects(async () => {
      for (; offset < 16 << 20; offset += piece.length) await storage.writev(offset, IoVec.of(piece));
    }, error);
    assert.ok(offset >= 512 * 1024, `full after ${offset} bytes`);
    await assert.rejects(storage.writev(offset + 4096, IoVec.of(piece)), { ...error, offset: offset + 4096 });
    // Below the end, in a hole: there is no page for it either, and tryWritev does not claim that there was.
    await storage.resize(32 << 20);
    assert.equal(storage.tryWritev(20 << 20, IoVec.of(piece)), false);

    await storage.resize(offset);
    await storage.resize(0);
    await storage.writev(0, IoVec.of(piece));
    assert.equal(storage.size, piece.length);
  });
}

test('openStorage takes native storage where there is an addon', async (t) => {
  const storage = await openStorage(await temporaryFile(t, 'disk', 'x'), { readOnly: true });
  assert.equal(storage.constructor.name, native === undefined ? 'FileStorage' : 'NativeStorage');
  await storage.close();
});
