/** `lunette map`, `compare`, `measure` and `checksum` beside qemu-img: the same members with the same values. */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { run, runOk } from '../support/process.ts';
import { type MapEntry, qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';

const skip = requires.qemuIo();
const SIZE = 9 * MiB + 3 * 512;
const WRITES = [
  'write -P 0x11 0 200k',
  'write -P 0x22 1M 1M',
  'write -P 0 2M 1M',
  'write -z 3M 512k',
  'write -P 0x33 5000k 4k',
  'write -P 0x44 9M 1536',
];

const SHAPES: Readonly<Record<string, readonly [format: string, options: Record<string, string | number>]>> = {
  'raw.raw': ['raw', {}],
  'plain.qcow2': ['qcow2', {}],
  'small.qcow2': ['qcow2', { cluster_size: 512 }],
  'large.qcow2': ['qcow2', { cluster_size: 2 * MiB, refcount_bits: 64 }],
  'old.qcow2': ['qcow2', { compat: '0.10' }],
  'extended.qcow2': ['qcow2', { extended_l2: 'on' }],
  'preallocated.qcow2': ['qcow2', { preallocation: 'metadata' }],
  'sparse.vmdk': ['vmdk', {}],
  'flat.vmdk': ['vmdk', { subformat: 'monolithicFlat' }],
  'split.vmdk': ['vmdk', { subformat: 'twoGbMaxExtentSparse' }],
  'dynamic.vdi': ['vdi', {}],
  'static.vdi': ['vdi', { static: 'on' }],
};

describe('the fixture matrix', { skip }, () => {
  let directory = '';
  const at = (name: string): string => join(directory, name);
  const all = [...Object.keys(SHAPES), 'packed.qcow2', 'stream.vmdk', 'overlay.qcow2', 'longer.qcow2'];

  // All images have whole paths: nothing is to be cleaned up but their directory.
  const unused = { after: () => undefined };
  after(() => rm(directory, { recursive: true, force: true }));
  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'lunette-test-'));
    for (const [name, [format, options]] of Object.entries(SHAPES)) {
      await qemu.create(unused, { path: at(name), format, size: SIZE, options });
      await qemu.io(at(name), ...WRITES);
    }
    await qemu.convert(at('plain.qcow2'), at('packed.qcow2'), '-c', '-O', 'qcow2');
    await qemu.convert(at('plain.qcow2'), at('stream.vmdk'), '-O', 'vmdk', '-o', 'subformat=streamOptimized');
    await qemu.create(unused, { path: at('overlay.qcow2'), backing: 'plain.qcow2' });
    await qemu.io(at('overlay.qcow2'), 'write -P 5 64k 64k', 'write -z 1M 64k');
    await qemu.create(unused, { path: at('longer.qcow2'), backing: 'plain.qcow2', size: 12 * MiB });
    await qemu.io(at('longer.qcow2'), 'write -P 5 11M 64k');
  });

  for (const name of all) {
    test(`map of ${name}`, async () => {
      const theirs = await runOk('qemu-img', ['map', '--output=json', at(name)]);
      const ours = await cli('map', '--json', '--compat', '7.2', at(name));
      assert.equal(ours.status, 0, ours.stderr);
      if (name === 'extended.qcow2') {
        // What is not allocated has no place for us; QEMU gives one when another part of the cluster is allocated.
        assert.deepEqual(JSON.parse(ours.stdout), withoutPlaces(JSON.parse(theirs)));
      } else {
        assert.deepEqual(JSON.parse(ours.stdout), JSON.parse(theirs));
        assert.equal(ours.stdout, theirs);
      }
      const text = await run('qemu-img', ['map', at(name)]);
      const ourText = await cli('map', at(name));
      assert.equal(ourText.status, text.status);
      if (text.status === 0) assert.equal(ourText.stdout, text.stdout);
    });

    test(`measure of ${name}`, async () => {
      for (const args of [
        ['-O', 'raw'],
        ['-O', 'qcow2'],
        ['-O', 'qcow2', '-o', 'cluster_size=4k'],
        ['-O', 'qcow2', '-o', 'compat=0.10,cluster_size=2M'],
      ]) {
        const theirs = JSON.parse(await qemu.img('measure', '--output=json', ...args, at(name)));
        const result = await cli('measure', '--json', ...args, at(name));
        assert.equal(result.status, 0, result.stderr);
        const ours = JSON.parse(result.stdout);
        // `required` is exact for what convert writes; QEMU's counts tables for all of the disk, and data of a preallocated
        // image where its file has holes is data for us.
        assert.deepEqual({ ...ours, required: 0 }, { ...theirs, required: 0 }, args.join(' '));
        if (name !== 'preallocated.qcow2' && name !== 'static.vdi' && name !== 'flat.vmdk') {
          assert.ok(ours.required <= theirs.required, `${ours.required} is more than ${theirs.required}`);
        }
      }
    });
  }

  test('every image has the checksum of its content, and all of one content the same', async () => {
    const raw = await readFile(at('raw.raw'));
    const sha256 = createHash('sha256').update(raw).digest('hex');
    const blocks = blkSha256(raw);
    for (const name of all) {
      const expected = name === 'overlay.qcow2' || name === 'longer.qcow2' ? undefined : blocks;
      const one = await cli('checksum', at(name));
      assert.equal(one.status, 0, one.stderr);
      if (expected === undefined) assert.notEqual(one.stdout, `${blocks}  ${at(name)}\n`);
      else assert.equal(one.stdout, `${blocks}  ${at(name)}\n`);
      const other = await cli('checksum', '--algorithm', 'sha256', at(name));
      if (expected !== undefined) assert.equal(other.stdout, `${sha256}  ${at(name)}\n`);
    }
  });

  test('compare says what qemu-img compare says, and ends as it does', async () => {
    for (const a of all) {
      for (const [b, ...more] of [
        ['plain.qcow2'],
        ['overlay.qcow2'],
        ['longer.qcow2'],
        ['longer.qcow2', '-s'],
        ['raw.raw', '-s'],
      ]) {
        // What QEMU calls data that reads as zeros, the holes of files laid out beforehand, we call zeros.
        if (more.length > 0 && /flat|static|preallocated/.test(a)) continue;
        const theirs = await run('qemu-img', ['compare', ...more, at(a), at(b as string)]);
        const ours = await cli('compare', ...more, at(a), at(b as string));
        const about = `${a} and ${b} ${more}`;
        assert.equal(ours.status, theirs.status, `${about}: ${ours.stderr}`);
        assert.equal(ours.stdout, theirs.stdout, about);
      }
    }
    const missing = await cli('compare', at('raw.raw'), at('missing.raw'));
    assert.equal(missing.status, 2);
    assert.match(missing.stderr, /no such file/);
    const json = JSON.parse((await cli('compare', '--json', at('plain.qcow2'), at('overlay.qcow2'))).stdout);
    assert.deepEqual(json, { identical: false, reason: 'content', offset: 64 * KiB });
  });

  test('what measure requires is what convert writes, also where the refcount table grows on the way', async () => {
    for (const [format, options] of [
      ['qcow2', 'cluster_size=64k'],
      ['qcow2', 'cluster_size=4k'],
      ['qcow2', 'cluster_size=2M'],
      ['qcow2', 'cluster_size=512'],
      ['qcow2', 'cluster_size=512,refcount_bits=32'],
      ['qcow2', 'cluster_size=512,refcount_bits=64'],
      ['qcow2', 'cluster_size=1k,refcount_bits=64'],
      ['vdi', 'static=off'],
      ['vmdk', 'subformat=monolithicSparse'],
    ] as const) {
      const target = at(`measured-${options}.${format}`);
      const measured = JSON.parse(
        (await cli('measure', '--json', '-O', format, '-o', options, at('plain.qcow2'))).stdout,
      );
      const result = await cli('convert', '-S', '0', '-O', format, '-o', options, at('plain.qcow2'), target);
      assert.equal(result.status, 0, result.stderr);
      assert.equal((await stat(target)).size, measured.required, `${format} ${options}`);
    }
  });
});

