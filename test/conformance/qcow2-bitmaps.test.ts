/** Persistent dirty bitmaps with QEMU's programs as the other hand: each keeps, changes and reads what the other made. */

import assert from 'node:assert/strict';
import { copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { KiB, MiB } from '../../formats/core/units.ts';
import * as bitmaps from '../../formats/image/bitmaps.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { applySnapshot, createSnapshot } from '../../formats/image/snapshots.ts';
import { ImageHost } from '../../formats/open.ts';
import { dirtyMap } from '../support/bitmaps.ts';
import { nbdMap, startQemuNbd } from '../support/nbd.ts';
import { assertClean, create, info, qemuImg, qemuIo } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../support/temporary.ts';

interface Shape {
  readonly clusterSize: number;
  readonly size: number;
  readonly options: Readonly<Record<string, string | number>>;
}

const SHAPES: readonly Shape[] = [
  { clusterSize: 512, size: 3 * MiB, options: { refcount_bits: 64 } },
  { clusterSize: 4 * KiB, size: 40 * MiB + 512, options: {} },
  { clusterSize: 64 * KiB, size: 300 * MiB + 1536, options: {} },
  { clusterSize: 2 * MiB, size: 64 * MiB, options: {} },
  { clusterSize: 16 * KiB, size: 40 * MiB + 512, options: { extended_l2: 'on' } },
  { clusterSize: 4 * KiB, size: 20 * MiB, options: { data_file: 'data.raw' } },
  { clusterSize: 64 * KiB, size: 40 * MiB + 512, options: { data_file: 'data.raw', data_file_raw: 'on' } },
  { clusterSize: 32 * KiB, size: 40 * MiB, options: { data_file: 'data.raw', extended_l2: 'on' } },
];

async function withImage<T>(path: string, act: (image: ChainImage) => Promise<T>, readOnly = false): Promise<T> {
  const host = new ImageHost();
  const image = await host.open(path, { format: 'qcow2', readOnly });
  try {
    return await act(image);
  } finally {
    await image.close();
  }
}

/** What a bitmap must be: a flag for each granule. */
class Expected {
  readonly granularity: number;
  enabled: boolean;
  bits: Uint8Array;

  constructor(size: number, granularity: number, enabled: boolean) {
    this.granularity = granularity;
    this.enabled = enabled;
    this.bits = new Uint8Array(Math.ceil(size / granularity));
  }

  mark(offset: number, length: number): void {
    this.bits.fill(1, Math.floor(offset / this.granularity), Math.ceil((offset + length) / this.granularity));
  }

  merge(other: Expected, size: number): void {
    other.bits.forEach((bit, i) => {
      if (bit === 1) this.mark(i * other.granularity, Math.min(other.granularity, size - i * other.granularity));
    });
  }

  resize(size: number): void {
    const bits = new Uint8Array(Math.ceil(size / this.granularity));
    bits.set(this.bits.subarray(0, bits.length));
    this.bits = bits;
  }

  ranges(size: number): string[] {
    const result: string[] = [];
    for (let i = 0; i < this.bits.length; ) {
      let end = i + 1;
      while (end < this.bits.length && this.bits[end] === this.bits[i]) end++;
      if (this.bits[i] === 1) result.push(`${i * this.granularity}-${Math.min(size, end * this.granularity)}`);
      i = end;
    }
    return result;
  }
}

async function assertListed(path: string, model: ReadonlyMap<string, Expected>, context: string): Promise<void> {
  const specific = (await info(path))['format-specific'] as { data: { bitmaps?: unknown[] } };
  const wanted = [...model].map(([name, { granularity, enabled }]) => ({
    flags: enabled ? ['auto'] : [],
    name,
    granularity,
  }));
  assert.deepEqual(specific.data.bitmaps ?? [], wanted, context);
}

/** One change by one of the two, and what it means. */
async function step(random: Random, path: string, size: number, model: Map<string, Expected>): Promise<string> {
  const theirs = random.chance(0.5);
  const name = model.size === 0 ? undefined : random.pick([...model.keys()]);
  const known = name === undefined ? undefined : (model.get(name) as Expected);
  const act = async (action: string[], ours: (image: ChainImage) => Promise<void>): Promise<void> => {
    if (theirs) await qemuImg('bitmap', ...action);
    else await withImage(path, ours);
  };
  const who = theirs ? 'QEMU' : 'Lunette';
  switch (known === undefined || name === undefined ? 0 : random.below(12)) {
    case 0:
    case 1: {
      const fresh = `b${random.below(1e9)}`;
      const granularity = random.pick([undefined, 512, 64 * KiB, 4 * MiB]);
      const enabled = random.chance(0.7);
      const size_ = granularity === undefined ? [] : ['-g', String(granularity)];
      await act(['--add', ...(enabled ? [] : ['--disable']), ...size_, path, fresh], (image) =>
        bitmaps.addBitmap(image, fresh, { granularity, enabled }),
      );
      const made = (await withImage(path, bitmaps.listBitmaps, true)).find((each) => each.name === fresh);
      model.set(fresh, new Expected(size, made?.granularity as number, enabled));
      return `${who} adds ${fresh}, ${granularity}`;
    }
    case 2:
      if (model.size < 2) break;
      await act(['--remove', path, name as string], (image) => bitmaps.removeBitmap(image, name as string));
      model.delete(name as string);
      return `${who} removes ${name}`;
    case 3:
      await act(['--clear', path, name as string], (image) => bitmaps.clearBitmap(image, name as string));
      known?.bits.fill(0);
      return `${who} clears ${name}`;
    case 4:
      await act(['--enable', path, name as string], (image) => bitmaps.enableBitmap(image, name as string));
      (known as Expected).enabled = true;
      return `${who} enables ${name}`;
    case 5:
      await act(['--disable', path, name as string], (image) => bitmaps.disableBitmap(image, name as string));
      (known as Expected).enabled = false;
      return `${who} disables ${name}`;
    case 6: {
      const other = random.pick([...model.keys()]);
      if (other === name) break;
      await act(['--merge', other, path, name as string], async (image) =>
        bitmaps.mergeBitmap(image, name as string, await bitmaps.openBitmap(image, other)),
      );
      known?.merge(model.get(other) as Expected, size);
      return `${who} merges ${other} into ${name}`;
    }
  }
  // Writes: several in one session.
  const ranges = Array.from({ length: random.between(1, 6) }, () => {
    const offset = random.below(size / 512 - 1) * 512;
    return { offset, length: Math.min(size - offset, 512 * random.between(1, random.pick([4, 400, 4000]))) };
  });
  if (theirs) {
    await qemuIo(
      path,
      ranges.map(({ offset, length }) => `write ${random.chance(0.3) ? '-z' : ''} ${offset} ${length}`),
    );
  } else {
    await withImage(path, async (image) => {
      for (const { offset, length } of ranges) {
        if (random.chance(0.3)) await image.writeZeroes(offset, length, random.chance(0.5));
        else await image.writev(offset, IoVec.of(random.bytes(length)));
        if (random.chance(0.3)) await image.flush();
      }
    });
  }
  for (const expected of model.values()) {
    if (expected.enabled) for (const { offset, length } of ranges) expected.mark(offset, length);
  }
  return `${who} writes ${ranges.map(({ offset, length }) => `${offset}+${length}`).join(' ')}`;
}

async function assertContents(t: Cleanup, path: string, size: number, model: Map<string, Expected>, context: string) {
  for (const [name, expected] of model) {
    const wanted = expected.ranges(size);
    assert.deepEqual(
      await withImage(path, (image) => dirtyMap(image, name), true),
      wanted,
      `${context}: ${name}, ours`,
    );
    const server = await startQemuNbd(t, path, 'qcow2', '-r', '-B', name);
    const map = await nbdMap(server.url, `qemu:dirty-bitmap:${name}`);
    const seen = map.filter(({ type }) => type === 1).map(({ offset, length }) => `${offset}-${offset + length}`);
    assert.deepEqual(seen, wanted, `${context}: ${name}, QEMU's`);
    await server.process.stop();
  }
}

for (const { clusterSize, size, options } of SHAPES) {
  const what = [`clusters of ${clusterSize}`, ...Object.keys(options)].join(', ');
  test(`bitmaps that both programs keep and change hold what both wrote: ${what}`, {
    skip: requires.qemuNbd() || requires.nbdinfo(),
  }, async (t) => {
    const random = randomFor(t);
    const folder = await temporaryDirectory(t);
    // QEMU looks for data files where it runs.
    const data = 'data_file' in options ? { data_file: join(folder, 'data.raw') } : {};
    const path = await create(t, {
      path: join(folder, 'disk.qcow2'),
      size,
      clusterSize,
      options: { ...options, ...data },
    });
    const model = new Map<string, Expected>();
    const steps: string[] = [];
    for (let i = 0; i < 14; i++) {
      steps.push(await step(random, path, size, model));
      const context = steps.join('; ');
      await assertClean(path);
      await assertListed(path, model, context);
    }
    await assertContents(t, path, size, model, steps.join('; '));
  });
}

test('a resize by either program cuts bitmaps, or goes on with nothing dirty', {
  skip: requires.qemuNbd() || requires.nbdinfo(),
}, async (t) => {
  const random = randomFor(t);
  for (const clusterSize of [512, 64 * KiB]) {
    let size = 20 * MiB;
    const path = await create(t, { size, clusterSize });
    const model = new Map<string, Expected>();
    for (const [name, granularity, enabled] of [
      ['fine', 512, true],
      ['coarse', 4 * MiB, true],
      ['kept', 64 * KiB, false],
    ] as const) {
      await withImage(path, (image) => bitmaps.addBitmap(image, name, { granularity }));
      const expected = new Expected(size, granularity, true);
      model.set(name, expected);
      if (!enabled) continue;
    }
    const write = async (offset: number, length: number): Promise<void> => {
      await withImage(path, (image) => image.writev(offset, IoVec.of(random.bytes(length))));
      for (const expected of model.values()) if (expected.enabled) expected.mark(offset, length);
    };
    await write(0, 512);
    await write(size - 3 * MiB, 3 * MiB);
    await withImage(path, (image) => bitmaps.disableBitmap(image, 'kept'));
    (model.get('kept') as Expected).enabled = false;
    for (const [i, to] of [18 * MiB + 512, 90 * MiB, 12 * MiB - 512, 25 * MiB].entries()) {
      if (i % 2 === 1) await qemuImg('resize', '-q', '--shrink', '-f', 'qcow2', path, String(to));
      else await withImage(path, (image) => image.resize(to, { shrink: true }));
      // Growing back shows whether what was cut is gone.
      size = to;
      for (const expected of model.values()) expected.resize(size);
      await assertClean(path);
      await assertListed(path, model, `clusters of ${clusterSize}, ${to} bytes`);
      await assertContents(t, path, size, model, `clusters of ${clusterSize}, ${to} bytes`);
      await write(size - 1024, 1024);
    }
  }
});

test('a bitmap merges from another image, of another granularity and cluster size', {
  skip: requires.qemuNbd() || requires.nbdinfo(),
}, async (t) => {
  const size = 40 * MiB;
  const from = await create(t, { size, clusterSize: 512 });
  const into = await create(t, { size });
  const twin = `${into}.twin`;
  await qemuImg('bitmap', '--add', '-g', '512', from, 'source');
  await qemuImg('bitmap', '--add', '-g', '65536', into, 'target');
  await qemuIo(from, ['write 1M 1k', 'write 3M 10M', 'write 40959k 1k']);
  await qemuIo(into, ['write 20M 64k']);
  await copyFile(into, twin);
  await qemuImg('bitmap', '--merge', 'source', '-b', from, '-F', 'qcow2', twin, 'target');
  await withImage(
    from,
    (source) =>
      withImage(into, async (image) =>
        bitmaps.mergeBitmap(image, 'target', await bitmaps.openBitmap(source, 'source')),
      ),
    true,
  );
  const ours = await withImage(into, (image) => dirtyMap(image, 'target'), true);
  assert.deepEqual(ours, await withImage(twin, (image) => dirtyMap(image, 'target'), true));
  assert.deepEqual(ours, [
    `${MiB}-${MiB + 64 * KiB}`,
    `${3 * MiB}-${13 * MiB}`,
    `${20 * MiB}-${20 * MiB + 64 * KiB}`,
    `${size - 64 * KiB}-${size}`,
  ]);
  await assertClean(into);
});

test('what a killed writer leaves is inconsistent to both, and can only be removed', {
  skip: requires.qemuNbd() || requires.nbdinfo(),
}, async (t) => {
  const path = await create(t, { size: 4 * MiB });
  await qemuImg('bitmap', '--add', path, 'on');
  await qemuImg('bitmap', '--add', '--disable', path, 'off');
  const killed = `${path}.killed`;
  await withImage(path, async (image) => {
    await image.writev(0, IoVec.of(new Uint8Array(512).fill(1)));
    await image.flush();
    await copyFile(path, killed);
  });
  const listed = (await info(killed))['format-specific'] as { data: { bitmaps: unknown[] } };
  assert.deepEqual(listed.data.bitmaps, [
    { flags: ['in-use', 'auto'], name: 'on', granularity: 64 * KiB },
    { flags: [], name: 'off', granularity: 64 * KiB },
  ]);
  await assertClean(killed);
  await withImage(killed, async (image) => {
    for (const change of [
      () => bitmaps.clearBitmap(image, 'on'),
      () => bitmaps.enableBitmap(image, 'on'),
      () => bitmaps.openBitmap(image, 'on'),
      () => image.resize(8 * MiB),
    ]) {
      await assert.rejects(change, { code: 'CORRUPT', message: /"on" is inconsistent/ });
    }
    await bitmaps.removeBitmap(image, 'on');
    await image.resize(8 * MiB);
  });
  await assertClean(killed);
  assert.deepEqual(await withImage(killed, bitmaps.listBitmaps, true), [
    { name: 'off', granularity: 64 * KiB, enabled: false, inconsistent: false },
  ]);
});

test('reading an image leaves it byte for byte, with bitmaps or without', {
  skip: requires.qemuNbd() || requires.nbdinfo(),
}, async (t) => {
  const path = await create(t, { size: 4 * MiB });
  await qemuImg('bitmap', '--add', path, 'on');
  await qemuIo(path, ['write 0 1M']);
  const before = await readFile(path);
  await withImage(path, (image) => dirtyMap(image, 'on'), true);
  await withImage(path, async (image) => {
    await image.readv(0, IoVec.of(new Uint8Array(4096)));
  });
  assert.ok(before.equals(await readFile(path)));
});

test('snapshots do not change bitmaps, but applying one makes everything dirty', {
  skip: requires.qemuNbd() || requires.nbdinfo(),
}, async (t) => {
  const path = await create(t, { size: 4 * MiB });
  await withImage(path, async (image) => {
    await bitmaps.addBitmap(image, 'on');
    await bitmaps.addBitmap(image, 'off', { enabled: false });
    await image.writev(0, IoVec.of(new Uint8Array(512).fill(1)));
    await createSnapshot(image, 'before');
    assert.deepEqual(await dirtyMap(image, 'on'), [`0-${64 * KiB}`]);
    await image.writev(MiB, IoVec.of(new Uint8Array(512).fill(1)));
    await applySnapshot(image, 'before');
    assert.deepEqual(await dirtyMap(image, 'on'), [`0-${4 * MiB}`]);
    assert.deepEqual(await dirtyMap(image, 'off'), []);
  });
  await assertClean(path);
  assert.deepEqual(await withImage(path, (image) => dirtyMap(image, 'on'), true), [`0-${4 * MiB}`]);
});
