/** What differs between states of a disk, compared with what their bytes say: QEMU writes, and reads them out. */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { create, qemuImg, qemuIo } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const BLOCK = 4 * KiB;

interface Extent {
  readonly start: number;
  readonly length: number;
  readonly from: string;
  readonly to: string;
}

async function diff(...args: string[]): Promise<{ extents: Extent[]; bytes: number; 'to-size': number }> {
  const { status, stdout, stderr } = await cli('snapshot', 'diff', '--json', ...args);
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}

/** The blocks that an answer covers. */
function blocksOf(extents: readonly Extent[], unit: number): Set<number> {
  const blocks = new Set<number>();
  let end = -1;
  for (const { start, length } of extents) {
    assert.ok(start >= end && length > 0, 'extents are in order and do not overlap');
    end = start + length;
    for (let at = Math.floor(start / unit) * unit; at < end; at += unit) blocks.add(at);
  }
  return blocks;
}

/** The blocks whose bytes differ; past the end of a disk are zeros. */
function differing(a: Buffer, b: Buffer): Set<number> {
  const size = Math.max(a.length, b.length);
  const [wholeA, wholeB] = [Buffer.alloc(size), Buffer.alloc(size)];
  a.copy(wholeA);
  b.copy(wholeB);
  const blocks = new Set<number>();
  for (let at = 0; at < size; at += BLOCK) {
    const end = Math.min(at + BLOCK, size);
    if (wholeA.compare(wholeB, at, end, at, end) !== 0) blocks.add(at);
  }
  return blocks;
}

function commands(random: Random, size: number): string[] {
  return Array.from({ length: random.between(2, 7) }, () => {
    const length = 512 * (1 + random.below(400));
    const at = 512 * random.below((size - length) / 512);
    const what = random.pick(['write', 'write', 'write', 'zero', 'discard']);
    if (what === 'zero') return `write -z ${at} ${length}`;
    if (what === 'discard') return `discard ${at} ${length}`;
    return `write -P ${1 + random.below(250)} ${at} ${length}`;
  });
}

const SHAPES = [
  { clusterSize: 4 * KiB, options: {}, backing: false },
  { clusterSize: 64 * KiB, options: {}, backing: true },
  { clusterSize: 64 * KiB, options: { extended_l2: 'on' }, backing: true },
] as const;

for (const { clusterSize, options, backing } of SHAPES) {
  const name = `clusters of ${clusterSize}, ${JSON.stringify(options)}${backing ? ', over a base' : ''}`;
  test(`what is in no difference is the same, and --content is exact: ${name}`, {
    skip: requires.qemuIo(),
  }, async (t) => {
    const random = randomFor(t);
    const directory = await temporaryDirectory(t);
    let size = 8 * MiB;
    const base = await create(t, { size, path: join(directory, 'base.qcow2') });
    await qemuIo(base, commands(random, size));
    const path = await create(t, {
      path: join(directory, 'disk.qcow2'),
      size,
      clusterSize,
      options,
      ...(backing ? { backing: base } : {}),
    });
    const states: Buffer[] = [];
    const keep = async (): Promise<void> => {
      const raw = join(directory, 'state.raw');
      await qemuImg('convert', '-O', 'raw', path, raw);
      states.push(await readFile(raw));
    };
    for (let i = 1; i <= 3; i++) {
      await qemuIo(path, commands(random, size), '-d', 'unmap');
      await qemuImg('snapshot', '-c', `state ${i}`, path);
      await keep();
      if (i === 2) {
        size += MiB + 512;
        await qemuImg('resize', '-q', path, String(size));
      }
    }
    await qemuIo(path, commands(random, size), '-d', 'unmap');
    await keep();
    for (const [a, b] of [
      [0, 1],
      [2, 0],
      [1, 3],
      [0, 3],
    ] as const) {
      const names = [`state ${a + 1}`, ...(b === 3 ? [] : [`state ${b + 1}`])];
      const [left, right] = [states[a] as Buffer, states[b] as Buffer];
      const truth = differing(left, right);
      const mapped = await diff(path, ...names);
      const covered = blocksOf(mapped.extents, BLOCK);
      for (const block of truth) assert.ok(covered.has(block), `${names}: the difference at ${block} is not told`);
      assert.equal(mapped['to-size'], right.length);
      const exact = await diff('--content', path, ...names);
      assert.deepEqual(blocksOf(exact.extents, BLOCK), truth, String(names));
      assert.equal(
        exact.bytes,
        exact.extents.reduce((sum, { length }) => sum + length, 0),
      );
    }
    assert.deepEqual((await diff(path, '1', '1')).extents, []);
  });
}

test('what is untouched since a snapshot is not told, and what each difference was and is', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await create(t, { size: 4 * MiB, clusterSize: 64 * KiB });
  await qemuIo(path, ['write -P 1 0 1M']);
  await qemuImg('snapshot', '-c', 'then', path);
  await qemuIo(path, ['write -P 1 64k 64k', 'write -z -u 128k 64k', 'write -P 2 2M 192k']);
  assert.deepEqual((await diff(path, 'then')).extents, [
    { start: 64 * KiB, length: 64 * KiB, from: 'data', to: 'data' },
    { start: 128 * KiB, length: 64 * KiB, from: 'data', to: 'zero' },
    { start: 2 * MiB, length: 192 * KiB, from: 'absent', to: 'data' },
  ]);
  // The same bytes were written in another place: only reading tells.
  assert.deepEqual(
    (await diff('--content', path, 'then')).extents.map(({ start }) => start),
    [128 * KiB, 2 * MiB],
  );
  const { stdout } = await cli('snapshot', 'diff', path, 'then');
  assert.match(stdout, /^OFFSET +LENGTH +FROM +TO\n0x10000 +0x10000 +data +data\n/);
  assert.match(stdout, /\n320 KiB \(327680 bytes\) in 3 extents may differ: .*\n$/);
  for (const line of stdout.split('\n')) assert.ok(line.length <= 80, line);
});

test('an overlay is compared with an image below it, and with one beside it', {
  skip: requires.qemuIo(),
}, async (t) => {
  const directory = await temporaryDirectory(t);
  const make = (name: string, below?: string) =>
    create(t, { path: join(directory, name), ...(below === undefined ? { size: 8 * MiB } : { backing: below }) });
  const base = await make('base.qcow2');
  await qemuIo(base, ['write -P 1 0 4M']);
  const middle = await make('middle.qcow2', base);
  await qemuIo(middle, ['write -P 2 1M 64k']);
  const top = await make('top.qcow2', middle);
  await qemuIo(top, ['write -P 3 3M 64k', 'write -z 6M 64k']);
  const other = await make('other.qcow2', base);
  await qemuIo(other, ['write -P 2 1M 64k']);
  const starts = async (...args: string[]): Promise<number[]> =>
    (await diff(...args)).extents.map(({ start }) => start);
  assert.deepEqual(await starts(top, base), [1 * MiB, 3 * MiB, 6 * MiB]);
  assert.deepEqual(await starts(top, middle), [3 * MiB, 6 * MiB]);
  assert.deepEqual(await starts(top, other), [1 * MiB, 3 * MiB, 6 * MiB]);
  assert.deepEqual(await starts('--content', top, other), [3 * MiB]);
  // Other formats, with nothing in common.
  const vmdk = join(directory, 'copy.vmdk');
  await qemuImg('convert', '-O', 'vmdk', top, vmdk);
  assert.deepEqual(await starts('--content', top, vmdk), []);
});
