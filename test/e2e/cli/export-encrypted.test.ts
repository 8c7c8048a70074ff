/** Encrypted images served to programs that know nothing of it, and qcow2 images whose discarded clusters keep their place. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { lunetteArgs } from '../../support/built.ts';
import { cli, readyUrls, startCliExport } from '../../support/cli.ts';
import { createByUs, imageOptions, qemuIoEncrypted, type Scene, scene, secretObject } from '../../support/luks.ts';
import { nbdMap, startNbdExport } from '../../support/nbd.ts';
import { runOk, start } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';

const SIZE = 8 * MiB;
const QUICK = 'encrypt.format=luks,encrypt.iter-time=10';

/** Two images that open with passphrases of their own; the first megabyte of each is written by QEMU. */
async function pair(t: Parameters<typeof scene>[0]): Promise<[Scene, Scene]> {
  const first = await scene(t);
  const secret = join(first.directory, 'other');
  await writeFile(secret, 'battery staple');
  const second = { ...first, secret, path: join(first.directory, 'second.qcow2') };
  for (const each of [first, second]) {
    await createByUs(each, QUICK, SIZE);
    await qemuIoEncrypted(each, 'luks', 'write -q -P 0x5a 0 1M');
  }
  return [first, second];
}

/** What was written through the export is in the image for QEMU, which finds it whole, and is nowhere in the clear. */
async function assertWritten(at: Scene): Promise<void> {
  await qemuIoEncrypted(at, 'luks', 'read -q -P 0x5a 0 1M', 'read -q -P 0x77 3M 100k', 'read -q -P 0 5M 1M');
  await runOk('qemu-img', ['check', ...secretObject(at.secret), '--image-opts', imageOptions(at.path)]);
  assert.equal((await readFile(at.path)).indexOf(Buffer.alloc(4096, 0x77)), -1);
}

test('encrypted images are read and written over iSCSI, each with its passphrase', {
  skip: requires.qemuIscsi() || requires.qemuIo(),
}, async (t) => {
  const images = await pair(t);
  const args = images.flatMap(({ secret }) => ['--secret-file', secret]);
  const running = await startCliExport(t, [...args, ...images.map(({ path }) => path)], 2);
  const urls = readyUrls(running.stdout);
  assert.equal(urls.length, 2);
  for (const url of urls) {
    const commands = ['read -P 0x5a 0 1M', 'write -P 0x77 3M 100k', 'write -z 5M 1M', 'flush', 'read -P 0x77 3M 100k'];
    const text = await runOk('qemu-io', ['-f', 'raw', ...commands.flatMap((each) => ['-c', each]), url]);
    assert.doesNotMatch(text, /failed|error/i);
  }
  running.interrupt();
  assert.equal(await running.ended, 0);
  assert.doesNotMatch(running.stdout + running.stderr, /correct horse|battery staple/);
  for (const image of images) await assertWritten(image);
});

test('encrypted images are read and written over NBD, also a snapshot of one', {
  skip: requires.qemuIo() || requires.nbdinfo(),
}, async (t) => {
  const [first, second] = await pair(t);
  assert.equal((await cli('snapshot', '-c', 'before', '--secret-file', first.secret, first.path)).status, 0);
  const args = ['--socket', '', '--secret-file', second.secret, '--secret-file', first.secret];
  const { urls, process: running } = await startNbdExport(t, [first.path, second.path], { args });
  for (const url of urls) {
    await runOk('nbdinfo', ['--size', url]);
    const commands = ['write -P 0x77 3M 100k', 'write -z 5M 1M', 'flush'];
    await runOk('qemu-io', ['-f', 'raw', ...commands.flatMap((each) => ['-c', each]), url]);
    const copy = join(first.directory, 'copy.raw');
    await runOk('nbdcopy', [url, copy]);
    const bytes = await readFile(copy);
    assert.ok(bytes.subarray(0, MiB).every((byte) => byte === 0x5a));
    assert.ok(bytes.subarray(3 * MiB, 3 * MiB + 100 * 1024).every((byte) => byte === 0x77));
    const holes = (await nbdMap(url)).filter(({ type }) => type !== 0);
    assert.ok(holes.length > 0, 'what was never written is a hole');
  }
  const snapshot = (urls[0] as string).replace('disk?', 'disk@before?');
  const text = await runOk('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 0 3M 100k', snapshot]);
  assert.doesNotMatch(text, /failed|error/i);
  assert.equal((await running.stop('SIGTERM')).status, 0);
  await assertWritten(first);
  await assertWritten(second);
});

