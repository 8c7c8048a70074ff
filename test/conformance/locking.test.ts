/** Image locks, in both directions between us and QEMU's programs. */

import assert from 'node:assert/strict';
import { stat } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { FallbackLocker } from '../../formats/storage/fallback-locks.ts';
import { openFileStorage } from '../../formats/storage/file.ts';
import { locksOnFile } from '../../formats/storage/lock-holders.ts';
import type { FileIdentity } from '../../formats/storage/open-file.ts';
import type { LockMode, Storage } from '../../formats/storage/storage.ts';
import { openNativeStorage } from '../../src/io/native-storage.ts';
import { requireAddon } from '../support/addon.ts';
import { type RunningProcess, run, start } from '../support/process.ts';
import { qemu, qemuIoResult } from '../support/qemu.ts';
import { findProgram, requires } from '../support/requires.ts';

type Opener = (path: string, options: { readOnly: boolean }) => Promise<Storage & { lockNotice?: string | undefined }>;

const noQemu = requires.qemuIo() || requires.qemuNbd() || requires.linux();
const lockers: readonly { name: string; open: Opener; skip: string | false }[] = [
  {
    name: 'addon',
    open: openNativeStorage,
    skip: noQemu || requireAddon(),
  },
  {
    name: 'Perl',
    open: openFileStorage,
    skip: noQemu || requires.that(findProgram('perl') !== undefined, 'no Perl'),
  },
];

/** qemu-nbd on an image, ready to serve: its locks are taken. */
async function qemuNbd(t: TestContext, path: string, ...args: string[]): Promise<RunningProcess> {
  const socket = `${path}.socket`;
  const server = start(t, 'qemu-nbd', ['-f', 'qcow2', '--persistent', '-k', socket, ...args, path]);
  for (;;) {
    const probe = await run('qemu-img', ['info', `nbd+unix:///?socket=${socket}`]);
    if (probe.status === 0) return server;
    if (server.ended) throw new Error(server.stderr);
  }
}

async function image(t: TestContext): Promise<string> {
  return qemu.create(t, { size: 1 << 20 });
}

