/** Conversions that fail on the way and are continued, for all kinds of targets: what QEMU reads in the end is the source. */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { open, readdir, readFile, statfs, unlink, utimes, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { LunetteError, StorageError } from '../../formats/core/errors.ts';
import type { IoVec } from '../../formats/core/iov.ts';
import { MiB } from '../../formats/core/units.ts';
import type { ChainImage, StorageOpener } from '../../formats/index.ts';
import { type ConvertOptions, convertImage } from '../../src/convert/convert.ts';
import type { DiskSource } from '../../src/convert/disk.ts';
import { openStorage as openNative } from '../../src/io/open-storage.ts';
import { createHost } from '../../src/open/host.ts';
import { mountMade, mountMemory } from '../support/mounts.ts';
import { runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuIo();
const SIZE = 40 * MiB;

/** A disk that fails once so many bytes have been read from it, and counts them. */
class FailingDisk implements DiskSource {
  readonly path: string;
  readonly size: number;
  readonly layers: ChainImage['layers'] | undefined;
  readonly #image: ChainImage;
  bytesRead = 0;
  failAfter = Number.POSITIVE_INFINITY;

  /** @param known false: nothing says whether it has changed */
  constructor(image: ChainImage, known: boolean) {
    this.#image = image;
    this.path = image.path;
    this.size = image.size;
    this.layers = known ? image.layers : undefined;
  }

  map: DiskSource['map'] = (...args) => this.#image.map(...args);

  tryReadv(): boolean {
    return false;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    this.bytesRead += iov.byteLength;
    if (this.bytesRead > this.failAfter) throw new LunetteError('IO', 'the cable is out', { path: this.path });
    await this.#image.readv(offset, iov);
  }
}

/** A raw disk of data with holes and zeros. @returns its path and bytes of data */
async function sourceDisk(folder: string, random: Random): Promise<{ path: string; data: number }> {
  const path = join(folder, 'source.raw');
  const words = new Uint32Array(SIZE / 4);
  let data = 0;
  for (let at = 0; at < SIZE; at += MiB / 4) {
    if (random.fraction() < 0.2) continue;
    data += MiB / 4;
    for (let i = at / 4; i < (at + MiB / 4) / 4; i += 2) words[i] = random.next();
  }
  await writeFile(path, words);
  return { path, data };
}

async function openSource(t: TestContext, path: string, known = true): Promise<FailingDisk> {
  const image = await createHost().open(path, { format: 'raw', readOnly: true });
  t.after(() => image.close());
  return new FailingDisk(image, known);
}

interface Attempt {
  readonly target: string;
  readonly disk: FailingDisk;
  readonly options: Pick<ConvertOptions, 'format'> & Partial<ConvertOptions>;
}

/** Converts with a checkpoint after every piece. @returns what was said, and the result or the failure */
async function attempt({ target, disk, options }: Attempt) {
  const said: string[] = [];
  try {
    const result = await convertImage({
      sources: [disk],
      target,
      parallel: 2,
      sync: false,
      ...options,
      resume: { names: ['source'], everyMs: 0, ...options.resume, say: (text) => said.push(text) },
    });
    return { said, result };
  } catch (error) {
    return { said, error: error as LunetteError };
  }
}

/** Names beside the target that it left. */
async function left(folder: string, kind: RegExp): Promise<string[]> {
  return (await readdir(folder)).filter((name) => kind.test(name));
}

const TARGETS: Readonly<Record<string, Pick<ConvertOptions, 'format'> & Partial<ConvertOptions>>> = {
  raw: { format: 'raw' },
  qcow2: { format: 'qcow2' },
  'qcow2 version 2 in small clusters': { format: 'qcow2', values: { compat: '0.10', cluster_size: 4096 } },
  'qcow2 with subclusters': { format: 'qcow2', values: { extended_l2: true } },
  'qcow2 that keeps no exact refcounts': { format: 'qcow2', values: { lazy_refcounts: true } },
  'qcow2, preallocated': { format: 'qcow2', values: { preallocation: 'metadata' } },
  'compressed qcow2': { format: 'qcow2', compress: true },
  'qcow2 with a data file': { format: 'qcow2', values: { data_file: 'disk.data' } },
  VDI: { format: 'vdi' },
  'VDI of fixed size': { format: 'vdi', values: { static: true } },
  VMDK: { format: 'vmdk' },
  'VMDK in two files': { format: 'vmdk', values: { subformat: 'twoGbMaxExtentSparse' } },
  'flat VMDK': { format: 'vmdk', values: { subformat: 'monolithicFlat' } },
};

for (const [name, given] of Object.entries(TARGETS)) {
  test(`${name}: a conversion that fails again and again is continued, and is right in the end`, {
    skip,
  }, async (t) => {
    const random = randomFor(t);
    const folder = await temporaryDirectory(t);
    const { path } = await sourceDisk(await temporaryDirectory(t), random);
    const target = join(folder, 'disk.img');
    // QEMU looks for relative names of data files where it runs.
    const values = given.values?.data_file === undefined ? given.values : { data_file: join(folder, 'disk.data') };
    const options = { ...given, values };
    await writeFile(target, 'precious');
    let continued = 0;
    for (let round = 0; round < 3; round++) {
      const disk = await openSource(t, path);
      disk.failAfter = SIZE * 0.3;
      const { said, error } = await attempt({ target, disk, options });
      assert.match(String(error), /the cable is out/);
      assert.match(error?.help ?? '', /^What is done stays in .*\.disk\.img\.lunette-new: the same command goes on/);
      continued += said.filter((text) => text.startsWith('goes on where')).length;
      assert.equal(await readFile(target, 'utf8'), 'precious');
    }
    assert.equal(continued, 2);
    const disk = await openSource(t, path);
    const { said, result, error } = await attempt({ target, disk, options: { ...options, checksum: true } });
    assert.equal(error, undefined);
    assert.match(said.join('\n'), /^goes on where an earlier conversion ended, at \d+ %/);
    // Each failure costs what was under way: some pieces of 1 MiB.
    assert.ok(disk.bytesRead <= SIZE - 3 * (SIZE * 0.3 - 6 * MiB), `${disk.bytesRead} bytes were read again`);
    assert.equal(
      result?.checksum,
      createHash('sha256')
        .update(await readFile(path))
        .digest('hex'),
    );
    assert.equal(await qemu.compare(target, path, '-f', options.format, '-F', 'raw'), true);
    if (options.format !== 'raw') await qemu.assertClean(target);
    assert.deepEqual(await left(folder, /lunette/), []);
  });
}

/** No checkpoint is due before it fails. */
const LATE = { names: ['source'], everyMs: 1e9 };

for (const [name, given] of Object.entries(TARGETS)) {
  test(`${name}: a conversion that fails before its first checkpoint is continued from where it failed`, {
    skip,
  }, async (t) => {
    const random = randomFor(t);
    const folder = await temporaryDirectory(t);
    const { path } = await sourceDisk(await temporaryDirectory(t), random);
    const target = join(folder, 'disk.img');
    const values = given.values?.data_file === undefined ? given.values : { data_file: join(folder, 'disk.data') };
    const disk = await openSource(t, path);
    disk.failAfter = SIZE * (0.3 + 0.6 * random.fraction());
    const { error } = await attempt({ target, disk, options: { ...given, values, resume: LATE } });
    assert.match(String(error), /the cable is out/);
    assert.match(error?.help ?? '', /^What is done stays in .*: the same command goes on from there\.$/);
    const second = await openSource(t, path);
    const { said, error: none } = await attempt({ target, disk: second, options: { ...given, values } });
    assert.equal(none, undefined);
    assert.match(said.join('\n'), /^goes on where an earlier conversion ended, at \d+ %/);
    // What was read ahead of the failure, and the block of 1 MiB in which it was, are read again.
    const again = SIZE - disk.failAfter + 5 * MiB;
    assert.ok(second.bytesRead <= again, `${second.bytesRead} bytes were read again, not ${again}`);
    assert.equal(await qemu.compare(target, path, '-f', given.format, '-F', 'raw'), true);
    if (given.format !== 'raw') await qemu.assertClean(target);
    assert.deepEqual(await left(folder, /lunette/), []);
  });
}

/** Fails all writes to hidden files from the nth on, as a disk with a bad place does; opens everything else as it is. */
function failingWrites(after: number): StorageOpener {
  let writes = 0;
  return async (file, options) => {
    const storage = await openNative(file, options);
    if (!file.endsWith('.lunette-new')) return storage;
    const writev = storage.writev.bind(storage);
    storage.tryWritev = () => false;
    storage.writev = async (offset, iov) => {
      if (iov.byteLength >= MiB / 8 && ++writes > after && writes < after + 4) {
        throw new StorageError('IO', 'a bad place', { path: file });
      }
      await writev(offset, iov);
    };
    return storage;
  };
}

for (const name of ['raw', 'qcow2', 'compressed qcow2', 'VDI', 'VMDK'] as const) {
  test(`${name}: only what is written before the first write that fails is believed of a conversion`, {
    skip,
  }, async (t) => {
    const random = randomFor(t);
    const given = TARGETS[name] as (typeof TARGETS)[string];
    const folder = await temporaryDirectory(t);
    const { path } = await sourceDisk(await temporaryDirectory(t), random);
    const target = join(folder, 'disk.img');
    for (let round = 0; round < 4; round++) {
      const openStorage = failingWrites(4 + random.below(24));
      const options = { ...given, parallel: 8, openStorage, resume: LATE };
      const { error } = await attempt({ target, disk: await openSource(t, path), options });
      assert.match(String(error), /a bad place/);
      assert.match(error?.help ?? '', /the same command goes on from there\.$/);
      const { said, error: none } = await attempt({ target, disk: await openSource(t, path), options: given });
      assert.equal(none, undefined);
      assert.match(said.join('\n'), /^goes on where an earlier conversion ended, at \d+ %/);
      assert.equal(await qemu.compare(target, path, '-f', given.format, '-F', 'raw'), true);
      if (given.format !== 'raw') await qemu.assertClean(target);
      assert.deepEqual(await readdir(folder), ['disk.img']);
    }
  });
}

test('a conversion that is interrupted before its first checkpoint, or when all is written, is continued', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.qcow2');
  for (const [compress, at] of [
    [false, 0.5],
    [true, 0.5],
    [false, 1],
  ] as const) {
    const stop = new AbortController();
    const progress = (done: number): void => {
      if (at < 1 && done >= SIZE * at) stop.abort();
    };
    const settle = async (): Promise<void> => {
      throw new LunetteError('ABORTED', 'interrupted');
    };
    const options = { format: 'qcow2', compress, signal: stop.signal, progress, settle, resume: LATE };
    const { error } = await attempt({ target, disk: await openSource(t, path), options });
    assert.equal(error?.code, 'ABORTED');
    assert.match(error.help ?? '', /the same command goes on from there\.$/);
    const second = await openSource(t, path);
    const { said } = await attempt({ target, disk: second, options: { format: 'qcow2', compress } });
    assert.match(said.join('\n'), at === 1 ? /^goes on .* at 100 %/ : /^goes on .* at [3-9]\d %/);
    if (at === 1) assert.equal(second.bytesRead, 0);
    assert.equal(await qemu.compare(target, path, '-f', 'qcow2', '-F', 'raw'), true);
    await qemu.assertClean(target);
  }
});

/** File systems with so little room that no target fits, and how to give them more. */
const SMALL: Readonly<
  Record<string, (t: TestContext, room: number) => Promise<{ folder: string; makeRoom(): Promise<void> }>>
> = {
  tmpfs: async (t, room) => {
    const folder = await mountMemory(t, room);
    return { folder, makeRoom: () => runOk('mount', ['-o', 'remount,size=64m', folder]).then(() => undefined) };
  },
  ext4: async (t, room) => {
    const folder = await mountMade(t, 'mkfs.ext4', 80 * MiB);
    if (folder === undefined) return { folder: '', makeRoom: async () => undefined };
    const { bavail, bsize } = await statfs(folder);
    const ballast = join(folder, 'ballast');
    await writeFile(ballast, Buffer.alloc(bavail * bsize - room, 1));
    return { folder, makeRoom: () => unlink(ballast) };
  },
};

for (const [kind, small] of Object.entries(SMALL)) {
  test(`a disk (${kind}) that is full before the first checkpoint keeps what is done, and so does a second time`, {
    skip: skip || requires.root(),
  }, async (t) => {
    const random = randomFor(t);
    const { path } = await sourceDisk(await temporaryDirectory(t), random);
    const names = ['raw', 'qcow2', 'qcow2 version 2 in small clusters', 'compressed qcow2', 'VDI', 'VMDK'] as const;
    for (const name of names) {
      const { folder, makeRoom } = await small(t, (name === 'compressed qcow2' ? 12 : 24) * MiB);
      if (folder === '') return t.diagnostic(`no ${kind} can be made here`);
      const target = join(folder, 'disk.img');
      const given = TARGETS[name] as (typeof TARGETS)[string];
      const options = { ...given, sync: true, resume: LATE };
      for (const begun of [false, true]) {
        const full = await attempt({ target, disk: await openSource(t, path), options });
        assert.equal(full.error?.code, 'NO_SPACE', name);
        assert.match(full.error.help ?? '', /What is done stays in .*: the same command goes on from there\./, name);
        if (begun) assert.match(full.said.join('\n'), /^goes on where/, name);
      }
      await makeRoom();
      const { said, error } = await attempt({ target, disk: await openSource(t, path), options });
      assert.equal(error, undefined, name);
      assert.match(said.join('\n'), /^goes on where an earlier conversion ended, at [2-9]\d %/, name);
      assert.equal(await qemu.compare(target, path, '-f', given.format, '-F', 'raw'), true);
      if (given.format !== 'raw') await qemu.assertClean(target);
      assert.deepEqual(await left(folder, /lunette/), []);
    }
  });
}

test('a compressed conversion that is interrupted when all is written is continued, also where the disk ends within a cluster', {
  skip,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const path = join(await temporaryDirectory(t), 'source.raw');
  const size = 3.5 * MiB;
  await writeFile(path, Buffer.alloc(size, 'what packs well '));
  const target = join(folder, 'disk.qcow2');
  const given = { format: 'qcow2', compress: true, values: { cluster_size: '2M' } };
  const stop = new AbortController();
  const progress = (done: number): void => {
    if (done === size) stop.abort();
  };
  const options = { ...given, signal: stop.signal, progress, resume: LATE };
  const { error } = await attempt({ target, disk: await openSource(t, path), options });
  assert.equal(error?.code, 'ABORTED');
  const { said, error: none } = await attempt({ target, disk: await openSource(t, path), options: given });
  assert.equal(none, undefined);
  assert.match(said.join('\n'), /^goes on where an earlier conversion ended, at 57 %/);
  assert.equal(await qemu.compare(target, path, '-f', 'qcow2', '-F', 'raw'), true);
});

test('over a backing file a conversion is continued, too, and still writes only what differs', { skip }, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path } = await sourceDisk(folder, random);
  const base = join(folder, 'base.qcow2');
  await qemu.convert(path, base, '-f', 'raw', '-O', 'qcow2');
  const overlay = join(folder, 'overlay.qcow2');
  await qemu.img('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', overlay);
  await qemu.io(overlay, 'write -P 1 1M 5M', 'write -z 9M 2M', 'write -P 2 20M 1M');
  const target = join(folder, 'disk.qcow2');
  const options = { format: 'qcow2', backing: { reference: 'base.qcow2', format: 'qcow2' } };
  const openOverlay = async () => {
    const image = await createHost().open(overlay, { readOnly: true });
    t.after(() => image.close());
    return new FailingDisk(image, true);
  };
  const first = await openOverlay();
  first.failAfter = 5 * MiB;
  assert.match(String((await attempt({ target, disk: first, options })).error), /the cable is out/);
  const second = await openOverlay();
  const { said } = await attempt({ target, disk: second, options });
  assert.match(said.join('\n'), /^goes on where/);
  assert.ok(second.bytesRead < 8 * MiB);
  assert.equal(await qemu.compare(target, overlay), true);
  await qemu.assertClean(target);
  const kept = (await qemu.map(target)).filter(({ depth }) => depth === 0);
  const bytes = kept.reduce((sum, { length }) => sum + length, 0);
  // Zeros over what is zeros below need no place.
  assert.ok(bytes <= 8 * MiB && bytes >= 6 * MiB, `${bytes} bytes`);
});

