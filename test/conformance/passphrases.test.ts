/** `--secret-file` wherever an image is opened, key slots of `lunette amend`, and what QEMU's programs make of the result. */

import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import {
  createByUs,
  imageOptions,
  patiently,
  qemuIoEncrypted,
  type Scene,
  scene,
  secretObject,
} from '../support/luks.ts';
import { run, runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';

const SIZE = 4 * MiB;
const QUICK = 'encrypt.format=luks,encrypt.iter-time=10';

async function ok(...args: string[]): Promise<string> {
  const result = await cli(...args);
  assert.equal(result.status, 0, `${args.join(' ')}: ${result.stderr}`);
  return result.stdout;
}

async function refused(text: RegExp, ...args: string[]): Promise<void> {
  const { status, stderr } = await cli(...args);
  assert.notEqual(status, 0, args.join(' '));
  assert.match(stderr, text, args.join(' '));
}

async function passphrase(at: Scene, name: string, text = name): Promise<string> {
  const file = join(at.directory, name);
  await writeFile(file, text);
  return file;
}

/** Whether QEMU opens it with that passphrase; we must agree. */
async function opens(at: Scene, secret: string): Promise<boolean> {
  const args = [...secretObject(secret), '--image-opts', imageOptions(at.path), '-c', 'read -q 0 4k'];
  const byQemu = (await run('qemu-io', args)).status === 0;
  const byUs = (await cli('checksum', '--secret-file', secret, at.path)).status === 0;
  assert.equal(byUs, byQemu, `${secret}: one of us opens it`);
  return byUs;
}

test('every command that opens an encrypted image takes --secret-file, and says without it what is missing', {
  skip: requires.qemuIo(),
}, async (t) => {
  const at = await scene(t);
  const { secret, path } = at;
  await createByUs(at, QUICK, SIZE);
  await qemuIoEncrypted(at, 'luks', 'write -q -P 7 64k 1M');
  const base = join(at.directory, 'base.qcow2');
  const overlay = join(at.directory, 'overlay.qcow2');
  await qemu.img('create', '-q', '-f', 'qcow2', base, '4M');
  await qemu.img('create', '-q', '-f', 'qcow2', '-b', path, '-F', 'qcow2', overlay);
  const raw = join(at.directory, 'raw');
  const COMMANDS: readonly string[][] = [
    ['convert', '-O', 'raw', path, raw],
    ['compare', path, path],
    ['checksum', path],
    ['map', '--json', path],
    ['measure', '-O', 'qcow2', path],
    ['resize', path, '+1M'],
    ['amend', '-o', 'lazy_refcounts=on', path],
    ['amend', '-o', 'size=6M,lazy_refcounts=off', path],
    ['bitmap', '--add', path, 'b'],
    ['bitmap', '--clear', path, 'b'],
    ['bitmap', '--remove', path, 'b'],
    ['snapshot', 'create', path, 'one'],
    ['snapshot', 'diff', '--content', path, 'one'],
    ['snapshot', 'export', path, 'one', join(at.directory, 'one.qcow2')],
    ['snapshot', 'apply', path, 'one'],
    ['snapshot', 'delete', path, 'one'],
    ['snapshot', '-c', 'two', path],
    ['rebase', '-b', base, '-F', 'qcow2', overlay],
    ['rebase', '-b', path, '-F', 'qcow2', overlay],
    ['commit', overlay],
  ];
  const wrong = await passphrase(at, 'wrong');
  for (const args of COMMANDS) {
    await refused(/encrypted.*\(ENCRYPTED\)\n.*--secret-file FILE/s, ...args);
    const [command = '', ...rest] = args;
    const inGroup = /^[a-z]/.test(rest[0] ?? '') && command === 'snapshot';
    const words = inGroup ? [command, rest[0] as string] : [command];
    const others = inGroup ? rest.slice(1) : rest;
    await refused(/the passphrase does not open it|ENCRYPTED/, ...words, '--secret-file', wrong, ...others);
    // Each is tried: the second one opens it.
    await ok(...words, '--secret-file', wrong, '--secret-file', secret, ...others);
  }
  await ok('info', path);
  await ok('check', path);
  await ok('check', '--secret-file', secret, path);
  await refused(/the passphrase does not open it.*\(ENCRYPTED\)/, 'check', '--secret-file', wrong, path);
  await runOk('qemu-img', ['check', ...secretObject(secret), '--image-opts', imageOptions(path)]);
});

test('an image is converted to one with another passphrase, and onto one that has its own', {
  skip: requires.qemuIo(),
}, async (t) => {
  const at = await scene(t);
  await createByUs(at, QUICK, SIZE);
  await qemuIoEncrypted(at, 'luks', 'write -q -P 7 64k 1M');
  const other = await passphrase(at, 'other');
  const target = join(at.directory, 'target.qcow2');
  const secrets = ['--secret-file', at.secret, '--target-secret-file', other];
  await ok('convert', ...secrets, '-O', 'qcow2', '-o', QUICK, '--verify', at.path, target);
  const there = { ...at, secret: other, path: target };
  await qemuIoEncrypted(there, 'luks', 'read -q -P 7 64k 1M');
  await qemuIoEncrypted(at, 'luks', 'write -q -P 9 2M 1M');
  await ok('convert', '-n', ...secrets, '-O', 'qcow2', at.path, target);
  await qemuIoEncrypted(there, 'luks', 'read -q -P 9 2M 1M');
  await ok('compare', '--secret-file', at.secret, '--secret-file', other, at.path, target);
});

test('passphrases are added and taken away as QEMU does it, from files only, and never the last one', {
  skip: requires.qemuIo(),
}, async (t) => {
  const at = await scene(t);
  const { path, secret } = at;
  await createByUs(at, QUICK, SIZE);
  await qemuIoEncrypted(at, 'luks', 'write -q -P 7 64k 1M');
  const second = await passphrase(at, 'second');
  const third = await passphrase(at, 'third', 'third\n');
  const opened = ['--secret-file', secret];
  const add = (file: string, more = '') =>
    `encrypt.state=active,encrypt.new-secret-file=${file},encrypt.iter-time=10${more}`;

  const before = await readFile(path);
  for (const [text, ...args] of [
    [/--secret-file/, '-o', add(second)],
    [/no passphrase that was given opens the image/, '--secret-file', second, '-o', add(second)],
    [/needs a new passphrase/, ...opened, '-o', 'encrypt.state=active'],
    [/passphrases are in files: encrypt\.new-secret-file=FILE/, '-o', 'encrypt.state=active,encrypt.new-secret=x'],
    [/encrypt\.state is active .* or inactive/, '-o', 'encrypt.keyslot=1'],
    [/key slot 0 is in use/, ...opened, '-o', add(second, ',encrypt.keyslot=0')],
    [/no key slot 8/, ...opened, '-o', add(second, ',encrypt.keyslot=8')],
    [/keyslot is a number/, ...opened, '-o', add(second, ',encrypt.keyslot=one')],
    [
      /lazy_refcounts and key slots are amended one after the other/,
      ...opened,
      '-o',
      `lazy_refcounts=on,${add(second)}`,
    ],
    [/encrypt\.cipher-alg cannot be amended/, '-o', 'encrypt.state=active,encrypt.cipher-alg=aes-128'],
    [/nobody could open the image any more.*--force/s, '-o', 'encrypt.state=inactive,encrypt.keyslot=0'],
    [/nobody could open/, '-o', `encrypt.state=inactive,encrypt.old-secret-file=${secret}`],
    [/opens no key slot/, '-o', `encrypt.state=inactive,encrypt.old-secret-file=${second}`],
    [/second.*NOT_FOUND|NOT_FOUND/, ...opened, '-o', add(`${second}.missing`)],
  ] as const) {
    await refused(text, 'amend', ...args, path);
  }
  assert.ok((await readFile(path)).equals(before), 'what is refused has changed nothing');
  await refused(/raw images have no key slots|UNSUPPORTED/, 'amend', '-f', 'raw', ...opened, '-o', add(second), path);

  assert.equal(await ok('amend', ...opened, '-o', add(second), path), 'Key slot 1 has the new passphrase.\n');
  assert.equal(await ok('amend', '-q', ...opened, '-o', add(third, ',encrypt.keyslot=6'), path), '');
  assert.deepEqual([await opens(at, secret), await opens(at, second), await opens(at, third)], [true, true, true]);
  const slots = async (): Promise<boolean[]> => {
    const { 'format-specific': ours } = JSON.parse(await ok('info', '--json', '--compat', '7.2', path)) as {
      'format-specific': { data: { encrypt: { slots: { active: boolean }[] } } };
    };
    assert.deepEqual(ours, (await qemu.info(path))['format-specific']);
    return ours.data.encrypt.slots.map(({ active }) => active);
  };
  assert.deepEqual(await slots(), [true, true, false, false, false, false, true, false]);
  assert.match(await ok('info', path), /slots:\n +\[0\]:\n +active: true\n/);

  await ok('amend', '-o', `encrypt.state=inactive,encrypt.old-secret-file=${secret}`, path);
  // One that an editor ended with a newline, and one that QEMU adds.
  const edited = await passphrase(at, 'edited', 'second\n');
  const fourth = await passphrase(at, 'fourth');
  const byQemu = 'encrypt.state=active,encrypt.new-secret=n,encrypt.keyslot=3,encrypt.iter-time=10';
  const objects = [...secretObject(fourth, 'n'), ...secretObject(third)];
  await patiently('amend', ...objects, '--image-opts', '-o', byQemu, imageOptions(path));
  assert.equal(
    await ok('amend', '-o', `encrypt.state=inactive,encrypt.old-secret-file=${edited}`, path),
    'Key slot 1 is free.\n',
  );
  assert.deepEqual(await slots(), [false, false, false, true, false, false, true, false]);
  assert.equal(await opens(at, fourth), true);
  await qemuIoEncrypted({ ...at, secret: fourth }, 'luks', 'read -q -P 7 64k 1M');

  const gone = join(at.directory, 'gone.qcow2');
  await copyFile(path, gone);
  await ok('amend', '-o', 'encrypt.state=inactive,encrypt.keyslot=3', gone);
  await ok('amend', '--force', '-o', 'encrypt.state=inactive,encrypt.keyslot=6', gone);
  assert.equal(await opens({ ...at, path: gone }, third), false);
});

for (const options of [
  '',
  ',cluster_size=4096',
  ',cluster_size=2M',
  ',encrypt.cipher-alg=aes-128',
  ',encrypt.cipher-mode=cbc',
  ',refcount_bits=64,cluster_size=512',
  ',extended_l2=on',
  ',preallocation=full',
]) {
  test(`measure counts the header of an encrypted image as QEMU does${options}`, {
    skip: requires.qemuImg(),
  }, async (t) => {
    const at = await scene(t);
    const measure = ['measure', '-O', 'qcow2', '--size', '3G', '--output'];
    type Figures = Record<'required' | 'fully-allocated', number>;
    const theirs = async (...more: string[]): Promise<Figures> =>
      JSON.parse(await patiently(...measure, 'json', ...more));
    const ours = async (...more: string[]): Promise<Figures> => JSON.parse(await ok(...measure, 'json', ...more));
    const keyed = `${QUICK},encrypt.key-secret=s${options}`;
    const plain = ['-o', options.replaceAll(/,encrypt[^,]*/g, '').replace(/^,/, '') || 'compat=1.1'];
    const [theirsWith, theirsWithout] = [await theirs(...secretObject(at.secret), '-o', keyed), await theirs(...plain)];
    const [oursWith, oursWithout] = [await ours('-o', QUICK + options), await ours(...plain)];
    assert.equal(oursWith['fully-allocated'], theirsWith['fully-allocated']);
    // QEMU counts the tables of the whole disk in both, and we those that are needed.
    assert.equal(oursWith.required - oursWithout.required, theirsWith.required - theirsWithout.required);
  });
}

test('measure -o help lists the options of the format', async () => {
  assert.equal(await ok('measure', '-O', 'qcow2', '-o', 'help'), await ok('create', '-f', 'qcow2', '-o', 'help'));
});
