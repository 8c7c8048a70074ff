/** `lunette create` and `lunette resize`: what they make is what QEMU's programs read. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import { lunetteArgs } from '../support/built.ts';
import { cli, startCliExport } from '../support/cli.ts';
import { runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuIo();

const SHAPES: readonly (readonly [format: string, options: string])[] = [
  ['qcow2', 'cluster_size=64k'],
  ['qcow2', 'cluster_size=512,refcount_bits=1'],
  ['qcow2', 'cluster_size=2M,compression_type=zstd,lazy_refcounts=on'],
  ['qcow2', 'compat=0.10'],
  ['qcow2', 'extended_l2=on,preallocation=metadata'],
  ['qcow2', 'cluster_size=4k,preallocation=falloc'],
  ['vmdk', 'adapter_type=ide'],
  ['vmdk', 'subformat=monolithicFlat'],
  ['vmdk', 'subformat=twoGbMaxExtentSparse,hwversion=10'],
  ['vmdk', 'subformat=twoGbMaxExtentFlat'],
  ['vmdk', 'subformat=vmfs'],
  ['vmdk', 'subformat=vmfsSparse'],
  ['vmdk', 'subformat=streamOptimized'],
  ['vdi', 'static=off'],
  ['vdi', 'static=on'],
  ['raw', 'preallocation=falloc'],
  ['raw', 'preallocation=full'],
];

for (const [format, options] of SHAPES) {
  test(`create makes an empty ${format} disk that QEMU reads: ${options}`, { skip }, async (t) => {
    const path = join(await temporaryDirectory(t), `disk.${format}`);
    const result = await cli('create', '-f', format, '-o', options, path, '5M');
    assert.equal(result.status, 0, result.stderr);
    assert.match(result.stdout, new RegExp(`^Formatting '${path}', fmt=${format} .*size=${5 * MiB}\n$`));
    const zeros = await qemu.create(t, { format: 'raw', size: 5 * MiB });
    assert.equal((await qemu.info(path, '-f', format))['virtual-size'], 5 * MiB);
    assert.equal(await qemu.compare(path, zeros, '-f', format, '-F', 'raw'), true);
    if (format !== 'raw' && !/[fF]lat|vmfs$/.test(options)) await qemu.assertClean(path);
    const { size } = await stat(path);
    if (options.startsWith('preallocation')) assert.equal(size, 5 * MiB);
  });
}

test('an overlay takes size and format from its backing file, and a raw one must be called raw', {
  skip,
}, async (t) => {
  const directory = await temporaryDirectory(t);
  const base = join(directory, 'base.qcow2');
  await cli('create', '-f', 'qcow2', base, '10M');
  await qemu.io(base, 'write -P 7 1M 1M');
  const overlay = join(directory, 'overlay.qcow2');
  assert.equal((await cli('create', '-f', 'qcow2', '-b', 'base.qcow2', overlay)).status, 0);
  const info = await qemu.info(overlay);
  assert.equal(info['backing-filename'], 'base.qcow2');
  assert.equal(info['backing-filename-format'], 'qcow2');
  assert.equal(info['virtual-size'], 10 * MiB);
  assert.equal(await qemu.compare(overlay, base), true);

  const raw = join(directory, 'base.raw');
  await writeFile(raw, new Uint8Array(MiB));
  const refused = await cli('create', '-f', 'qcow2', '-b', 'base.raw', join(directory, 'on-raw.qcow2'));
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /-F raw/);
  assert.equal(existsSync(join(directory, 'on-raw.qcow2')), false);
  const said = await cli('create', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', join(directory, 'on-raw.qcow2'));
  assert.equal(said.status, 0, said.stderr);
});

test('deltas of VMDK and VDI know their parents by id, also of a disk in several files', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const at = (name: string) => join(directory, name);
  await cli('create', '-f', 'vmdk', '-o', 'subformat=twoGbMaxExtentSparse', at('base.vmdk'), '3M');
  await qemu.io(at('base.vmdk'), 'write -P 9 1M 64k');
  assert.equal((await cli('create', '-f', 'vmdk', '-b', 'base.vmdk', at('delta.vmdk'))).status, 0);
  assert.equal(await qemu.compare(at('delta.vmdk'), at('base.vmdk')), true);
  await cli('create', '-f', 'vdi', at('base.vdi'), '3M');
  assert.equal((await cli('create', '-f', 'vdi', '-b', 'base.vdi', at('delta.vdi'))).status, 0);
  assert.equal((await cli('info', at('delta.vdi'))).status, 0);
  const none = await cli('create', '-f', 'vmdk', '-b', 'base.vdi', at('wrong.vmdk'));
  assert.equal(none.status, 1);
  assert.match(none.stderr, /VMDK disks only/);
});

test('what is wrong is said before a file that is there is touched', async (t) => {
  const path = join(await temporaryDirectory(t), 'disk.qcow2');
  await writeFile(path, 'precious');
  for (const [args, why] of [
    [['-o', 'cluster_size=3k', path, '1M'], /power of two/],
    [['-o', 'cluster_size=big', path, '1M'], /number of bytes/],
    [['-o', 'clustersize=64k', path, '1M'], /no option clustersize/],
    [['-o', 'compat=0.10,refcount_bits=8', path, '1M'], /16 bits/],
    [['-b', path, path], /BAD_MAGIC|own backing file|raw/],
    [['-b', 'missing.qcow2', path], /no such file/],
    [[path], /needs a size/],
    [['-o', 'size=1M', path, '2M'], /given twice/],
  ] as const) {
    const result = await cli('create', '-f', 'qcow2', ...args);
    assert.notEqual(result.status, 0, args.join(' '));
    assert.match(result.stderr, why);
    assert.equal(await readFile(path, 'utf8'), 'precious');
  }
  const other = join(path, '..', 'new.qcow2');
  assert.equal((await cli('create', '-f', 'qcow2', '-o', 'cluster_size=3k', other, '1M')).status, 1);
  assert.deepEqual(await readdir(join(path, '..')), ['disk.qcow2']);
});

test('create -o help lists the options of a format', async () => {
  const { status, stdout } = await cli('create', '-f', 'qcow2', '-o', 'help');
  assert.equal(status, 0);
  assert.match(stdout, /^Supported qcow2 options:\n/);
  assert.match(stdout, /^ {2}cluster_size=<size> +- .*default: 65536/m);
});

test('resize grows by an amount, and shrinks only when it is told to', { skip }, async (t) => {
  for (const format of ['qcow2', 'raw', 'vdi']) {
    const path = join(await temporaryDirectory(t), `disk.${format}`);
    await cli('create', '-q', '-f', format, path, '4M');
    assert.equal((await cli('resize', '-f', format, path, '+2M')).stdout, 'Image resized.\n');
    assert.equal((await qemu.info(path, '-f', format))['virtual-size'], 6 * MiB);
    if (format === 'vdi') continue; // VDI disks do not shrink
    const refused = await cli('resize', '-f', format, path, '--', '-4M');
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /Use the --shrink option to perform a shrink operation/);
    assert.equal((await cli('resize', '-f', format, '--shrink', path, '-4M')).status, 0);
    assert.equal((await qemu.info(path, '-f', format))['virtual-size'], 2 * MiB);
  }
});

test('an image that a program has open is neither made anew nor resized', { skip }, async (t) => {
  const path = join(await temporaryDirectory(t), 'disk.qcow2');
  await cli('create', '-q', '-f', 'qcow2', path, '4M');
  await startCliExport(t, [path]);
  const before = await readFile(path);
  for (const args of [
    ['create', '-q', '-f', 'qcow2', path, '8M'],
    ['resize', path, '8M'],
  ]) {
    await assert.rejects(runOk(process.execPath, lunetteArgs(...args)), /LOCKED/);
  }
  assert.deepEqual(await readFile(path), before);
});
