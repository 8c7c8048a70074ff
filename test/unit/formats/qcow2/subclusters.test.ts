import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../../formats/core/units.ts';
import { ChainImage } from '../../../../formats/image/chain.ts';
import { ALLOCATED, DATA, ExtentBuffer, ZERO } from '../../../../formats/image/extent.ts';
import { OPEN_GATE } from '../../../../formats/image/gate.ts';
import { createSnapshot } from '../../../../formats/image/snapshots.ts';
import { ImageHost } from '../../../../formats/open.ts';
import { createQcow2 } from '../../../../formats/qcow2/create.ts';
import { qcow2 } from '../../../../formats/qcow2/driver.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { Storage } from '../../../../formats/storage/storage.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { contextFor, createImage, keptOpen, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';
import { temporaryDirectory } from '../../../support/temporary.ts';

const CLUSTER = 64 * KiB;
const SUBCLUSTER = 2 * KiB;
const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };

function filled(value: number, length: number): IoVec {
  return IoVec.of(new Uint8Array(length).fill(value));
}

/** A storage that tells of its writes and discards. */
function watched(storage: Storage, told: (call: 'write' | 'discard', offset: number, length: number) => void): Storage {
  return new Proxy(storage, {
    get(target, key) {
      const value = Reflect.get(target, key, target) as unknown;
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        if (key === 'writev') told('write', args[0] as number, (args[1] as IoVec).byteLength);
        if (key === 'discard') told('discard', args[0] as number, args[1] as number);
        return (value as (...all: unknown[]) => unknown).apply(target, args);
      };
    },
  });
}

/** The L2 entry of a guest cluster: its words. */
function entryOf(file: Qcow2File, cluster: number): number[] {
  const l2 = Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n) + cluster * file.entrySize;
  return Array.from({ length: file.entrySize / 4 }, (_, i) => file.u32(l2 + i * 4));
}

test('a small write over a backing file copies what is left of the subclusters it touches, and no more', async () => {
  const base = await createImage({ size: MiB });
  const below = await openImage(base);
  await below.writev(0, filled(0xbb, MiB));
  await below.close();
  const storage = await createImage({ size: MiB, extendedL2: true, backingFile: 'base', backingFormat: 'qcow2' });
  const writes: number[] = [];
  const told = (call: string, _offset: number, length: number) => call === 'write' && writes.push(length);
  const parents = [await openLayer(new MemoryStorage({ bytes: base.toBytes() }), { readOnly: true })];
  const image = await openImage(watched(storage, told), { parents });
  const at = 5 * CLUSTER + SUBCLUSTER + 1000;
  await image.writev(at, filled(1, 4 * KiB));
  // Three subclusters; the rest is the L2 table, which is zeroed or written where it is new.
  assert.deepEqual(
    writes.filter((length) => length !== CLUSTER && length > 512),
    [3 * SUBCLUSTER],
  );
  writes.length = 0;
  // The next one takes its place in the same cluster.
  await image.writev(5 * CLUSTER + 20 * SUBCLUSTER, filled(2, SUBCLUSTER));
  assert.deepEqual(writes, [SUBCLUSTER]);
  const shown = new Uint8Array(MiB).fill(0xbb);
  shown.fill(1, at, at + 4 * KiB);
  shown.fill(2, 5 * CLUSTER + 20 * SUBCLUSTER, 5 * CLUSTER + 21 * SUBCLUSTER);
  assert.ok(Buffer.compare(await readAll(image), shown) === 0);
  await image.writeZeroes(5 * CLUSTER + 2 * SUBCLUSTER, 20 * SUBCLUSTER, false);
  shown.fill(0, 5 * CLUSTER + 2 * SUBCLUSTER, 5 * CLUSTER + 22 * SUBCLUSTER);
  assert.ok(Buffer.compare(await readAll(image), shown) === 0);
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  assert.deepEqual(entryOf(file, 5).slice(2), [0x003ffffc, 0x2]);
  assert.deepEqual(file.inspect(), CLEAN);
});

test('a cluster that a snapshot shares moves with its data, and nothing of the snapshot changes', async () => {
  const storage = await createImage({ size: MiB, extendedL2: true });
  const image = await openImage(storage);
  await image.writev(0, filled(1, 3 * SUBCLUSTER));
  await image.writev(10 * SUBCLUSTER, filled(2, SUBCLUSTER));
  const before = await readAll(image);
  await createSnapshot(image, 'one');
  await image.writev(20 * SUBCLUSTER + 7, filled(3, 10));
  const after = before.slice();
  after.fill(3, 20 * SUBCLUSTER + 7, 20 * SUBCLUSTER + 17);
  assert.ok(Buffer.compare(await readAll(image), after) === 0);
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  assert.deepEqual(entryOf(file, 0).slice(2), [0, 7 | (1 << 10) | (1 << 20)]);
  assert.deepEqual(file.inspect(), CLEAN);
  const snapshot = await openImage(storage, { readOnly: true, snapshot: 'one' });
  assert.ok(Buffer.compare(await readAll(snapshot), before) === 0);
  await snapshot.close();
});