test('over a backing file that the source stands on, a conversion with a checksum is continued', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path } = await sourceDisk(folder, random);
  const base = join(folder, 'base.qcow2');
  await qemu.convert(path, base, '-f', 'raw', '-O', 'qcow2');
  const overlay = join(folder, 'overlay.qcow2');
  await qemu.img('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', overlay);
  await qemu.io(overlay, 'write -P 1 1M 5M', 'write -z 9M 2M', 'write -P 2 20M 1M');
  const target = join(folder, 'disk.qcow2');
  const options = { format: 'qcow2', backing: { reference: 'base.qcow2', format: 'qcow2' }, checksum: true };
  const openOverlay = async () => {
    const image = await createHost().open(overlay, { readOnly: true });
    t.after(() => image.close());
    return new FailingDisk(image, true);
  };
  const first = await openOverlay();
  first.failAfter = 20 * MiB;
  assert.match(String((await attempt({ target, disk: first, options })).error), /the cable is out/);
  const second = await openOverlay();
  const { said, result } = await attempt({ target, disk: second, options });
  assert.match(said.join('\n'), /^goes on where/);
  const raw = join(folder, 'whole.raw');
  await qemu.convert(overlay, raw, '-f', 'qcow2', '-O', 'raw');
  assert.equal(
    result?.checksum,
    createHash('sha256')
      .update(await readFile(raw))
      .digest('hex'),
  );
  assert.equal(await qemu.compare(target, overlay), true);
  await qemu.assertClean(target);
});