for (const { name, open, skip } of lockers) {
  /** Opens and locks; closed at the test's end. */
  const held = async (t: TestContext, path: string, mode: LockMode): Promise<Storage> => {
    const storage = await open(path, { readOnly: mode !== 'write' });
    t.after(() => storage.close());
    await storage.lock(mode);
    return storage;
  };

  test(`${name}: an image that we write is refused by qemu-io and qemu-img, also for reading`, { skip }, async (t) => {
    const path = await image(t);
    const storage = await held(t, path, 'write');
    const writer = await qemuIoResult(path, ['write 0 512']);
    assert.notEqual(writer.status, 0);
    assert.match(writer.stderr, /Failed to get "write" lock|Failed to get "consistent read" lock/);
    const reader = await run('qemu-img', ['info', path]);
    assert.match(reader.stderr, /Failed to get shared "write" lock/);
    assert.equal((await run('qemu-img', ['info', '-U', path])).status, 0);

    await storage.lock('none');
    assert.equal((await qemuIoResult(path, ['write 0 512'])).status, 0);
  });

  test(`${name}: an image that we read is read by QEMU and not written`, { skip }, async (t) => {
    const path = await image(t);
    await held(t, path, 'read');
    assert.equal((await run('qemu-img', ['check', path])).status, 0);
    const writer = await qemuIoResult(path, ['write 0 512']);
    assert.match(writer.stderr, /Failed to get "write" lock/);
  });

  test(`${name}: a backing image that we read may be read and written by QEMU`, { skip }, async (t) => {
    const path = await image(t);
    await held(t, path, 'backing');
    assert.equal((await qemuIoResult(path, ['write 0 512'])).status, 0);
  });

  test(`${name}: an image that qemu-nbd writes is LOCKED for us, with its name and pid`, { skip }, async (t) => {
    const path = await image(t);
    const server = await qemuNbd(t, path);
    for (const mode of ['write', 'read'] as const) {
      const storage = await open(path, { readOnly: mode === 'read' });
      t.after(() => storage.close());
      await assert.rejects(storage.lock(mode), {
        code: 'LOCKED',
        path,
        message: `${path} is in use: held by qemu-nbd (pid ${server.pid}), which writes it`,
        help: 'Stop it, or read with -U',
      });
      // Nothing was kept: only qemu-nbd's locks are there.
      const locks = (await locksOnFile(await identityOf(path))) ?? [];
      assert.deepEqual(locks.map(({ first, last }) => [first, last]).sort(), [
        [100, 101],
        [103, 103],
        [201, 201],
        [203, 203],
      ]);
      await storage.lock('shared');
      await storage.lock('none');
    }
    await server.stop();
    await held(t, path, 'write');
  });

  test(`${name}: an image that qemu-nbd reads may be read and not written`, { skip }, async (t) => {
    const path = await image(t);
    const server = await qemuNbd(t, path, '--read-only');
    await held(t, path, 'read');
    const writer = await open(path, { readOnly: false });
    t.after(() => writer.close());
    await assert.rejects(writer.lock('write'), {
      code: 'LOCKED',
      message: new RegExp(`held by qemu-nbd \\(pid ${server.pid}\\), which reads it`),
    });
  });

  test(`${name}: the locks end with close, and an overlay's base can be taken as backing beside QEMU`, {
    skip,
  }, async (t) => {
    const base = await image(t);
    const overlay = await qemu.create(t, { backing: base });
    await qemuNbd(t, overlay);
    await held(t, base, 'backing');
    const other = await image(t);
    const storage = await held(t, other, 'write');
    await storage.close();
    assert.equal((await qemuIoResult(other, ['write 0 512'])).status, 0);
  });

  test(`${name}: changing modes keeps what both have, and a change that fails leaves the old locks`, {
    skip,
  }, async (t) => {
    const path = await image(t);
    const storage = await open(path, { readOnly: false });
    t.after(() => storage.close());
    const identity = await identityOf(path);
    const bytes = async (): Promise<number[]> =>
      ((await locksOnFile(identity)) ?? [])
        .flatMap(({ first, last }) => Array.from({ length: last - first + 1 }, (_, i) => first + i))
        .sort((a, b) => a - b);

    const layouts: [LockMode, number[]][] = [
      ['read', [100, 201, 203]],
      ['write', [100, 101, 103, 201, 203]],
      ['backing', [100]],
      ['shared', [100]],
      ['read', [100, 201, 203]],
    ];
    for (const [mode, layout] of layouts) {
      await storage.lock(mode);
      assert.deepEqual(await bytes(), layout, mode);
      assert.equal(storage.lockNotice, undefined);
    }

    const second = await open(path, { readOnly: true });
    t.after(() => second.close());
    await second.lock('read');
    await assert.rejects(storage.lock('write'), {
      code: 'LOCKED',
      message: /this program has it open already, which reads it/,
    });
    await second.lock('none');
    assert.deepEqual(await bytes(), [100, 201, 203]);
    await storage.lock('none');
    assert.deepEqual(await bytes(), []);
  });
}

test('without addon and Perl an image in use is found through /proc/locks, and a notice says that ours is not seen', {
  skip: noQemu,
}, async (t) => {
  const path = await image(t);
  const server = await qemuNbd(t, path);
  const storage = await openFileStorage(path, {
    readOnly: false,
    locker: new FallbackLocker('/nonexistent/perl'),
  });
  t.after(() => storage.close());
  await assert.rejects(storage.lock('write'), {
    code: 'LOCKED',
    message: new RegExp(`qemu-nbd \\(pid ${server.pid}\\)`),
  });
  await server.stop();
  await storage.lock('write');
  assert.match(storage.lockNotice ?? '', /other programs cannot see that the image is in use/);
});

test('a POSIX write lock on the whole file is a conflict that names its process', {
  skip: noQemu || requires.that(findProgram('perl') !== undefined, 'no Perl'),
}, async (t) => {
  const path = await image(t);
  const script = `
    open(my $f, '+<', $ARGV[0]) or die; $| = 1;
    my $range = pack('s s x4 q q i x4', 1, 0, 0, 0, 0); # F_WRLCK, all of it
    fcntl($f, 6, $range) or die; # F_SETLK
    print "locked\\n"; sleep 60;`;
  const other = start(t, 'perl', ['-e', script, path]);
  await other.waitForLine(/^locked$/);
  for (const { open, skip } of lockers) {
    if (skip !== false) continue;
    const storage = await open(path, { readOnly: false });
    t.after(() => storage.close());
    await assert.rejects(storage.lock('write'), { code: 'LOCKED', message: new RegExp(`perl \\(pid ${other.pid}\\)`) });
    await storage.lock('shared');
  }
});

async function identityOf(path: string): Promise<FileIdentity> {
  const { dev, ino } = await stat(path, { bigint: true });
  return { device: dev, inode: ino };
}
