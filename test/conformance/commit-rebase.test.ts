import assert from 'node:assert/strict';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { cli } from '../support/cli.ts';
import { qemu, qemuIo } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuImg() || requires.qemuIo();
const KIB = 1024;

interface Chain {
  readonly folder: string;
  path(name: string): string;
}

/** top over middle over base, all different in size, written at random. */
async function makeChain(t: TestContext, random: Random, baseFormat = 'qcow2'): Promise<Chain> {
  const folder = await temporaryDirectory(t);
  const path = (name: string): string => join(folder, name);
  const sizes = { base: 3000 * KIB, middle: 2500 * KIB, top: 4000 * KIB, other: 3500 * KIB };
  await qemu.create(t, { path: path('base'), size: sizes.base, format: baseFormat });
  await qemu.create(t, { path: path('middle'), size: sizes.middle, backing: 'base', backingFormat: baseFormat });
  await qemu.create(t, { path: path('top'), size: sizes.top, backing: 'middle', clusterSize: 4 * KIB });
  await qemu.create(t, { path: path('other'), size: sizes.other });
  for (const [name, size] of Object.entries(sizes)) {
    const commands = Array.from({ length: 10 }, (_, i) => {
      const length = random.between(1, 150) * KIB;
      const offset = random.below(size / KIB - 200) * KIB;
      return i % 4 === 3
        ? `write -q -z ${offset} ${length}`
        : `write -q -P ${random.between(1, 255)} ${offset} ${length}`;
    });
    await qemuIo(path(name), commands, '-f', name === 'base' ? baseFormat : 'qcow2');
  }
  await qemu.convert(path('top'), path('before'), '-O', 'raw');
  return { folder, path };
}

for (const baseFormat of ['qcow2', 'raw']) {
  test(`a committed base of format ${baseFormat} holds what qemu-img's commit gives, and the overlay is empty`, {
    skip,
  }, async (t) => {
    const { path } = await makeChain(t, randomFor(t), baseFormat);
    for (const name of ['middle', 'top', 'base']) await copyFile(path(name), path(`${name}.copy`));
    // qemu-img's turn, on the same names.
    await qemu.img('commit', '-q', path('top'));
    await qemu.img('commit', '-q', path('middle'));
    await qemu.convert(path('base'), path('theirs'), '-f', baseFormat, '-O', 'raw');
    for (const name of ['middle', 'top', 'base']) await copyFile(path(`${name}.copy`), path(name));

    for (const name of ['top', 'middle']) {
      const { status, stdout, stderr } = await cli('commit', path(name));
      assert.equal(status, 0, stderr);
      assert.equal(stdout, 'Image committed.\n');
      await qemu.assertClean(path(name));
      assert.ok(
        (await qemu.map(path(name))).every(({ depth }) => depth > 0),
        'something is left in the overlay',
      );
    }
    assert.ok(await qemu.compare(path('base'), path('theirs'), '-f', baseFormat, '-F', 'raw'));
    assert.ok(await qemu.compare(path('top'), path('before'), '-F', 'raw'));
  });
}

test('commit -b takes what stands between along, and leaves the overlay as it is', { skip }, async (t) => {
  const { path } = await makeChain(t, randomFor(t));
  const map = await qemu.map(path('top'));
  const { status, stderr } = await cli('commit', '-b', path('base'), path('top'));
  assert.equal(status, 0, stderr);
  await qemu.assertClean(path('base'));
  assert.ok(await qemu.compare(path('base'), path('before'), '-F', 'raw'));
  assert.deepEqual(
    (await qemu.map(path('top'))).filter(({ depth }) => depth === 0),
    map.filter(({ depth }) => depth === 0),
  );
  const none = await cli('commit', '-b', path('other'), path('top'));
  assert.equal(none.status, 1);
  assert.match(none.stderr, /Did not find '.*other' in the backing chain/);
  assert.equal((await cli('commit', path('other'))).status, 1);
});

test('an image that was rebased shows what it showed, on a longer and a shorter base, on one of its chain, and on none', {
  skip,
}, async (t) => {
  const { path } = await makeChain(t, randomFor(t));
  await qemu.create(t, { path: path('v2'), size: 4000 * KIB, backing: 'middle', options: { compat: '0.10' } });
  await qemu.io(path('v2'), 'write -q -P 7 100k 300k');
  await qemu.convert(path('v2'), path('before.v2'), '-O', 'raw');
  for (const [name, before] of [
    ['top', 'before'],
    ['v2', 'before.v2'],
  ] as const) {
    for (const base of ['other', 'base', 'middle', '']) {
      const format = base === '' ? [] : ['-F', 'qcow2'];
      const { status, stderr } = await cli('rebase', '-b', base, ...format, path(name));
      assert.equal(status, 0, stderr);
      assert.ok(await qemu.compare(path(name), path(before), '-F', 'raw'), `on ${base}`);
      await qemu.assertClean(path(name));
      const info = await qemu.info(path(name));
      assert.equal(info['backing-filename'], base === '' ? undefined : base);
      assert.equal(info['backing-filename-format'], base === '' ? undefined : 'qcow2');
    }
  }
});

test('rebase -u changes the name alone, also to one that is not there; other formats are refused', {
  skip,
}, async (t) => {
  const { path } = await makeChain(t, randomFor(t));
  const map = await qemu.map(path('top'));
  const name = `${'long/'.repeat(150)}base`;
  assert.equal((await cli('rebase', '-u', '-b', name, '-F', 'raw', path('top'))).status, 0);
  const info = await qemu.info(path('top'));
  assert.deepEqual([info['backing-filename'], info['backing-filename-format']], [name, 'raw']);
  assert.equal((await cli('rebase', '-u', '-b', 'middle', '-F', 'qcow2', path('top'))).status, 0);
  assert.deepEqual(await qemu.map(path('top')), map);
  await qemu.assertClean(path('top'));
  assert.equal((await cli('rebase', '-u', '-b', 'middle', path('top'))).status, 1);
  const long = await cli('rebase', '-u', '-b', 'x'.repeat(1100), '-F', 'raw', path('top'));
  assert.equal(long.status, 1);
  assert.match(long.stderr, /too long/);
  await qemu.create(t, { path: path('disk.vdi'), format: 'vdi', size: 1024 * KIB });
  const vdi = await cli('rebase', '-b', '', path('disk.vdi'));
  assert.match(vdi.stderr, /UNSUPPORTED/);
});
