/** qcow2 images that we and QEMU's programs change in turn: content, snapshots and metadata are as both left them. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { IoVec } from '../../formats/core/iov.ts';
import { KiB, MiB } from '../../formats/core/units.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../formats/image/snapshots.ts';
import { createHost } from '../../src/open/host.ts';
import { cli } from '../support/cli.ts';
import { readAll } from '../support/qcow2-images.ts';
import { type MapEntry, qemu, qemuIo } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Shape {
  readonly compat: '0.10' | '1.1';
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly backing: boolean;
  readonly extendedL2: boolean;
  readonly dataFile: 'no' | 'plain' | 'raw';
  readonly lazy: boolean;
}

/** Every combination that the format allows. */
function shapes(): Shape[] {
  const list: Shape[] = [];
  for (const compat of ['0.10', '1.1'] as const)
    for (const clusterSize of [512, 4 * KiB, 64 * KiB, 2 * MiB])
      for (const refcountBits of [1, 8, 16, 64])
        for (const backing of [false, true])
          for (const extendedL2 of [false, true])
            for (const dataFile of ['no', 'plain', 'raw'] as const)
              for (const lazy of [false, true]) {
                if (compat === '0.10' && (refcountBits !== 16 || extendedL2 || dataFile !== 'no' || lazy)) continue;
                if (extendedL2 && clusterSize < 16 * KiB) continue;
                if (dataFile === 'raw' && backing) continue;
                list.push({ compat, clusterSize, refcountBits, backing, extendedL2, dataFile, lazy });
              }
  return list;
}

/** Shapes in one run; LUNETTE_SHAPES asks for another number, or `all`. */
const ASKED = process.env.LUNETTE_SHAPES ?? '8';

test(`${ASKED} shapes of images, changed by us and by QEMU in turn`, { skip: requires.qemuIo() }, async (t) => {
  const random = randomFor(t);
  const all = shapes();
  const chosen = ASKED === 'all' ? all : random.shuffle(all).slice(0, Number(ASKED));
  for (const shape of chosen) await mixed(shape, random, await temporaryDirectory(t));
});

/** An image, and what it must show. */
class Mixed {
  readonly path: string;
  readonly shape: Shape;
  readonly random: Random;
  readonly host = createHost();
  readonly directory: string;
  model: Uint8Array;
  readonly snapshots = new Map<string, Uint8Array>();
  /** Changed by amend. */
  version: 2 | 3;
  #bases = 0;

  constructor(directory: string, shape: Shape, random: Random) {
    this.directory = directory;
    this.path = join(directory, 'disk.qcow2');
    this.shape = shape;
    this.random = random;
    this.version = shape.compat === '1.1' ? 3 : 2;
    const size = Math.min(12 * MiB, Math.max(256 * KiB, shape.clusterSize * 60)) + 512;
    this.model = new Uint8Array(size);
  }

  get size(): number {
    return this.model.length;
  }

  async create(): Promise<void> {
    const { compat, clusterSize, refcountBits, lazy, extendedL2, dataFile, backing } = this.shape;
    const options = [
      `compat=${compat},cluster_size=${clusterSize},lazy_refcounts=${lazy ? 'on' : 'off'}`,
      ...(compat === '1.1' ? [`refcount_bits=${refcountBits},extended_l2=${extendedL2 ? 'on' : 'off'}`] : []),
      ...(dataFile === 'no' ? [] : [`data_file=${join(this.directory, 'data.raw')}`]),
      ...(dataFile === 'raw' ? ['data_file_raw=on'] : []),
    ].join(',');
    if (backing) this.random.fill(this.model.subarray(0, Math.floor(this.size / 3)));
    const below = backing ? ['-b', await this.#base(), '-F', 'raw'] : [];
    await qemu.img('create', '-q', '-f', 'qcow2', '-o', options, ...below, this.path, String(this.size));
  }

  /** A raw file with what the disk shows. */
  async #base(): Promise<string> {
    const name = `base${this.#bases++}.raw`;
    await writeFile(join(this.directory, name), this.model);
    return name;
  }

  async open<T>(act: (image: ChainImage) => Promise<T>): Promise<T> {
    const image = await this.host.open(this.path);
    try {
      return await act(image);
    } finally {
      await image.close();
    }
  }

