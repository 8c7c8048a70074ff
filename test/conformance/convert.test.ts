/** `lunette convert`: every format into every other one, as QEMU reads the results. */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { lunetteArgs } from '../support/built.ts';
import { cli } from '../support/cli.ts';
import { run, runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { cannotRun, findProgram, requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuIo();

/** A disk with data, zeros that are written, holes, and an end inside of a cluster. */
const SIZE = 9 * MiB + 3 * 512;
const WRITES = [
  'write -P 0x11 0 200k',
  'write -P 0x22 1M 1M',
  'write -P 0 2M 1M',
  'write -z 3M 512k',
  'write -P 0x33 5000k 4k',
  'write -P 0x44 9M 1536',
];

async function sourceDisk(t: TestContext, format: string, options: Record<string, string | number> = {}) {
  const path = await qemu.create(t, { format, size: SIZE, options });
  await qemu.io(path, ...WRITES);
  return path;
}

async function convert(...args: string[]): Promise<string> {
  const result = await cli('convert', ...args);
  assert.equal(result.status, 0, result.stderr);
  return result.stdout;
}

const TARGETS: readonly (readonly [format: string, ...args: string[]])[] = [
  ['raw'],
  ['raw', '-S', '0'],
  ['qcow2'],
  ['qcow2', '-o', 'cluster_size=512'],
  ['qcow2', '-o', 'cluster_size=2M'],
  ['qcow2', '-o', 'compat=0.10'],
  ['qcow2', '-c'],
  ['qcow2', '-c', '-S', '160k'],
  ['qcow2', '-c', '-o', 'compression_type=zstd,cluster_size=4k'],
  ['vmdk'],
  ['vmdk', '-o', 'subformat=monolithicFlat'],
  ['vmdk', '-o', 'subformat=twoGbMaxExtentSparse'],
  ['vmdk', '-o', 'subformat=twoGbMaxExtentFlat'],
  ['vmdk', '-o', 'subformat=vmfs'],
  ['vmdk', '-o', 'subformat=vmfsSparse'],
  ['vmdk', '-o', 'subformat=streamOptimized'],
  ['vdi'],
  ['vdi', '-o', 'static=on'],
];

for (const [format, ...args] of TARGETS) {
  test(`raw, qcow2 and VMDK disks become ${[format, ...args].join(' ')}`, { skip }, async (t) => {
    for (const from of ['raw', 'qcow2', 'vmdk']) {
      const source = await sourceDisk(t, from);
      const target = join(await temporaryDirectory(t), `disk.${format}`);
      await convert('--verify', '-f', from, '-O', format, ...args, source, target);
      assert.equal(await qemu.compare(source, target, '-f', from, '-F', format), true, from);
      const checks = format === 'qcow2' || format === 'vdi';
      if (checks) await qemu.assertClean(target);
      if (format !== 'raw') {
        const { status, stdout, stderr } = await cli('check', target);
        assert.equal(status, 0, stdout + stderr);
      }
      // Nothing but the disk's files is there.
      const names = await readdir(join(target, '..'));
      assert.deepEqual(
        names.filter((name) => !/^disk(-|\.)/.test(name)),
        [],
      );
    }
  });
}

test('a hole in the source is a hole in the target, and so are zeros that are data', { skip }, async (t) => {
  const source = await sourceDisk(t, 'qcow2');
  const target = join(await temporaryDirectory(t), 'disk.raw');
  await convert('-O', 'raw', source, target);
  const data = (await qemu.map(target, '-f', 'raw')).filter((entry) => entry.data);
  const bytes = data.reduce((sum, { length }) => sum + length, 0);
  // 200 KiB, 1 MiB, 4 KiB and 1.5 KiB, in blocks of the file system.
  assert.ok(bytes >= 1229 * KiB && bytes < 1300 * KiB, `${bytes} bytes of data`);
});

test('a disk with a backing file is flattened, or keeps standing on it with what differs', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const at = (name: string) => join(directory, name);
  await qemu.create(t, { path: at('base.qcow2'), size: 8 * MiB });
  await qemu.io(at('base.qcow2'), 'write -P 1 0 4M');
  await qemu.create(t, { path: at('top.qcow2'), backing: 'base.qcow2' });
  await qemu.io(at('top.qcow2'), 'write -P 2 1M 64k', 'write -z 2M 128k', 'write -P 1 3M 64k', 'write -P 5 7M 64k');
  await convert('-O', 'qcow2', at('top.qcow2'), at('flat.qcow2'));
  assert.equal(await qemu.compare(at('top.qcow2'), at('flat.qcow2')), true);
  assert.equal((await qemu.info(at('flat.qcow2')))['backing-filename'], undefined);

  // Over the same base, over a copy of it, and over a base that holds something else.
  await qemu.convert(at('base.qcow2'), at('copy.qcow2'), '-O', 'qcow2');
  await qemu.create(t, { path: at('other.qcow2'), size: 8 * MiB });
  await qemu.io(at('other.qcow2'), 'write -P 9 0 8M');
  for (const [name, clusters] of [
    ['base.qcow2', 4],
    ['copy.qcow2', 4],
    ['other.qcow2', 128],
  ] as const) {
    for (const more of [[], ['-c']]) {
      const target = at(`over-${more.length}-${name}`);
      await convert('-O', 'qcow2', ...more, '-B', name, '-F', 'qcow2', at('top.qcow2'), target);
      assert.equal(await qemu.compare(at('top.qcow2'), target), true, name);
      await qemu.assertClean(target);
      const own = (await qemu.map(target)).filter(({ depth, present }) => depth === 0 && present);
      const bytes = own.reduce((sum, { length }) => sum + length, 0);
      assert.ok(bytes <= clusters * 64 * KiB, `${bytes} bytes of its own over ${name}`);
    }
  }
});

test('several disks become one, a snapshot becomes a disk', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const at = (name: string) => join(directory, name);
  await qemu.create(t, { path: at('a.qcow2'), size: MiB });
  await qemu.io(at('a.qcow2'), 'write -P 1 0 1M');
  await qemu.img('snapshot', '-c', 'first', at('a.qcow2'));
  await qemu.io(at('a.qcow2'), 'write -P 2 0 512k');
  await qemu.create(t, { path: at('b.vmdk'), format: 'vmdk', size: 3 * MiB });
  await qemu.io(at('b.vmdk'), 'write -P 3 1M 1M');
  await convert('-O', 'qcow2', at('a.qcow2'), at('b.vmdk'), at('both.qcow2'));
  await qemu.img('convert', '-O', 'raw', at('a.qcow2'), at('b.vmdk'), at('both.raw'));
  assert.equal(await qemu.compare(at('both.qcow2'), at('both.raw'), '-f', 'qcow2', '-F', 'raw'), true);
  await convert('-O', 'raw', '-l', 'first', at('a.qcow2'), at('first.raw'));
  assert.deepEqual(await readFile(at('first.raw')), Buffer.alloc(MiB, 1));
});

