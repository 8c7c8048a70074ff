/** qcow2 images of all shapes: what QEMU's programs write we read, and what we write they find clean and read. */

import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { GiB, KiB, MiB } from '../../formats/core/units.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { ABSENT, ALLOCATED, DATA, ExtentBuffer, OPAQUE, ZERO } from '../../formats/image/extent.ts';
import { createSnapshot } from '../../formats/image/snapshots.ts';
import { ImageHost } from '../../formats/open.ts';
import { readAll } from '../support/qcow2-images.ts';
import { type MapEntry, qemu } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Shape {
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly compat: '0.10' | '1.1';
  readonly backing: boolean;
  readonly snapshots: boolean;
  readonly compressed: 'no' | 'zlib' | 'zstd';
  readonly extendedL2?: boolean;
}

/** Shapes that together have every value with every other at least once, and the odd corners. */
const SHAPES: readonly Shape[] = [
  { clusterSize: 512, refcountBits: 16, compat: '0.10', backing: true, snapshots: true, compressed: 'zlib' },
  { clusterSize: 512, refcountBits: 1, compat: '1.1', backing: false, snapshots: false, compressed: 'no' },
  { clusterSize: 512, refcountBits: 64, compat: '1.1', backing: true, snapshots: true, compressed: 'zstd' },
  { clusterSize: 4 * KiB, refcountBits: 16, compat: '0.10', backing: false, snapshots: true, compressed: 'no' },
  { clusterSize: 4 * KiB, refcountBits: 8, compat: '1.1', backing: true, snapshots: true, compressed: 'zlib' },
  { clusterSize: 4 * KiB, refcountBits: 64, compat: '1.1', backing: false, snapshots: false, compressed: 'zstd' },
  { clusterSize: 64 * KiB, refcountBits: 16, compat: '0.10', backing: true, snapshots: false, compressed: 'zlib' },
  { clusterSize: 64 * KiB, refcountBits: 16, compat: '1.1', backing: true, snapshots: true, compressed: 'zlib' },
  { clusterSize: 64 * KiB, refcountBits: 1, compat: '1.1', backing: true, snapshots: false, compressed: 'no' },
  { clusterSize: 64 * KiB, refcountBits: 32, compat: '1.1', backing: false, snapshots: true, compressed: 'zstd' },
  { clusterSize: 2 * MiB, refcountBits: 16, compat: '1.1', backing: true, snapshots: true, compressed: 'zlib' },
  { clusterSize: 2 * MiB, refcountBits: 16, compat: '0.10', backing: false, snapshots: false, compressed: 'no' },
  { clusterSize: 2 * MiB, refcountBits: 64, compat: '1.1', backing: false, snapshots: true, compressed: 'no' },
  {
    clusterSize: 64 * KiB,
    refcountBits: 16,
    compat: '1.1',
    backing: true,
    snapshots: true,
    compressed: 'zlib',
    extendedL2: true,
  },
  {
    clusterSize: 16 * KiB,
    refcountBits: 8,
    compat: '1.1',
    backing: false,
    snapshots: true,
    compressed: 'zstd',
    extendedL2: true,
  },
  {
    clusterSize: 2 * MiB,
    refcountBits: 1,
    compat: '1.1',
    backing: true,
    snapshots: false,
    compressed: 'no',
    extendedL2: true,
  },
];

function nameOf(shape: Shape): string {
  const words = [`compat ${shape.compat}`, `clusters of ${shape.clusterSize}`, `${shape.refcountBits} refcount bits`];
  if (shape.backing) words.push('backing file');
  if (shape.snapshots) words.push('snapshots');
  if (shape.extendedL2) words.push('extended L2');
  if (shape.compressed !== 'no') words.push(shape.compressed);
  return words.join(', ');
}

/** Guest size: a few clusters more than one L2 slice where clusters are small, not a multiple of the cluster size. */
function sizeOf(shape: Shape): number {
  return Math.min(24 * MiB, Math.max(256 * KiB, shape.clusterSize * 150)) + 512;
}

interface Scene {
  readonly path: string;
  readonly model: string;
  readonly size: number;
}