  /** A few changes of the content by one of us. */
  async write(ours: boolean): Promise<string> {
    const { random, size, model } = this;
    const { clusterSize, backing } = this.shape;
    const commands: string[] = [];
    const done: string[] = [];
    const image = ours ? await this.host.open(this.path) : undefined;
    try {
      for (let i = 0; i < 6; i++) {
        let offset = random.below(size / 512) * 512;
        let length = Math.min(size - offset, 512 * random.between(1, Math.max(8, clusterSize / 256)));
        const kind = random.pick(['write', 'write', 'write', 'zero', 'unmap', 'discard'] as const);
        // Only of whole clusters is it said what a discard leaves, and where a parent would show version 2 has none.
        if (kind === 'discard') {
          if (this.version === 2 && backing) continue;
          offset -= offset % clusterSize;
          length = Math.ceil(length / clusterSize) * clusterSize;
          if (offset + length > size) continue;
        }
        done.push(`${kind} ${offset} ${length}`);
        const value = kind === 'write' ? random.between(1, 255) : 0;
        if (image === undefined) {
          const command = {
            write: `write -q -P ${value}`,
            zero: 'write -q -z',
            unmap: 'write -q -z -u',
            discard: 'discard -q',
          };
          commands.push(`${command[kind]} ${offset} ${length}`);
        } else if (kind === 'write') await image.writev(offset, IoVec.of(new Uint8Array(length).fill(value)));
        else if (kind === 'discard') await image.discard(offset, length);
        else await image.writeZeroes(offset, length, kind === 'unmap');
        model.fill(value, offset, offset + length);
      }
      if (commands.length > 0) await qemuIo(this.path, commands, '-d', 'unmap');
    } finally {
      await image?.close();
    }
    return done.join(', ');
  }

  async snapshot(ours: boolean, step: number): Promise<void> {
    if (this.shape.refcountBits === 1 || this.shape.dataFile !== 'no') return;
    const name = `s${step}`;
    if (this.random.chance(0.5)) {
      if (ours) await this.open((image) => createSnapshot(image, name));
      else await qemu.img('snapshot', '-c', name, this.path);
      this.snapshots.set(name, this.model.slice());
    } else if (this.snapshots.size > 0) {
      const chosen = this.random.pick([...this.snapshots.keys()]);
      // Bases change under snapshots that were taken before; those without stay comparable.
      if (this.random.chance(0.4)) {
        if (ours) await this.open((image) => applySnapshot(image, { name: chosen }));
        else await qemu.img('snapshot', '-a', chosen, this.path);
        this.model = (this.snapshots.get(chosen) as Uint8Array).slice();
      } else {
        if (ours) await this.open((image) => deleteSnapshot(image, { name: chosen }));
        else await qemu.img('snapshot', '-d', chosen, this.path);
        this.snapshots.delete(chosen);
      }
    }
  }

  async resize(ours: boolean): Promise<void> {
    if (this.version === 2 && this.snapshots.size > 0) return;
    const { random, size } = this;
    const change = 512 * random.between(1, Math.max(64, this.shape.clusterSize / 128));
    const next = random.chance(0.6) ? size + change : Math.max(64 * KiB, size - change);
    // Behind its old end a longer parent must not show, which version 2 has no words for.
    if (this.version === 2 && this.shape.backing && next > size) return;
    if (ours) await this.open((image) => image.resize(next, { shrink: true }));
    else await qemu.img('resize', '-q', '-f', 'qcow2', ...(next < size ? ['--shrink'] : []), this.path, String(next));
    const model = new Uint8Array(next);
    model.set(this.model.subarray(0, next));
    this.model = model;
  }

  async amend(ours: boolean): Promise<void> {
    const { refcountBits, extendedL2, dataFile } = this.shape;
    const otherSize = [...this.snapshots.values()].some(({ length }) => length !== this.size);
    const old = refcountBits === 16 && !extendedL2 && dataFile === 'no' && !otherSize;
    const to = this.random.pick([
      'compat=1.1',
      'compat=0.10',
      'compat=1.1,lazy_refcounts=on',
      'compat=1.1,lazy_refcounts=off',
    ]);
    if (to === 'compat=0.10' && !old) return;
    // QEMU 7.2 gives zeros that snapshots share a cluster, and may leave it marked as the live disk's alone, in images that only it has written.
    if (to === 'compat=0.10' && !ours && this.snapshots.size > 0) return;
    if (ours) {
      const { status, stderr } = await cli('amend', '-f', 'qcow2', '-o', to, this.path);
      assert.equal(status, 0, stderr);
    } else await qemu.img('amend', '-q', '-f', 'qcow2', '-o', to, this.path);
    this.version = to === 'compat=0.10' ? 2 : 3;
  }