/** The entries without the offsets of what is not data, those that are alike then joined. */
function withoutPlaces(entries: readonly MapEntry[]): MapEntry[] {
  const result: MapEntry[] = [];
  for (const { offset, ...rest } of entries) {
    const entry: MapEntry = rest.data && offset !== undefined ? { ...rest, offset } : rest;
    const last = result[result.length - 1];
    if (last !== undefined && !entry.data && last.zero === entry.zero && last.present === entry.present && !last.data) {
      result[result.length - 1] = { ...last, length: last.length + entry.length };
    } else result.push(entry);
  }
  return result;
}

/** docs/checksum.md once more, in the plainest way. */
function blkSha256(disk: Buffer): string {
  const sha = (...parts: Uint8Array[]): Buffer => createHash('sha256').update(Buffer.concat(parts)).digest();
  let zero = sha(Buffer.alloc(MiB));
  let level: Buffer[] = [];
  for (let i = 0; i < disk.length; i += MiB) {
    const block = Buffer.alloc(MiB);
    disk.copy(block, 0, i, Math.min(i + MiB, disk.length));
    level.push(sha(block));
  }
  while (level.length > 1) {
    while (level.length % 256 !== 0) level.push(zero);
    const above: Buffer[] = [];
    for (let i = 0; i < level.length; i += 256) above.push(sha(Buffer.of(1), ...level.slice(i, i + 256)));
    zero = sha(Buffer.of(1), ...Array.from({ length: 256 }, () => zero));
    level = above;
  }
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(disk.length));
  return sha(Buffer.of(2), size, level[0] ?? zero).toString('hex');
}