/** An image as QEMU's programs make it, and a raw file with the same content. */
async function makeScene(t: Parameters<typeof temporaryDirectory>[0], shape: Shape, random: Random): Promise<Scene> {
  const directory = await temporaryDirectory(t);
  const size = sizeOf(shape);
  const model = join(directory, 'model.raw');
  const content = new Uint8Array(size);
  const chunk = Math.max(512, Math.floor(size / 40 / 512) * 512);
  for (let at = 0; at < size; at += chunk) {
    const length = Math.min(chunk, size - at);
    // A third zeros, a third noise, a third that compresses.
    const kind = random.below(3);
    if (kind === 1) random.fill(content.subarray(at, at + length));
    if (kind === 2) content.fill(random.below(256), at, at + length);
  }
  await writeFile(model, content);
  const options = [
    `compat=${shape.compat}`,
    `cluster_size=${shape.clusterSize}`,
    ...(shape.compat === '1.1' ? [`refcount_bits=${shape.refcountBits}`] : []),
    ...(shape.compressed === 'zstd' ? ['compression_type=zstd'] : []),
    ...(shape.extendedL2 ? ['extended_l2=on'] : []),
  ].join(',');
  const compress = shape.compressed !== 'no' ? ['-c'] : [];
  const base = join(directory, 'base.qcow2');
  const path = join(directory, 'disk.qcow2');
  if (shape.backing) {
    // The base is shorter than the image: behind its end reads zeros.
    const baseRaw = join(directory, 'base.raw');
    const baseSize = Math.floor(size / 3 / 512) * 512;
    await writeFile(baseRaw, content.subarray(0, baseSize));
    await qemu.img('convert', '-q', '-O', 'qcow2', ...compress, '-o', options, baseRaw, base);
    await qemu.img('create', '-q', '-f', 'qcow2', '-o', options, '-b', 'base.qcow2', '-F', 'qcow2', path, String(size));
    const overlay = new Uint8Array(content);
    await writeFile(join(directory, 'rest.raw'), overlay.subarray(baseSize));
    await writeFile(model, content);
    // Everything behind the base comes from qemu-io writes.
    for (let at = baseSize; at < size; at += chunk) {
      const length = Math.min(chunk, size - at);
      if (content.subarray(at, at + length).every((byte) => byte === 0)) continue;
      const part = join(directory, 'part.raw');
      await writeFile(part, content.subarray(at, at + length));
      await qemu.io(path, `write -q -s ${part} ${at} ${length}`);
    }
  } else {
    await qemu.img('convert', '-q', '-O', 'qcow2', ...compress, '-o', options, model, path);
  }
  if (shape.snapshots) await qemu.img('snapshot', '-c', 'before', path);
  return { path, model, size };
}

/** A part of a map, in QEMU's words. */
type Piece = { -readonly [K in 'start' | 'length' | 'data' | 'zero' | 'depth']: MapEntry[K] };

/** Extents as `qemu-img map` shows them: neighbours that look the same are one. */
async function mapOf(image: ChainImage): Promise<Piece[]> {
  const out = new ExtentBuffer();
  const list: Piece[] = [];
  for (let at = 0; at < image.size; at = out.end) {
    await image.map(at, image.size - at, out);
    for (let i = 0; i < out.count; i++) {
      const kind = out.kinds[i];
      const entry = {
        start: out.offsets[i] as number,
        length: out.lengths[i] as number,
        depth: kind === ABSENT ? 0 : (out.depths[i] as number),
        data: kind === DATA || kind === OPAQUE,
        zero: kind === ZERO || kind === ABSENT,
      };
      assert.ok(kind !== ZERO || ((out.flags[i] as number) & ALLOCATED) === 0 || out.storages[i] !== null);
      const last = list[list.length - 1];
      if (last !== undefined && last.data === entry.data && last.zero === entry.zero && last.depth === entry.depth) {
        last.length += entry.length;
      } else list.push(entry);
    }
  }
  return list;
}

/** As qemu-img sees it, with what differs only in how it is said taken out: depth of zeros, splits by offset and compression. */
function simplified(map: readonly Piece[]) {
  const list: { start: number; length: number; data: boolean; depth: number | undefined }[] = [];
  for (const { start, length, data, depth } of map) {
    const entry = { start, length, data, depth: data ? depth : undefined };
    const last = list[list.length - 1];
    if (last !== undefined && last.data === data && last.depth === entry.depth) last.length += length;
    else list.push(entry);
  }
  return list;
}