test('what the target does not hold any more as the journal says is written again', { skip }, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path, data } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.raw');
  const options = { format: 'raw' };
  const disk = await openSource(t, path);
  disk.failAfter = data * 0.6;
  await attempt({ target, disk, options });
  const source = await readFile(path);
  const file = await open(join(folder, '.disk.raw.lunette-new'), 'r+');
  const at = 8 * MiB + source.subarray(8 * MiB).findIndex((byte) => byte !== 0);
  await file.write(Buffer.of((source[at] as number) ^ 1), 0, 1, at);
  await file.close();
  const second = await openSource(t, path);
  const { said } = await attempt({ target, disk: second, options });
  assert.match(said.join('\n'), /^goes on where an earlier conversion ended, at (\d|1\d|20) %/);
  assert.deepEqual(await readFile(target), source);
});

test('a source that changed, or other options, start over, and it is said why', { skip }, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path, data } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.qcow2');
  const begin = async (): Promise<void> => {
    const disk = await openSource(t, path);
    disk.failAfter = data * 0.5;
    assert.notEqual((await attempt({ target, disk, options: { format: 'qcow2' } })).error, undefined);
    assert.equal((await left(folder, /lunette-journal/)).length, 1);
  };
  const finish = async (options: Attempt['options']): Promise<string> => {
    const { said, error } = await attempt({ target, disk: await openSource(t, path), options });
    assert.equal(error, undefined);
    assert.equal(await qemu.compare(target, path, '-f', options.format, '-F', 'raw'), true);
    assert.deepEqual(await readdir(folder), [basename(target)]);
    return said.join('\n');
  };
  await begin();
  await utimes(path, 1, 1);
  assert.match(await finish({ format: 'qcow2' }), /its source source has changed since: starts over$/);
  await begin();
  assert.match(await finish({ format: 'qcow2', values: { cluster_size: 4096 } }), /other options: starts over$/);
  await begin();
  assert.match(await finish({ format: 'vdi' }), /other options: starts over$/);
  await begin();
  await writeFile(join(folder, '.disk.qcow2.lunette-journal'), 'nonsense');
  assert.match(await finish({ format: 'qcow2' }), /no journal.*: starts over$/);
  await begin();
  await writeFile(join(folder, '.disk.qcow2.lunette-new'), 'nonsense');
  assert.match(await finish({ format: 'qcow2' }), /metadata is damaged: starts over$/);
});