test('of several raw files each begins at a whole sector, as for qemu-img, wherever the one before ends', {
  skip,
}, async (t) => {
  const directory = await temporaryDirectory(t);
  const at = (name: string) => join(directory, name);
  await writeFile(at('a.raw'), Buffer.alloc(MiB - 211, 1));
  await writeFile(at('b.raw'), Buffer.alloc(70_001, 2));
  const sources = [at('a.raw'), at('b.raw'), at('a.raw')];
  await qemu.img('convert', '-f', 'raw', '-O', 'raw', ...sources, at('wanted.raw'));
  for (const [format, ...args] of [['raw'], ['qcow2'], ['qcow2', '-c'], ['vmdk'], ['vdi']] as const) {
    await convert('-f', 'raw', '-O', format, ...args, ...sources, at('joined'));
    assert.equal(await qemu.compare(at('joined'), at('wanted.raw'), '-f', format, '-F', 'raw'), true, format);
  }
});

test('a target that cannot be looked at is refused as what it is', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const source = await sourceDisk(t, 'raw');
  const loop = join(directory, 'loop');
  await symlink('loop', loop);
  for (const target of [loop, join(directory, 'n'.repeat(300)), join(source, 'below-a-file')]) {
    const { status, stderr } = await cli('convert', '-O', 'raw', source, target);
    assert.equal(status, 1);
    assert.doesNotMatch(stderr, /INTERNAL/);
    assert.ok(stderr.startsWith(`lunette: ${target}: cannot write`), stderr);
  }
});

test('a device is written in place however it is named', {
  skip: skip || requires.root() || requires.that(findProgram('losetup') !== undefined, 'no losetup'),
}, async (t) => {
  const source = await sourceDisk(t, 'raw');
  const disk = await qemu.create(t, { format: 'raw', size: SIZE });
  const made = await run('losetup', ['--find', '--show', disk]);
  if (made.status !== 0) return cannotRun(t, `no loop device: ${made.stderr}`);
  const device = made.stdout.trim();
  t.after(() => runOk('losetup', ['-d', device]));
  for (const name of [device, `file:${device}`, `file://${device}`]) {
    await runOk('blkdiscard', [device]);
    await convert('-f', 'raw', '-O', 'raw', source, name);
    assert.equal(await qemu.compare(source, device, '-f', 'raw', '-F', 'raw'), true, name);
  }
});