async function assertReads(host: ImageHost, scene: Scene): Promise<void> {
  const image = await host.open(scene.path, { readOnly: true });
  try {
    assert.equal(image.size, scene.size);
    const found = await readAll(image);
    assert.ok(Buffer.compare(found, await readFile(scene.model)) === 0, 'content differs from the model');
    assert.deepEqual(simplified(await mapOf(image)), simplified(await qemu.map(scene.path)));
  } finally {
    await image.close();
  }
}

/** Random changes by us, the same in the model. */
async function changeIt(host: ImageHost, scene: Scene, shape: Shape, random: Random): Promise<void> {
  const model = new Uint8Array(await readFile(scene.model));
  const image = await host.open(scene.path);
  try {
    for (let i = 0; i < 25; i++) {
      const offset = random.below(scene.size);
      const length = 1 + random.below(Math.min(scene.size - offset, 3 * shape.clusterSize));
      const kind = random.below(6);
      if (kind === 0) {
        await image.writeZeroes(offset, length, random.chance(0.5));
        model.fill(0, offset, offset + length);
      } else if (kind === 1 && image.limits.discardUnit > 0) {
        const unit = image.limits.discardUnit;
        const start = Math.ceil(offset / unit) * unit;
        const end = offset + length === scene.size ? scene.size : Math.floor((offset + length) / unit) * unit;
        await image.discard(offset, length);
        if (start < end) model.fill(0, start, end);
      } else {
        const bytes = random.bytes(length);
        await image.writev(offset, IoVec.of(bytes));
        model.set(bytes, offset);
      }
      if (random.chance(0.1)) await image.flush();
    }
  } finally {
    await image.close();
  }
  await writeFile(scene.model, model);
}

async function assertAgreed(host: ImageHost, scene: Scene): Promise<void> {
  await qemu.assertClean(scene.path);
  assert.ok(await qemu.compare(scene.path, scene.model, '-f', 'qcow2', '-F', 'raw'), 'qemu-img reads something else');
  await assertReads(host, scene);
}

for (const shape of SHAPES) {
  test(`${nameOf(shape)}: both read what the other writes`, { skip: requires.qemuIo() }, async (t) => {
    const random = randomFor(t);
    const host = new ImageHost();
    const scene = await makeScene(t, shape, random);
    await assertReads(host, scene);
    const taken = join(await temporaryDirectory(t), 'taken.raw');
    await copyFile(scene.model, taken);

    await changeIt(host, scene, shape, random);
    await assertAgreed(host, scene);

    // QEMU goes on where we stopped, takes another snapshot, and we go on where it stopped.
    const offset = Math.floor(scene.size / 2 / 512) * 512;
    const length = Math.min(2 * shape.clusterSize + 512, scene.size - offset);
    await qemu.io(scene.path, `write -q -P 0x5a ${offset} ${length}`);
    const model = new Uint8Array(await readFile(scene.model));
    model.fill(0x5a, offset, offset + length);
    await writeFile(scene.model, model);
    if (shape.refcountBits > 1) await qemu.img('snapshot', '-c', 'between', scene.path);
    const between = join(await temporaryDirectory(t), 'between.raw');
    await copyFile(scene.model, between);
    await changeIt(host, scene, shape, random);
    await assertAgreed(host, scene);

    for (const [name, file] of [
      ...(shape.snapshots ? [['before', taken]] : []),
      ...(shape.refcountBits > 1 ? [['between', between]] : []),
    ] as [string, string][]) {
      const snapshot = await host.open(scene.path, { snapshot: name });
      assert.ok(Buffer.compare(await readAll(snapshot), await readFile(file)) === 0, `snapshot ${name} has changed`);
      await snapshot.close();
    }
  });
}

