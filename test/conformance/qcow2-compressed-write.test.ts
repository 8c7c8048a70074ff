/** Compressed clusters that we write: QEMU's programs find them clean and read them, over snapshots and backing files. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { KiB, MiB } from '../../formats/core/units.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import type { EncodedUnit } from '../../formats/image/layer.ts';
import { loadClusterEncoder } from '../../formats/index.ts';
import { ImageHost } from '../../formats/open.ts';
import type { CompressionType } from '../../formats/qcow2/header.ts';
import { readAll } from '../support/qcow2-images.ts';
import { qemu } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Shape {
  readonly clusterSize: number;
  readonly options: string;
  readonly type: CompressionType;
  readonly backing?: boolean;
}

const SHAPES: readonly Shape[] = [
  { clusterSize: 512, options: 'compat=0.10', type: 'zlib', backing: true },
  { clusterSize: 4 * KiB, options: 'refcount_bits=1', type: 'zlib' },
  { clusterSize: 4 * KiB, options: 'refcount_bits=2,compression_type=zstd', type: 'zstd', backing: true },
  { clusterSize: 64 * KiB, options: 'compat=0.10', type: 'zlib' },
  { clusterSize: 64 * KiB, options: 'compression_type=zstd', type: 'zstd' },
  { clusterSize: 64 * KiB, options: 'refcount_bits=64', type: 'zlib', backing: true },
  { clusterSize: 2 * MiB, options: 'compression_type=zstd', type: 'zstd' },
  { clusterSize: 2 * MiB, options: 'compat=1.1', type: 'zlib', backing: true },
];

/** Zeros, noise, and what compresses, in pieces of any length. */
function someContent(random: Random, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; ) {
    const end = Math.min(length, at + 1 + random.below(length / 4));
    const kind = random.below(3);
    if (kind === 1) random.fill(bytes.subarray(at, end));
    if (kind === 2) for (let i = at; i < end; i++) bytes[i] = i & 63;
    at = end;
  }
  return bytes;
}

async function put(image: ChainImage, encode: (bytes: Uint8Array) => EncodedUnit, offset: number, bytes: Uint8Array) {
  const unit = image.compression?.unit as number;
  const units: EncodedUnit[] = [];
  for (let at = 0; at < bytes.length; at += unit) units.push(encode(bytes.subarray(at, at + unit)));
  await image.writeCompressed(offset, units);
}

for (const shape of SHAPES) {
  const { clusterSize, type, options } = shape;
  const name = `clusters of ${clusterSize}, ${options}${shape.backing ? ', backing file' : ''}`;
  test(`${name}: QEMU reads the ${type} clusters we write`, { skip: requires.qemuIo() }, async (t) => {
    const random = randomFor(t);
    const directory = await temporaryDirectory(t);
    const size = Math.min(12 * MiB, clusterSize * 180) + 512;
    const path = join(directory, 'disk.qcow2');
    const raw = join(directory, 'model.raw');
    const model = new Uint8Array(size);
    const create = ['create', '-q', '-f', 'qcow2', '-o', `cluster_size=${clusterSize},${options}`];
    if (shape.backing) {
      const base = join(directory, 'base.raw');
      const below = someContent(random, Math.floor(size / 1024) * 512);
      model.set(below);
      await writeFile(base, below);
      create.push('-b', 'base.raw', '-F', 'raw');
    }
    await qemu.img(...create, path, String(size));
    const encode = await loadClusterEncoder(type, clusterSize);
    const host = new ImageHost();
    // Where many streams share a cluster, narrow refcounts leave no room for a snapshot's references.
    const snapshots = !/refcount_bits=[12],|refcount_bits=[12]$/.test(options);
    const agree = async () => {
      await qemu.assertClean(path);
      await writeFile(raw, model);
      assert.ok(await qemu.compare(path, raw, '-f', 'qcow2', '-F', 'raw'), 'qemu-img reads something else');
      const image = await host.open(path, { readOnly: true });
      assert.ok(Buffer.compare(await readAll(image), model) === 0, 'we read something else');
      await image.close();
    };

    // QEMU writes compressed clusters only where nothing is yet.
    const part = join(directory, 'part.raw');
    model.fill(77, clusterSize, 3 * clusterSize);
    await writeFile(part, model.subarray(clusterSize, 2 * clusterSize));
    for (const at of [clusterSize, 2 * clusterSize]) await qemu.io(path, `write -q -c -s ${part} ${at} ${clusterSize}`);

    for (let round = 0; round < 3; round++) {
      const image = await host.open(path);
      const clusters = Math.ceil(size / clusterSize);
      for (let i = 0; i < 12; i++) {
        const first = random.below(clusters);
        const offset = first * clusterSize;
        const length = Math.min(size - offset, clusterSize * (1 + random.below(clusters / 3)));
        const bytes = someContent(random, length);
        if (random.chance(0.3)) await image.writev(offset, IoVec.of(bytes));
        else if (random.chance(0.1)) await image.discard(offset, length);
        else await put(image, encode, offset, bytes);
        model.set(await readBack(image, offset, length, bytes), offset);
        if (random.chance(0.2)) await image.flush();
      }
      await image.close();
      await agree();
      // What comes next is written beside QEMU's own compressed clusters, and over a snapshot.
      if (round === 0 && snapshots) await qemu.img('snapshot', '-c', 'before', path);
    }
    if (snapshots) {
      await qemu.img('snapshot', '-d', 'before', path);
      await agree();
    }
    assert.equal((await readFile(path)).length % 512, 0, 'readers may take whole sectors');
  });
}

/** What the range must hold: the bytes written, or what a discard left, which is zeros. */
async function readBack(image: ChainImage, offset: number, length: number, written: Uint8Array): Promise<Uint8Array> {
  const found = new Uint8Array(length);
  await image.readv(offset, IoVec.of(found));
  const same = Buffer.compare(found, written) === 0;
  if (!same) {
    const zero = found.findIndex((byte) => byte !== 0);
    if (image.limits.discardUnit === 0) return found;
    assert.equal(zero, -1, `byte ${offset + zero} is neither written nor discarded`);
  }
  return found;
}