  /** Another backing file, or its own with all that was written. Snapshots would show another parent then. */
  async below(ours: boolean): Promise<void> {
    if (!this.shape.backing || this.snapshots.size > 0) return;
    if (this.random.chance(0.5)) {
      const content = this.model.slice();
      this.random.fill(this.model.subarray(0, Math.floor(this.size / 2)));
      const base = await this.#base();
      this.model = content;
      const args = ['rebase', '-f', 'qcow2', '-b', base, '-F', 'raw', this.path];
      if (!ours) await qemu.img(...args);
      else
        assert.equal(
          (await cli('rebase', '-f', 'qcow2', '-b', join(this.directory, base), '-F', 'raw', this.path)).status,
          0,
        );
    } else if (ours) assert.equal((await cli('commit', '-q', '-f', 'qcow2', this.path)).status, 0);
    else await qemu.img('commit', '-q', '-f', 'qcow2', this.path);
  }

  /** Whole, and where its parts lie, to both of us. */
  async check(context: string): Promise<void> {
    await qemu.assertClean(this.path).catch((error: Error) => assert.fail(`${context}: ${error.message}`));
    const shown = await this.host.open(this.path, { readOnly: true });
    const bytes = await readAll(shown);
    await shown.close();
    const at = firstDifference(bytes, this.model);
    assert.ok(at < 0, `${context}: we read ${bytes[at]}, not ${this.model[at]} at ${at} of ${this.size}`);
    const theirs = await qemu.map(this.path);
    const { status, stdout, stderr } = await cli('map', '--json', '--compat', '7.2', this.path);
    assert.equal(status, 0, stderr);
    assert.deepEqual(plainMap(JSON.parse(stdout)), plainMap(theirs), `${context}: map`);
  }
}

function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return -1;
  const at = a.findIndex((byte, i) => byte !== b[i]);
  return at < 0 ? Math.min(a.length, b.length) : at;
}

/**
 * A map without what is no property of the image: where the file system has a hole in a cluster that holds data QEMU says so in images that look
 * preallocated, which depends on what the file system gave the file. What is not allocated has no place for us; QEMU gives one to subclusters
 * beside others that are.
 */
function plainMap(entries: readonly MapEntry[]): MapEntry[] {
  const result: MapEntry[] = [];
  for (const entry of entries) {
    const { offset, ...rest } = { ...entry, zero: entry.zero && !entry.data };
    const placed: MapEntry = offset !== undefined && rest.present ? { ...rest, offset } : rest;
    const last = result.at(-1);
    const next = last?.offset === undefined ? undefined : last.offset + last.length;
    const { start: _a, length: _b, offset: _c, ...a } = last ?? placed;
    const { start: _d, length: _e, offset: at, ...b } = placed;
    if (last !== undefined && next === at && isDeepStrictEqual(a, b)) {
      result[result.length - 1] = { ...last, length: last.length + entry.length };
    } else result.push(placed);
  }
  return result;
}

async function mixed(shape: Shape, random: Random, directory: string): Promise<void> {
  const it = new Mixed(directory, shape, random);
  const what = JSON.stringify(shape);
  await it.create();
  for (let step = 0; step < 8; step++) {
    const ours = random.chance(0.5);
    const done = [await it.write(ours)];
    const next = random.pick(['snapshot', 'snapshot', 'snapshot', 'resize', 'amend', 'below'] as const);
    done.push(next);
    const context = `${what}, step ${step}: ${ours ? 'we' : 'QEMU'} ${done.join(', ')}`;
    try {
      if (next === 'snapshot') await it.snapshot(ours, step);
      else await it[next](ours);
    } catch (error) {
      assert.fail(`${context}: ${error}`);
    }
    await it.check(context);
  }
  const { path, host, model } = it;
  const reference = join(directory, 'model.raw');
  await writeFile(reference, model);
  assert.ok(await qemu.compare(path, reference, '-f', 'qcow2', '-F', 'raw'), `${what}: QEMU reads something else`);
  const reader = await host.open(path, { readOnly: true });
  assert.ok(Buffer.compare(await readAll(reader), model) === 0, `${what}: we read something else`);
  await reader.close();
  if (shape.dataFile === 'raw') {
    const data = await readFile(join(directory, 'data.raw'));
    assert.ok(Buffer.compare(data.subarray(0, model.length), model) === 0, `${what}: the raw data file differs`);
  }
  for (const [name, bytes] of it.snapshots) {
    const snapshot = await host.open(path, { snapshot: name });
    assert.ok(Buffer.compare(await readAll(snapshot), bytes) === 0, `${what}: snapshot ${name} has changed`);
    await snapshot.close();
  }
}