test('extended L2 entries are read, subcluster by subcluster', { skip: requires.qemuIo() }, async (t) => {
  const random = randomFor(t);
  const host = new ImageHost();
  const shape: Shape = {
    clusterSize: 64 * KiB,
    refcountBits: 16,
    compat: '1.1',
    backing: true,
    snapshots: true,
    compressed: 'zlib',
    extendedL2: true,
  };
  const scene = await makeScene(t, shape, random);
  const model = new Uint8Array(await readFile(scene.model));
  for (let i = 0; i < 10; i++) {
    const offset = random.below(scene.size / 512 - 40) * 512;
    const length = random.between(1, 40) * 512;
    await qemu.io(scene.path, i % 3 === 0 ? `write -q -z ${offset} ${length}` : `write -q -P ${i} ${offset} ${length}`);
    model.fill(i % 3 === 0 ? 0 : i, offset, offset + length);
  }
  await writeFile(scene.model, model);
  await assertReads(host, scene);
});

test('an external data file is read and written through the gate', { skip: requires.qemuIo() }, async (t) => {
  const directory = await temporaryDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await qemu.img('create', '-q', '-f', 'qcow2', '-o', `data_file=${join(directory, 'data.raw')}`, path, '4M');
  await qemu.io(path, 'write -q -P 7 64k 200k', 'write -q -z 1M 64k');
  const host = new ImageHost();
  const image = await host.open(path, { readOnly: true });
  const found = await readAll(image);
  await image.close();
  const expected = new Uint8Array(4 * MiB).fill(7, 64 * KiB, 264 * KiB);
  assert.ok(Buffer.compare(found, expected) === 0);
  const outside = await temporaryDirectory(t);
  await qemu.img(
    'create',
    '-q',
    '-f',
    'qcow2',
    '-o',
    `data_file=${join(directory, 'other.raw')}`,
    join(outside, 'a'),
    '4M',
  );
  await assert.rejects(host.open(join(outside, 'a')), { code: 'DENIED' });

  const writer = await host.open(path);
  await writer.writev(MiB + 5, IoVec.of(new Uint8Array(70_000).fill(9)));
  await writer.discard(64 * KiB, 64 * KiB);
  await assert.rejects(createSnapshot(writer, 'one'), { code: 'UNSUPPORTED' });
  await assert.rejects(qemu.io(path, 'write -q 0 512'), /lock/);
  await writer.close();
  expected.fill(9, MiB + 5, MiB + 5 + 70_000).fill(0, 64 * KiB, 128 * KiB);
  const model = join(directory, 'model.raw');
  await writeFile(model, expected);
  await qemu.assertClean(path);
  assert.ok(await qemu.compare(path, model, '-f', 'qcow2', '-F', 'raw'));
});

test('an image that a writer with lazy refcounts left dirty is repaired when it is opened for writing', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await qemu.create(t, { size: 64 * MiB, clusterSize: 4 * KiB, options: { lazy_refcounts: 'on' } });
  await qemu.io(path, 'write -q -P 1 0 1M');
  await qemu.img('snapshot', '-c', 'one', path);
  // The program dies with the refcounts in memory; what it wrote is in the file.
  await qemu.io(path, 'write -q -P 2 512k 3M', 'flush', 'abort').catch(() => undefined);
  const dirty = (await qemu.info(path))['dirty-flag'];
  assert.equal(dirty, true);
  const host = new ImageHost();
  const reader = await host.open(path, { readOnly: true });
  const shown = await readAll(reader);
  await reader.close();
  assert.equal((await qemu.info(path))['dirty-flag'], true, 'reading repairs nothing');

  const writer = await host.open(path);
  await writer.writev(8 * MiB, IoVec.of(new Uint8Array(100_000).fill(3)));
  await writer.close();
  assert.equal((await qemu.info(path))['dirty-flag'], false);
  await qemu.assertClean(path);
  const again = await host.open(path, { readOnly: true });
  shown.fill(3, 8 * MiB, 8 * MiB + 100_000);
  assert.ok(Buffer.compare(await readAll(again), shown) === 0);
  await again.close();
});

test('a 2 TiB image with scattered writes stays clean', { skip: requires.qemuIo() }, async (t) => {
  const path = await qemu.create(t, { size: 2048 * GiB });
  const host = new ImageHost();
  const image = await host.open(path);
  for (let i = 0; i < 40; i++) await image.writev(i * 51 * GiB + i * 512, IoVec.of(new Uint8Array(512).fill(i + 1)));
  await image.close();
  await qemu.assertClean(path);
  await qemu.io(path, ...[0, 7, 39].map((i) => `read -q -P ${i + 1} ${i * 51 * GiB + i * 512} 512`));
});