test('a target in place that holds no image of its format says that one has to be made first', async (t) => {
  const [source, target] = [await sourceDisk(t, 'raw'), await qemu.create(t, { format: 'raw', size: SIZE })];
  const { status, stderr } = await cli('convert', '-n', '-f', 'raw', '-O', 'qcow2', source, target);
  assert.equal(status, 1);
  assert.match(stderr, /not a qcow2 image \(BAD_MAGIC\)\n.*make one there first/);
});

test('-n writes over what is there, zeros too, and leaves what is behind, also within a cluster', {
  skip,
}, async (t) => {
  const source = await sourceDisk(t, 'qcow2');
  for (const [format, ...args] of [['raw'], ['qcow2'], ['qcow2', '-c']] as const) {
    const target = await qemu.create(t, { format, size: 12 * MiB });
    await qemu.io(target, 'write -P 0xee 0 12M');
    await convert('-n', '-O', format, ...args, source, target);
    const wanted = join(await temporaryDirectory(t), 'wanted.raw');
    await qemu.convert(source, wanted, '-O', 'raw');
    await qemu.img('resize', '-q', '-f', 'raw', wanted, String(12 * MiB));
    const tail = 12 * MiB - SIZE;
    await runOk('qemu-io', ['-f', 'raw', '-c', `write -P 0xee ${SIZE} ${tail}`, wanted]);
    assert.equal(await qemu.compare(target, wanted, '-f', format, '-F', 'raw'), true, `${format} ${args}`);
  }
  const small = await qemu.create(t, { format: 'raw', size: MiB });
  const refused = await cli('convert', '-n', '-O', 'raw', source, small);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /has 1048576 bytes/);
});

test('a raw disk goes to a pipe, and the checksum that is printed is that of its bytes', { skip }, async (t) => {
  const source = await sourceDisk(t, 'qcow2');
  const wanted = join(await temporaryDirectory(t), 'wanted.raw');
  await qemu.convert(source, wanted, '-O', 'raw');
  const bytes = await readFile(wanted);
  const program = [process.execPath, ...lunetteArgs('convert', '--checksum', '-O', 'raw', source, '-')];
  const piped = join(await temporaryDirectory(t), 'piped.raw');
  const { stderr } = await run('sh', ['-c', `"$@" | cat > ${piped}`, 'sh', ...program]);
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  assert.equal(stderr, `${sha256}  -\n`);
  assert.deepEqual(await readFile(piped), bytes);
  const target = join(await temporaryDirectory(t), 'disk.vdi');
  assert.equal(await convert('--checksum', '-O', 'vdi', source, target), `${sha256}  ${target}\n`);
});

test('a target keeps mode and link, and after an error its content', { skip }, async (t) => {
  const directory = await temporaryDirectory(t);
  const at = (name: string) => join(directory, name);
  await writeFile(at('real.raw'), 'precious');
  await chmod(at('real.raw'), 0o640);
  await symlink('real.raw', at('link.raw'));
  const source = await sourceDisk(t, 'qcow2');
  await convert('-O', 'raw', source, at('link.raw'));
  assert.equal((await stat(at('real.raw'))).mode & 0o777, 0o640);
  assert.equal((await stat(at('real.raw'))).size, SIZE);
  assert.deepEqual((await readdir(directory)).sort(), ['link.raw', 'real.raw']);

  // A compressed cluster that is garbage: reading fails in the middle.
  const broken = join(await temporaryDirectory(t), 'broken.qcow2');
  await qemu.convert(source, broken, '-O', 'qcow2', '-c');
  const bytes = await readFile(broken);
  await writeFile(broken, bytes.fill(0xff, 0x50000));
  const before = await readFile(at('real.raw'));
  const failed = await cli('convert', '-O', 'raw', broken, at('link.raw'));
  assert.equal(failed.status, 1);
  assert.match(failed.stderr, /CORRUPT/);
  assert.deepEqual(await readFile(at('real.raw')), before);
  const fresh = await cli('convert', '-O', 'raw', broken, at('new.raw'));
  assert.equal(fresh.status, 1);
  assert.deepEqual((await readdir(directory)).sort(), ['link.raw', 'real.raw']);
});

test('an image is not converted onto itself, nor onto one that is in use', { skip }, async (t) => {
  const source = await sourceDisk(t, 'qcow2');
  const before = await readFile(source);
  const same = await cli('convert', '-O', 'qcow2', source, source);
  assert.equal(same.status, 1);
  assert.match(same.stderr, /cannot be converted onto itself \(INVALID\)/);
  assert.deepEqual(await readFile(source), before);
  assert.equal(existsSync(join(source, '..', '.disk.qcow2.lunette-new')), false);
});