test('space is punched out of the file only when the mapping that dropped it is durable', async () => {
  const storage = await createImage({ size: MiB });
  const punched: number[] = [];
  const image = await openImage(
    watched(storage, (call, offset, length) => {
      if (call !== 'discard') return;
      punched.push(length);
      const [high, low] = entryOf(new Qcow2File(storage.toBytes()), 2);
      assert.deepEqual([high, low], [0, 1], `the entry in the file when ${offset} is punched`);
    }),
  );
  await image.writev(0, filled(1, 4 * CLUSTER));
  await image.flush();
  await image.discard(2 * CLUSTER, CLUSTER);
  assert.deepEqual(punched, []);
  await image.flush();
  assert.deepEqual(punched, [CLUSTER]);
  await image.close();
});

for (const extendedL2 of [false, true]) {
  test(`with discard-no-unref a discarded cluster keeps its place${extendedL2 ? ', with subclusters' : ''}`, async () => {
    const storage = await createImage({ size: MiB, extendedL2 });
    const context = contextFor();
    const layer = await qcow2.open(keptOpen(storage), { readOnly: false, discardNoUnref: true, context });
    const image = new ChainImage([layer]);
    await image.writev(0, filled(1, 4 * CLUSTER));
    const out = new ExtentBuffer();
    await image.map(CLUSTER, CLUSTER, out);
    const place = out.storageOffsets[0] as number;
    await image.discard(CLUSTER, CLUSTER);
    await image.map(CLUSTER, CLUSTER, out);
    assert.deepEqual([out.kinds[0], out.flags[0], out.storageOffsets[0]], [ZERO, ALLOCATED, place]);
    assert.ok(
      storage
        .toBytes()
        .subarray(place, place + CLUSTER)
        .every((byte) => byte === 0),
      'its space went back',
    );
    await image.writev(6 * CLUSTER, filled(2, CLUSTER));
    await image.writev(CLUSTER, filled(3, CLUSTER));
    await image.map(CLUSTER, CLUSTER, out);
    assert.deepEqual([out.kinds[0], out.storageOffsets[0]], [DATA, place]);
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
  });
}

test('zeros of a raw data file are in the file, and its mapping stays; elsewhere a discard gives space back', async () => {
  for (const raw of [true, false]) {
    const data = new MemoryStorage();
    const storage = await createImage({ size: MiB, dataFile: 'data', dataStorage: data, dataFileRaw: raw });
    const image = await openImage(storage, { dataFile: data });
    await image.writev(0, filled(1, 4 * CLUSTER));
    await image.writeZeroes(CLUSTER, CLUSTER, false);
    await image.discard(2 * CLUSTER, CLUSTER);
    await image.close();
    const bytes = data.toBytes();
    assert.equal(bytes.length, MiB);
    const file = new Qcow2File(storage.toBytes());
    assert.deepEqual(file.inspect(), CLEAN);
    assert.equal(file.u64(88), raw ? 2n : 0n, 'the bit that says raw');
    assert.deepEqual(entryOf(file, 0), [0x80000000, 0], 'guest offset 0 is at offset 0');
    assert.deepEqual(entryOf(file, 1), [0x80000000, raw ? CLUSTER : CLUSTER | 1]);
    assert.deepEqual(entryOf(file, 2), raw ? [0x80000000, 2 * CLUSTER] : [0, 1]);
    assert.ok(bytes.subarray(2 * CLUSTER, 3 * CLUSTER).every((byte) => byte === 0));
    if (raw) assert.ok(bytes.subarray(CLUSTER, 2 * CLUSTER).every((byte) => byte === 0));
    assert.ok(bytes.subarray(3 * CLUSTER, 4 * CLUSTER).every((byte) => byte === 1));
  }
});

test('a data file is looked for beside its image, then in the working directory, with a warning, past the gate', async (t) => {
  const directory = await temporaryDirectory(t);
  const [images, work] = [join(directory, 'images'), join(directory, 'work')];
  await mkdir(images);
  await mkdir(work);
  const storage = new MemoryStorage();
  const data = new MemoryStorage();
  await createQcow2(storage, { size: MiB, dataFile: 'data.raw', dataStorage: data });
  const path = join(images, 'disk.qcow2');
  await writeFile(path, storage.toBytes());
  await assert.rejects(new ImageHost({ gate: OPEN_GATE }).open(path), { code: 'NOT_FOUND' });
  await writeFile(join(work, 'data.raw'), data.toBytes());
  await assert.rejects(new ImageHost({ workingDirectory: work }).open(path), { code: 'DENIED' });
  const warnings: string[] = [];
  const warn = (message: string): void => void warnings.push(message);
  const image = await new ImageHost({ gate: OPEN_GATE, workingDirectory: work, warn }).open(path);
  await image.writev(0, filled(5, CLUSTER));
  await image.close();
  assert.equal(warnings.length, 1);
  await writeFile(join(images, 'data.raw'), data.toBytes());
  const beside = await new ImageHost({ workingDirectory: work, warn }).open(path, { readOnly: true });
  assert.equal((await readAll(beside))[0], 0, 'the one beside the image');
  await beside.close();
  assert.equal(warnings.length, 1);
});