test('a source of which nothing says that it is the same is read again, and must have the same content', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path, data } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.qcow2');
  const options = { format: 'qcow2' };
  const fail = async (): Promise<void> => {
    const disk = await openSource(t, path, false);
    disk.failAfter = data * 0.6;
    await attempt({ target, disk, options });
  };
  await fail();
  const same = await attempt({ target, disk: await openSource(t, path, false), options });
  assert.match(same.said.join('\n'), /^goes on where/);
  assert.equal(await qemu.compare(target, path, '-f', 'qcow2', '-F', 'raw'), true);
  await fail();
  const bytes = await readFile(path);
  bytes.fill(0x77, 2 * MiB, 3 * MiB);
  await writeFile(path, bytes);
  const other = await attempt({ target, disk: await openSource(t, path, false), options });
  assert.match(other.said.join('\n'), /the source has changed: starts over$/);
  assert.equal(await qemu.compare(target, path, '-f', 'qcow2', '-F', 'raw'), true);
});

test('without resume nothing is left, and what could have been continued is named when it is thrown away', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path, data } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.qcow2');
  const disk = await openSource(t, path);
  disk.failAfter = data * 0.5;
  await attempt({ target, disk, options: { format: 'qcow2' } });
  const warnings: string[] = [];
  const plain = { sources: [await openSource(t, path)], target, format: 'qcow2', sync: false };
  await convertImage({ ...plain, warn: (text) => warnings.push(text) });
  assert.match(warnings.join('\n'), /thrown away: with --resume it would have been continued$/);
  assert.deepEqual(await readdir(folder), ['disk.qcow2']);
  const failing = await openSource(t, path);
  failing.failAfter = data * 0.5;
  // With a checksum all bytes pass through the disk; else the addon copies between the files that its map names.
  await assert.rejects(convertImage({ ...plain, sources: [failing], checksum: true }), /the cable is out/);
  assert.deepEqual(await readdir(folder), ['disk.qcow2']);
});

