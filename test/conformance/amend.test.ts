/** `lunette amend` beside `qemu-img amend`: the same command lines on twins end in images that QEMU finds alike, and whole. */

import assert from 'node:assert/strict';
import { copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { run } from '../support/process.ts';
import { assertClean, compare, create, info, qemuImg, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../support/temporary.ts';

type Facts = Record<string, unknown>;

/** What info says, without what is free to differ. */
async function facts(path: string): Promise<Facts> {
  const { filename, 'actual-size': _size, snapshots, 'full-backing-filename': _full, ...rest } = await info(path);
  return { ...rest, snapshots: (snapshots as Facts[] | undefined)?.map(({ id, name }) => [id, name]) };
}

interface Shape {
  readonly what: string;
  readonly clusterSize?: number;
  readonly options?: Readonly<Record<string, string | number>>;
  readonly backing?: boolean;
  readonly snapshot?: boolean;
  /** The snapshot has zero clusters, with a place in the file and without. */
  readonly zeros?: boolean;
  /** Lines that QEMU takes and we do not: it loses what the older version cannot say. */
  readonly refused?: readonly string[];
  readonly after?: (path: string) => Promise<unknown>;
}

const DOWN = ['compat=0.10', 'compat=0.10,refcount_bits=16'];
const SHAPES: readonly Shape[] = [
  { what: 'version 3', after: (path) => qemuIo(path, ['write -z 2M 1M', 'discard 0 64k']) },
  { what: 'version 3 over a backing file', backing: true, clusterSize: 4 * KiB },
  { what: 'version 2 over a backing file', backing: true, options: { compat: '0.10' } },
  { what: 'version 2 with a snapshot', snapshot: true, options: { compat: '0.10' }, clusterSize: 512 },
  { what: 'version 3 with a snapshot', snapshot: true, clusterSize: 512 },
  { what: 'zero clusters in a snapshot', snapshot: true, zeros: true, clusterSize: 4 * KiB },
  { what: 'zero clusters in a snapshot over a backing file', snapshot: true, zeros: true, backing: true },
  { what: 'wide refcounts and lazy', options: { refcount_bits: 64, lazy_refcounts: 'on' }, clusterSize: 64 * KiB },
  { what: 'one bit', options: { refcount_bits: 1 }, clusterSize: 512 },
  { what: 'zstd', options: { compression_type: 'zstd' }, refused: DOWN },
  { what: 'extended L2', options: { extended_l2: 'on' } },
  { what: 'bitmaps', refused: DOWN, after: (path) => qemuImg('bitmap', '--add', path, 'b') },
  {
    what: 'a snapshot of another size',
    snapshot: true,
    after: (path) => qemuImg('resize', '-q', path, '9M'),
  },
];

const LINES = [
  'compat=1.1',
  'compat=0.10',
  'lazy_refcounts=on',
  'lazy_refcounts=off',
  'refcount_bits=1',
  'refcount_bits=8',
  'refcount_bits=64',
  'compat=0.10,refcount_bits=16',
  'compat=1.1,refcount_bits=32,lazy_refcounts=on',
  'refcount_bits=3',
  'cluster_size=4096',
  'backing_file=other.qcow2',
  'nonsense=1',
  'compat=0.10,lazy_refcounts=on',
  'data_file_raw=on',
  'size=12M',
];

async function make(
  t: Cleanup,
  { clusterSize = 64 * KiB, options, backing, snapshot, zeros, after }: Shape,
): Promise<string> {
  const folder = await temporaryDirectory(t);
  const lower = await create(t, { path: join(folder, 'base.qcow2'), size: 6 * MiB, clusterSize: 4 * KiB });
  await qemuIo(lower, ['write -P 9 0 6M']);
  const path = await create(t, {
    path: join(folder, 'disk.qcow2'),
    size: 8 * MiB,
    clusterSize,
    ...(backing === true ? { backing: lower } : {}),
    ...(options === undefined ? {} : { options }),
  });
  await qemuIo(path, ['write -P 1 100k 1M', 'write -P 2 7M 100k', 'write -z 3M 200k']).catch(() => undefined);
  if (options?.compat !== '0.10') await qemuIo(path, ['write -z -u 5M 300k', 'write -z 200k 128k']);
  if (snapshot === true) {
    if (options?.compat !== '0.10' && zeros !== true)
      await qemuIo(path, ['write -P 3 3M 200k', 'write -P 3 5M 300k', 'write -P 3 200k 128k']);
    await qemuImg('snapshot', '-c', 'before', path);
    if (zeros === true) await qemuImg('snapshot', '-c', 'again', path); // shares all tables with the first
    await qemuIo(path, ['write -P 4 1M 1M']);
  }
  await after?.(path);
  return path;
}

for (const shape of SHAPES) {
  test(`amend ends as qemu-img's: ${shape.what}`, { skip: requires.qemuIo() }, async (t) => {
    const original = await make(t, shape);
    const snapshotOf = async (path: string): Promise<Buffer> => {
      await qemuImg('convert', '-f', 'qcow2', '-l', 'before', '-O', 'raw', path, `${path}.snapshot`);
      return readFile(`${path}.snapshot`);
    };
    const before = shape.snapshot === true ? await snapshotOf(original) : undefined;
    for (const [i, line] of LINES.entries()) {
      const theirs = `${original}.${i}.theirs`;
      const ours = `${original}.${i}.ours`;
      await copyFile(original, theirs);
      await copyFile(original, ours);
      const qemu = await run('qemu-img', ['amend', '-f', 'qcow2', '-o', line, theirs]);
      const { status, stderr } = await cli('amend', '-f', 'qcow2', '-o', line, ours);
      const context = `${line}: QEMU ${qemu.status} ${qemu.stderr}, ours ${status} ${stderr}`;
      assert.equal(status === 0, qemu.status === 0 && shape.refused?.includes(line) !== true, context);
      if (status !== 0) {
        assert.ok((await readFile(ours)).equals(await readFile(original)), `${context}: the image was touched`);
        continue;
      }
      const [found, expected, same] = await Promise.all([
        facts(ours),
        facts(theirs),
        line.includes('size') || compare(original, ours, '-f', 'qcow2', '-F', 'qcow2'),
        assertClean(ours),
      ]);
      assert.deepEqual(found, expected, context);
      assert.ok(same, context);
      if (before === undefined || line.includes('size')) continue;
      // The snapshot shows what it did.
      assert.ok(before.equals(await snapshotOf(ours)), `${context}: the snapshot has changed`);
    }
  });
}

test('whatever is wrong with one option, none of them is applied', { skip: requires.qemuIo() }, async (t) => {
  const path = await make(t, { what: '', snapshot: true });
  const before = await readFile(path);
  for (const [line, message] of [
    ['size=16M,nonsense=1', /qcow2 has no option nonsense/],
    ['size=16M,refcount_bits=3', /refcount_bits are 1 to 64/],
    ['size=16M,data_file=x', /data_file can only be amended/],
    ['size=16M,backing_file=x', /backing file cannot be amended.*\n.*rebase/],
    ['size=16M,cluster_size=4096', /cannot be amended/],
    // The snapshot has another size then, which the older version cannot say.
    ['size=16M,compat=0.10', /snapshot 1 has a disk of another size/],
    ['size=1000,lazy_refcounts=on', /no multiple of 512/],
    ['size=8E,lazy_refcounts=on', /too many for clusters|is no size/],
    ['size=4M,lazy_refcounts=on', /less than it has.*\n.*lunette resize --shrink/],
  ] as const) {
    const { status, stderr } = await cli('amend', '-o', line, path);
    assert.notEqual(status, 0, line);
    assert.match(stderr, message, line);
    assert.ok((await readFile(path)).equals(before), `${line}: the image was touched`);
  }
});

test('an image of version 2 with snapshots gets version 3 first, and then its size', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await make(t, { what: '', snapshot: true, options: { compat: '0.10' } });
  const refused = await cli('amend', '-o', 'size=16M', path);
  assert.match(refused.stderr, /version 2 with snapshots cannot be resized/);
  const { status, stderr } = await cli('amend', '-o', 'size=16M,compat=1.1', path);
  assert.equal(status, 0, stderr);
  const { 'virtual-size': size, 'format-specific': specific } = await info(path);
  assert.equal(size, 16 * MiB);
  assert.equal((specific as { data: { compat: string } }).data.compat, '1.1');
  await assertClean(path);
});
