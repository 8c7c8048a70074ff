/** Which images may have another size, and what becomes of their snapshots and bitmaps: beside `qemu-img resize`. */

import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { run, runOk } from '../support/process.ts';
import { assertClean, compare, create, info, qemuImg, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import type { Cleanup } from '../support/temporary.ts';

interface Shape {
  readonly what: string;
  readonly options?: Readonly<Record<string, string | number>>;
  readonly snapshot?: boolean;
  readonly bitmap?: boolean;
  readonly compressed?: boolean;
}

const SHAPES: readonly Shape[] = [
  { what: 'version 2', options: { compat: '0.10' } },
  { what: 'version 2 with a snapshot', options: { compat: '0.10' }, snapshot: true },
  { what: 'a snapshot', snapshot: true },
  { what: 'a bitmap', bitmap: true },
  { what: 'a snapshot and a bitmap', snapshot: true, bitmap: true },
  { what: 'a snapshot and a bitmap, with subclusters', options: { extended_l2: 'on' }, snapshot: true, bitmap: true },
  { what: 'a snapshot and a bitmap, small clusters', options: { cluster_size: 512 }, snapshot: true, bitmap: true },
  { what: 'compressed clusters', compressed: true },
  { what: 'compressed clusters in many L2 tables', options: { cluster_size: 4096 }, compressed: true },
  { what: 'compressed clusters and a snapshot', options: { cluster_size: 4096 }, compressed: true, snapshot: true },
];

const SIZE = 8 * MiB;
const CHANGES: readonly (readonly string[])[] = [
  ['12M'],
  ['--', '+512'],
  ['--shrink', '5M'],
  ['--shrink', '--', '-1536'],
  ['5M'],
  ['--preallocation=metadata', '9M'],
  ['--preallocation=full', '9M'],
];

async function make(t: Cleanup, { options, snapshot, bitmap, compressed }: Shape): Promise<string> {
  const path = await create(t, { size: SIZE, ...(options === undefined ? {} : { options }) });
  if (bitmap === true) await qemuImg('bitmap', '--add', '-g', '4096', path, 'b');
  const packed = compressed === true ? '-c ' : '';
  await qemuIo(path, [`write ${packed}-P 1 0 1M`, `write ${packed}-P 2 4M 4M`]);
  if (snapshot === true) await qemuImg('snapshot', '-c', 'before', path);
  await qemuIo(path, ['write -P 3 6M 100k']);
  return path;
}

/** What info says, but for sizes of files and names. */
async function facts(path: string): Promise<unknown> {
  const { filename: _name, 'actual-size': _size, children: _children, snapshots, ...rest } = await info(path);
  return {
    ...rest,
    snapshots: (snapshots as { id: string; name: string }[] | undefined)?.map(({ id, name }) => [id, name]),
  };
}

/** What a snapshot shows. QEMU shows as much of it as the disk has now. */
async function snapshotOf(path: string): Promise<Buffer> {
  const [ours, theirs] = [`${path}.ours`, `${path}.theirs`];
  await cli('convert', '-f', 'qcow2', '-l', 'before', '-O', 'raw', path, ours);
  await runOk('qemu-img', ['convert', '-f', 'qcow2', '-l', 'before', '-O', 'raw', path, theirs]);
  const [a, b] = [await readFile(ours), await readFile(theirs)];
  const common = Math.min(a.length, b.length);
  assert.ok(a.subarray(0, common).equals(b.subarray(0, common)), 'the snapshot reads otherwise for QEMU');
  return a;
}

for (const shape of SHAPES) {
  test(`resize is allowed and refused as by qemu-img, and leaves the same: ${shape.what}`, {
    skip: requires.qemuIo(),
  }, async (t) => {
    const original = await make(t, shape);
    for (const [i, change] of CHANGES.entries()) {
      const [theirs, ours] = [`${original}.${i}.theirs`, `${original}.${i}.ours`];
      await copyFile(original, theirs);
      await copyFile(original, ours);
      const flags = change.filter((each) => each.startsWith('--') && each !== '--');
      const size = change.at(-1) as string;
      const qemu = await run('qemu-img', ['resize', '-q', ...flags, '-f', 'qcow2', theirs, '--', size]);
      const { status, stderr } = await cli('resize', '-q', ...flags, '-f', 'qcow2', ours, '--', size);
      const context = `${change.join(' ')}: QEMU ${qemu.status} ${qemu.stderr}, ours ${status} ${stderr}`;
      assert.equal(status === 0, qemu.status === 0, context);
      await assertClean(ours);
      if (status !== 0) {
        assert.ok((await readFile(ours)).equals(await readFile(original)), `${context}: the image was touched`);
        continue;
      }
      assert.deepEqual(await facts(ours), await facts(theirs), context);
      assert.ok(await compare(ours, theirs, '-f', 'qcow2', '-F', 'qcow2'), context);
      if (shape.snapshot === true) {
        assert.ok((await snapshotOf(ours)).equals(await snapshotOf(original)), `${context}: the snapshot has changed`);
      }
      // Grown again, what was cut is gone. (QEMU lets the rest of the last cluster show again.)
      const { 'virtual-size': cut } = (await info(ours)) as { 'virtual-size': number };
      await cli('resize', '-q', '-f', 'qcow2', ours, '16M');
      const from = Math.min(cut, SIZE);
      await qemuIo(ours, [`read -P 0 ${from} ${16 * MiB - from}`]);
      await assertClean(ours);
    }
  });
}

test('an inconsistent bitmap keeps an image at its size for both', { skip: requires.qemuIo() }, async (t) => {
  const path = await make(t, { what: '', bitmap: true });
  const bytes = await readFile(path);
  const name = bytes.lastIndexOf(Buffer.from('b\0\0\0\0\0\0\0'));
  assert.ok(name > 24);
  bytes.writeUInt32BE(bytes.readUInt32BE(name - 24 + 12) | 1, name - 24 + 12);
  await writeFile(path, bytes);
  assert.notEqual((await run('qemu-img', ['resize', '-q', path, '12M'])).status, 0);
  const { status, stderr } = await cli('resize', path, '12M');
  assert.equal(status, 1);
  assert.match(stderr, /bitmap "b"/);
});