test('a conversion that was killed when its image had its name is not gone on with, and leaves nothing', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.vmdk');
  const hidden = (name: string): string => join(folder, `.${name}.lunette-new`);
  const options = { format: 'vmdk', values: { subformat: 'twoGbMaxExtentSparse' } };
  const extent = 'disk-s001.vmdk';
  /** As it is when it is killed between the names and the end: names swapped, the journal there. */
  const killed = async (): Promise<void> => {
    const old = await readFile(path);
    let journal = '';
    const openStorage: StorageOpener = async (file, how) => {
      if (file === hidden(basename(target))) {
        journal = await readFile(join(folder, '.disk.vmdk.lunette-journal'), 'utf8').catch(() => '');
      }
      return openNative(file, how);
    };
    const disk = await openSource(t, path);
    assert.equal((await attempt({ target, disk, options: { ...options, openStorage } })).error, undefined);
    for (const name of [basename(target), extent]) await writeFile(hidden(name), old.subarray(0, 2 * MiB));
    await writeFile(join(folder, '.disk.vmdk.lunette-journal'), journal);
    assert.match(journal, /"whole"/);
  };
  const files = [extent, basename(target)].sort();

  await killed();
  const { said, error } = await attempt({ target, disk: await openSource(t, path), options });
  assert.equal(error, undefined);
  assert.deepEqual(said, []);
  assert.deepEqual((await readdir(folder)).sort(), files);
  assert.equal(await qemu.compare(target, path, '-f', 'vmdk', '-F', 'raw'), true);

  await killed();
  const warnings: string[] = [];
  const plain = { sources: [await openSource(t, path)], target, format: 'vmdk', sync: false };
  await convertImage({ ...plain, warn: (text) => warnings.push(text) });
  assert.deepEqual(warnings, []);
  assert.deepEqual((await readdir(folder)).sort(), files);
  assert.equal(await qemu.compare(target, path, '-f', 'vmdk', '-F', 'raw'), true);
});

