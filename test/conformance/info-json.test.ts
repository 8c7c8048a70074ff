/** `lunette info` beside `qemu-img info`: the same members with the same values, and the same lines of text. */

import assert from 'node:assert/strict';
import { truncate } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { run, runOk } from '../support/process.ts';
import { type CreateOptions, qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory, temporaryFile } from '../support/temporary.ts';

const skip = requires.qemuIo();

type Json = Record<string, unknown>;

/**
 * What may differ, and why. Everything else is compared member by member.
 *
 * - children: QEMU has printed them since 8.0, Debian 12 has 7.2. Compared where qemu-img prints them too.
 */
function withoutAllowed(info: Json, theirs: Json): Json {
  const copy = structuredClone(info);
  if (theirs.children === undefined) delete copy.children;
  return copy;
}

async function ours(args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await cli('info', ...args);
  assert.equal(status, 0, stderr);
  return stdout;
}

/** Compares text and JSON of both programs about one image. */
async function assertSameInfo(path: string, ...args: string[]): Promise<void> {
  const [theirText, ourText] = [await runOk('qemu-img', ['info', ...args, path]), await ours([...args, path])];
  const [theirJson, ourJson] = [
    await runOk('qemu-img', ['info', '--output=json', ...args, path]),
    await ours(['--output=json', ...args, path]),
  ];
  const theirs = [JSON.parse(theirJson) as Json | Json[]].flat();
  const own = [JSON.parse(ourJson) as Json | Json[]].flat();
  assert.deepEqual(
    own.map((info, i) => withoutAllowed(info, theirs[i] ?? {})),
    theirs.map((info) => withoutAllowed(info, info)),
  );
  // Without the exceptions the text is the same to the byte, and so is the JSON when no children are printed.
  if (theirs.some((info) => info.children !== undefined)) return;
  assert.equal(ourText, theirText);
  assert.equal(await ours(['--json', '--compat', '7.2', ...args, path]), theirJson);
}

const IMAGES: Readonly<Record<string, CreateOptions>> = {
  'the defaults': { size: 10 * MiB },
  'compat 0.10': { size: 5000 * MiB, options: { compat: '0.10' } },
  'clusters of 512 bytes': { size: MiB, clusterSize: 512 },
  'clusters of 2 MiB': { size: 3 * MiB + 512, clusterSize: 2 * MiB },
  'refcounts of one bit': { size: MiB, options: { refcount_bits: 1 } },
  'refcounts of 64 bits': { size: MiB, options: { refcount_bits: 64 } },
  'lazy refcounts': { size: MiB, options: { lazy_refcounts: 'on' } },
  'zstd clusters': { size: MiB, options: { compression_type: 'zstd' } },
  subclusters: { size: MiB, options: { extended_l2: 'on' } },
  'preallocated metadata': { size: 100 * MiB, options: { preallocation: 'metadata' } },
  'no size at all': { size: 0 },
  'more than a terabyte': { size: 2 ** 41 + 512 },
};

for (const [name, options] of Object.entries(IMAGES)) {
  test(`info agrees with qemu-img on a qcow2 with ${name}`, { skip }, async (t) => {
    await assertSameInfo(await qemu.create(t, options));
  });
}

test('info agrees on raw images: sparse, filled, and ending inside a sector', { skip }, async (t) => {
  const sparse = await temporaryFile(t, 'sparse.raw', '');
  await truncate(sparse, 10 * MiB);
  await assertSameInfo(sparse);
  await qemu.io(sparse, 'write 1M 3M');
  await assertSameInfo(sparse);
  await truncate(sparse, 3_333_333);
  await assertSameInfo(sparse);
  await assertSameInfo(sparse, '-f', 'raw');
});

test('info agrees on snapshots, whatever they are called', { skip }, async (t) => {
  const image = await qemu.create(t, { size: 10 * MiB });
  for (const name of ['first', '1', 'a name that is longer than its column', 'with blank and ünïcode', '']) {
    await qemu.img('snapshot', '-c', name, image);
  }
  await assertSameInfo(image);
  await qemu.img('snapshot', '-d', 'first', image);
  await assertSameInfo(image);
});

test('info agrees on bitmaps', { skip }, async (t) => {
  const image = await qemu.create(t, { size: 10 * MiB });
  await qemu.img('bitmap', '--add', image, 'enabled');
  await qemu.img('bitmap', '--add', '--disable', '-g', '32k', image, 'disabled');
  await assertSameInfo(image);
});

test('info agrees on an external data file', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const image = await qemu.create(t, {
    size: 10 * MiB,
    path: join(directory, 'disk.qcow2'),
    options: { data_file: join(directory, 'data.raw'), data_file_raw: 'on' },
  });
  const strip = (text: string): Json => {
    const info = JSON.parse(text) as Json;
    // qemu-img 7.2 counts the data file in, later ones do not open it.
    delete info['actual-size'];
    delete info.children;
    return info;
  };
  assert.deepEqual(
    strip(await ours(['--json', image])),
    strip(await runOk('qemu-img', ['info', '--output=json', image])),
  );
});