test('without a passphrase, or with a wrong one, an export says so and serves nothing', async (t) => {
  const at = await scene(t);
  await createByUs(at, QUICK, SIZE);
  const wrong = join(at.directory, 'wrong');
  await writeFile(wrong, 'wrong');
  const empty = join(at.directory, 'empty');
  await writeFile(empty, '');
  for (const transport of ['iscsi', 'nbd']) {
    const where = ['export', '--transport', transport, '--listen', '127.0.0.1:0'];
    for (const [args, message] of [
      [[], /disk\.qcow2: the image is encrypted, and no passphrase was given \(ENCRYPTED\)\n.*--secret-file FILE/],
      [
        ['--secret-file', wrong],
        /disk\.qcow2: the image is encrypted, and the passphrase does not open it \(ENCRYPTED\)/,
      ],
      [['--secret-file', empty], /empty: the file with the passphrase is empty \(INVALID\)/],
      [['--secret-file', `${wrong}.none`], /wrong\.none: .*\(NOT_FOUND\)/],
    ] as const) {
      const { status, stdout, stderr } = await cli(...where, ...args, at.path);
      assert.deepEqual([status, stdout], [1, '']);
      assert.match(stderr, message);
    }
  }
});

test('an overlay of an encrypted image is not encrypted, which is said', async (t) => {
  const at = await scene(t);
  await createByUs(at, QUICK, SIZE);
  const running = await startCliExport(t, ['--ephemeral', '--secret-file', at.secret, at.path]);
  assert.match(running.stderr, /the image is encrypted, and what is written to its overlay is not/);
});

test('the daemon opens an encrypted image with the passphrase that its configuration names', {
  skip: requires.qemuIo(),
}, async (t) => {
  const at = await scene(t);
  await createByUs(at, QUICK, SIZE);
  await qemuIoEncrypted(at, 'luks', 'write -q -P 0x5a 0 1M');
  const config = join(at.directory, 'lunette.toml');
  const socket = join(at.directory, 'nbd.sock');
  const entry = `[[export]]\nname = "disk"\nimage = "${at.path}"\ntransport = "nbd"\nsecret-file = "${at.secret}"\n`;
  await writeFile(
    config,
    `state-directory = "${at.directory}"\n[tcmu]\nenable = false\n[nbd]\nsocket = "${socket}"\n${entry}`,
  );
  const args = lunetteArgs('daemon', '--config', config);
  const daemon = start(t, process.execPath, args);
  const ready = await daemon.waitForLine(/disk: ready (\S+)/, { stream: 'stderr' });
  await runOk('qemu-io', ['-f', 'raw', '-c', 'read -P 0x5a 0 1M', '-c', 'write -P 0x77 3M 100k', ready[1] as string]);
  daemon.child.kill('SIGTERM');
  assert.deepEqual(await daemon.wait(), { status: 0, signal: null });
  await assertWritten(at);
});

test('--discard-no-unref: what is discarded reads as zeros, keeps its place, and QEMU finds the image whole', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await qemu.create(t, { size: SIZE });
  await qemu.io(path, 'write -P 0x5a 0 4M');
  const before = await qemu.map(path);
  const at = (map: Awaited<ReturnType<typeof qemu.map>>, guest: number) => {
    const entry = map.find(({ start, length }) => start <= guest && guest < start + length);
    return entry?.offset === undefined ? undefined : entry.offset + guest - entry.start;
  };
  for (const [flags, kept] of [
    [['--discard-no-unref'], true],
    [[], false],
  ] as const) {
    const { url, process: running } = await startNbdExport(t, path, { args: ['--socket', '', ...flags] });
    await runOk('qemu-io', ['-d', 'unmap', '-f', 'raw', '-c', 'discard 1M 1M', '-c', 'flush', url]);
    const text = await runOk('qemu-io', ['-f', 'raw', '-c', 'read -P 0 1M 1M', '-c', 'read -P 0x5a 2M 1M', url]);
    assert.doesNotMatch(text, /failed|error/i);
    assert.equal((await running.stop('SIGTERM')).status, 0);
    const after = await qemu.map(path);
    assert.equal(at(after, MiB), kept ? at(before, MiB) : undefined);
    const discarded = after.find(({ start }) => start === MiB);
    assert.deepEqual([discarded?.zero, discarded?.data], [true, false]);
    await qemu.assertClean(path);
  }
  const older = await qemu.create(t, { size: SIZE, options: { compat: '0.10' } });
  const refused = await cli('export', '--discard-no-unref', '--listen', '127.0.0.1:0', older);
  assert.match(refused.stderr, /version 2 has no zero clusters.*\(UNSUPPORTED\)\n.*compat=1\.1/);
  const raw = await cli('export', '--discard-no-unref', '-f', 'raw', '--listen', '127.0.0.1:0', path);
  assert.match(raw.stderr, /discard-no-unref is for qcow2 images, and this one is raw \(UNSUPPORTED\)/);
});