test('other options leave nothing of the files that a disk in several files had begun', { skip }, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path, data } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.vmdk');
  for (const resumes of [true, false]) {
    // Over a disk in several files, of which each is locked meanwhile.
    const split = { format: 'vmdk', values: { subformat: 'twoGbMaxExtentSparse' } };
    await attempt({ target, disk: await openSource(t, path), options: split });
    const disk = await openSource(t, path);
    disk.failAfter = data * 0.5;
    assert.notEqual((await attempt({ target, disk, options: split })).error, undefined);
    assert.deepEqual(await left(folder, /s001.*lunette-new/), ['.disk-s001.vmdk.lunette-new']);
    const whole = { sources: [await openSource(t, path)], target, format: 'vmdk', sync: false };
    await convertImage({ ...whole, resume: resumes ? { names: ['source'] } : undefined });
    assert.deepEqual(await left(folder, /lunette/), []);
    assert.equal(await qemu.compare(target, path, '-f', 'vmdk', '-F', 'raw'), true);
  }
});

test('a disk in several files whose metadata is damaged starts over onto one that is there', { skip }, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path, data } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.vmdk');
  const options = { format: 'vmdk', values: { subformat: 'twoGbMaxExtentSparse' } };
  await attempt({ target, disk: await openSource(t, path), options });
  const disk = await openSource(t, path);
  disk.failAfter = data * 0.5;
  await attempt({ target, disk, options });
  await writeFile(join(folder, '.disk-s001.vmdk.lunette-new'), 'nonsense');
  const { said, error } = await attempt({ target, disk: await openSource(t, path), options });
  assert.equal(error, undefined);
  assert.match(said.join('\n'), /metadata is damaged: starts over$/);
  assert.equal(await qemu.compare(target, path, '-f', 'vmdk', '-F', 'raw'), true);
  assert.deepEqual(await left(folder, /lunette/), []);
});

test('streams start over, say so, and leave nothing', { skip }, async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const { path, data } = await sourceDisk(await temporaryDirectory(t), random);
  const target = join(folder, 'disk.vmdk');
  const warnings: string[] = [];
  const warn = (message: string): void => void warnings.push(message);
  const options = { format: 'vmdk', values: { subformat: 'streamOptimized' }, warn };
  const disk = await openSource(t, path);
  disk.failAfter = data * 0.5;
  assert.match(String((await attempt({ target, disk, options })).error), /the cable is out/);
  assert.deepEqual(await readdir(folder), []);
  assert.match(warnings.join('\n'), /^--resume does nothing for it: a stream cannot be continued/);
  assert.equal((await attempt({ target, disk: await openSource(t, path), options })).error, undefined);
  assert.equal(await qemu.compare(target, path, '-f', 'vmdk', '-F', 'raw'), true);
});