test('info agrees on an encrypted image, without its secret', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  for (const [format, options] of [
    ['luks', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'],
    ['aes', 'encrypt.format=aes,encrypt.key-secret=s'],
  ] as const) {
    const image = join(directory, `${format}.qcow2`);
    const made = await run('qemu-img', [
      'create',
      '-q',
      '--object',
      'secret,id=s,data=abc',
      '-f',
      'qcow2',
      '-o',
      options,
      image,
      '1M',
    ]);
    assert.equal(made.status, 0, made.stderr);
    await assertSameInfo(image);
  }
});

test('info agrees on an image that was not closed', { skip }, async (t) => {
  const image = await qemu.create(t, { size: 10 * MiB, options: { lazy_refcounts: 'on' } });
  await run('qemu-io', ['-c', 'write 0 64k', '-c', 'abort', image]);
  const { status } = await run('qemu-img', ['info', image]);
  assert.equal(status, 0);
  await assertSameInfo(image);
  assert.match(await ours([image]), /^cleanly shut down: no$/m);
});

/** base ← middle ← top, in three directories, named in three ways. */
async function chain(t: Cleanup): Promise<{ directory: string; top: string }> {
  const directory = await temporaryDirectory(t);
  await runOk('mkdir', [join(directory, 'a'), join(directory, 'b')]);
  const base = await qemu.create(t, { size: 10 * MiB, format: 'raw', path: join(directory, 'base.raw') });
  const middle = join(directory, 'a', 'middle.qcow2');
  await qemu.create(t, { path: middle, backing: base, backingFormat: 'raw' });
  const top = join(directory, 'b', 'top.qcow2');
  await qemu.create(t, { path: top, backing: '../a/middle.qcow2', clusterSize: 4 * KiB });
  return { directory, top };
}

test('info agrees on backing files, by relative and absolute names', { skip }, async (t) => {
  const { directory, top } = await chain(t);
  await assertSameInfo(top);
  await assertSameInfo(join(directory, 'a', 'middle.qcow2'));
  const before = process.cwd();
  process.chdir(dirname(top));
  try {
    await assertSameInfo(basename(top));
    await assertSameInfo(`./${basename(top)}`);
  } finally {
    process.chdir(before);
  }
});

test('info agrees on a backing file that is not there, which it does not look for', { skip }, async (t) => {
  const { directory, top } = await chain(t);
  await runOk('rm', [join(directory, 'base.raw'), join(directory, 'a', 'middle.qcow2')]);
  await assertSameInfo(top);
  const followed = await cli('info', '--backing-chain', '--allow', directory, top);
  assert.equal(followed.status, 1);
  assert.match(followed.stderr, /middle\.qcow2.*\(NOT_FOUND\)/);
});

test('info --backing-chain agrees, once the directories are allowed', { skip }, async (t) => {
  const { directory, top } = await chain(t);
  const denied = await cli('info', '--backing-chain', top);
  assert.equal(denied.status, 1);
  assert.match(denied.stderr, /\(DENIED\)\n.*--allow/);
  assert.equal(denied.stdout, '');
  const [theirs, own] = [
    await qemu.img('info', '--backing-chain', '--output=json', top),
    await ours(['--backing-chain', '--json', '--compat', '7.2', '--allow', directory, top]),
  ];
  const strip = (text: string) => (JSON.parse(text) as Json[]).map(({ children: _, ...info }) => info);
  assert.deepEqual(strip(own), strip(theirs));
  assert.equal(await ours(['--backing-chain', '--allow-any', top]), await qemu.img('info', '--backing-chain', top));
});

test('a chain that comes back to itself ends with an error', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const a = await qemu.create(t, { size: MiB, path: join(directory, 'a.qcow2') });
  const b = await qemu.create(t, { path: join(directory, 'b.qcow2'), backing: 'a.qcow2' });
  await qemu.img('rebase', '-u', '-b', 'b.qcow2', '-F', 'qcow2', a);
  const { status, stderr } = await cli('info', '--backing-chain', b);
  assert.equal(status, 1);
  assert.match(stderr, /\(CORRUPT\)/);
});

test('info changes nothing: neither bytes nor times', { skip }, async (t) => {
  const image = await qemu.create(t, { size: 10 * MiB, options: { lazy_refcounts: 'on' } });
  await run('qemu-io', ['-c', 'write 0 64k', '-c', 'abort', image]);
  const facts = () => runOk('sh', ['-c', `stat -c '%Y %Z %s' ${image} && sha256sum ${image}`]);
  const before = await facts();
  await ours([image]);
  await ours(['--json', '-U', image]);
  assert.equal(await facts(), before);
});
