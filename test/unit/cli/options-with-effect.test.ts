/** No option is taken and then does nothing. */

import assert from 'node:assert/strict';
import { readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { cli } from '../../support/cli.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

test('options about what is not there are refused, with the option that is missing', async (t) => {
  const folder = await temporaryDirectory(t);
  const [source, target] = [join(folder, 'a.raw'), join(folder, 'b.img')];
  await writeFile(source, Buffer.alloc(MiB, 1));
  for (const [args, missing] of [
    [['convert', '--target-is-zero', '-O', 'raw', source, target], /say -n/],
    [['convert', '-F', 'raw', '-O', 'qcow2', source, target], /name it with -B/],
    [['convert', '-o', 'backing_fmt=raw', '-O', 'qcow2', source, target], /name it with -B/],
    [['create', '-f', 'qcow2', '-F', 'raw', target, '1M'], /name it with -b/],
    [['create', '-f', 'qcow2', '-u', target, '1M'], /name it with -b/],
    [['measure', '-O', 'qcow2', '-o', 'size=1M', source], /-o size/],
    [['map', '--json', '--compat', 'foo', source], /A version of QEMU is something like 7\.2/],
    [['info', '--json', '--compat', '', source], /A version of QEMU/],
    [['snapshot', 'export', '--json', source, 'x', target], /nothing that could be JSON/],
    [['snapshot', 'export', '-F', 'raw', source, 'x', target], /name it with -b/],
  ] as const) {
    const { status, stderr } = await cli(...args);
    assert.equal(status, 2, args.join(' '));
    assert.match(stderr, missing, args.join(' '));
  }
  assert.deepEqual(await readdir(folder), ['a.raw']);
});

test('a size that is too large is told from what is no size', async (t) => {
  const target = join(await temporaryDirectory(t), 'a.qcow2');
  for (const [size, message] of [
    ['7E', /more than lunette counts: sizes are below 8 PiB/],
    ['9007199254740992', /more than lunette counts/],
    ['1Z', /A size is a number of bytes, or one with k, M, G, T or P/],
    ['ten', /A size is a number of bytes/],
  ] as const) {
    const { status, stderr } = await cli('create', '-f', 'qcow2', target, size);
    assert.equal(status, 2, size);
    assert.match(stderr, message, size);
    assert.match((await cli('create', '-f', 'qcow2', '-o', `size=${size}`, target)).stderr, message, size);
  }
});

test('a disk is not converted onto itself, under whatever name, nor onto what it stands on', async (t) => {
  const folder = await temporaryDirectory(t);
  const path = (name: string): string => join(folder, name);
  await writeFile(path('a.raw'), Buffer.alloc(MiB, 1));
  await symlink('a.raw', path('link.raw'));
  assert.equal((await cli('create', '-q', '-f', 'qcow2', '-b', 'a.raw', '-F', 'raw', path('top.qcow2'))).status, 0);
  for (const [from, to, message] of [
    ['a.raw', 'a.raw', /this is what is to be read: a disk cannot be converted onto itself \(INVALID\)/],
    ['a.raw', 'link.raw', /this is what is to be read/],
    ['top.qcow2', 'a.raw', /top\.qcow2, which is to be read, stands on it/],
  ] as const) {
    const { status, stderr } = await cli('convert', '-O', 'raw', path(from), path(to));
    assert.equal(status, 1, `${from} ${to}`);
    assert.match(stderr, message);
  }
  assert.deepEqual(await readFile(path('a.raw')), Buffer.alloc(MiB, 1));
});

test('a backing format for what is written in place is refused', async (t) => {
  const folder = await temporaryDirectory(t);
  await writeFile(join(folder, 'a.raw'), Buffer.alloc(MiB, 1));
  await writeFile(join(folder, 'b.raw'), Buffer.alloc(MiB, 2));
  const { status } = await cli('convert', '-n', '-F', 'raw', '-O', 'raw', join(folder, 'a.raw'), join(folder, 'b.raw'));
  assert.equal(status, 2);
  assert.deepEqual(await readFile(join(folder, 'b.raw')), Buffer.alloc(MiB, 2));
});
