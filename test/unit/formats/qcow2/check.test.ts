import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import { LunetteError } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { checkQcow2 } from '../../../../formats/qcow2/check.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { Storage } from '../../../../formats/storage/storage.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../../../support/qcow2-images.ts';

const OFFSET = 0x00fffffffffffe00n;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

/** An image with data here and there, and a snapshot. */
async function makeFile(options: { clusterSize?: number; refcountBits?: number; snapshot?: boolean } = {}) {
  const { clusterSize = 4096, refcountBits = 16, snapshot = true } = options;
  const storage = await createImage({ size: clusterSize * 1000, clusterSize, refcountBits });
  const image = await openImage(storage);
  for (let i = 0; i < 8; i++) {
    await image.writev(i * 120 * clusterSize, IoVec.of(new Uint8Array(2 * clusterSize).fill(i + 1)));
  }
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  if (snapshot) file.takeSnapshot('1', 'one');
  return file;
}

function entryAt(file: Qcow2File, index: number): number {
  return Number(file.u64(file.l1Offset) & OFFSET) + index * 8;
}

function clusterOf(file: Qcow2File, index: number): number {
  return Number(file.u64(entryAt(file, index)) & OFFSET) / file.clusterSize;
}

async function content(bytes: Uint8Array, snapshot?: string): Promise<Uint8Array> {
  const storage = new MemoryStorage({ bytes: bytes.slice() });
  const image = await openImage(storage, { readOnly: true, ...(snapshot === undefined ? {} : { snapshot }) });
  const all = await readAll(image);
  await image.close();
  return all;
}

test('with little memory for counters an image is walked several times, and the findings are the same', async () => {
  const file = await makeFile({ clusterSize: 512 });
  // A file with holes: clusters lie more than a page of counters from each other.
  const far = new Uint8Array(512 * 4096 * 5);
  far.set(file.bytes);
  const damaged = new Qcow2File(far);
  damaged.setRefcount(clusterOf(damaged, 0), 0);
  damaged.setRefcount(clusterOf(damaged, 1), 7);
  for (let i = 2; i < 5; i++) damaged.setU64(entryAt(damaged, i), COPIED | BigInt(512 * 4096 * i + 512));
  const whole = await checkQcow2(new MemoryStorage({ bytes: damaged.bytes.slice() }), { deep: true });
  const pieces = await checkQcow2(new MemoryStorage({ bytes: damaged.bytes.slice() }), { deep: true, counterBytes: 1 });
  assert.deepEqual(
    { ...pieces, messages: [...pieces.messages].sort() },
    { ...whole, messages: [...whole.messages].sort() },
  );
  assert.ok(whole.corruptions >= 4 && whole.leaks > 0);

  const storage = new MemoryStorage({ bytes: damaged.bytes.slice() });
  const repaired = await checkQcow2(storage, { repair: 'all', counterBytes: 1 });
  assert.equal(repaired.corruptions + repaired.leaks, 0, repaired.messages.join('\n'));
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
});

test('an interrupted repair is finished by the next one, and never changes what guests read', async () => {
  const damages: ((file: Qcow2File) => void)[] = [
    (file) => {
      file.setRefcount(clusterOf(file, 0), 0);
      file.setRefcount(clusterOf(file, 1), 5);
      file.setU64(entryAt(file, 0), file.u64(entryAt(file, 0)) | COPIED);
    },
    (file) => file.setU64(Number(file.u64(48)), 0n),
    (file) => file.setU32(56, 0),
  ];
  for (const damage of damages) {
    const file = await makeFile();
    const before = await content(file.bytes);
    const snapshot = await content(file.bytes, '1');
    damage(file);
    let finished = false;
    for (let writes = 0; !finished; writes++) {
      const storage = new MemoryStorage({ bytes: file.bytes.slice() });
      finished = await repairFailing(storage, writes);
      const again = await checkQcow2(storage, { repair: 'all' });
      assert.equal(again.corruptions + again.leaks, 0, `after ${writes} writes\n${again.messages.join('\n')}`);
      const bytes = storage.toBytes();
      assert.deepEqual(new Qcow2File(bytes).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
      assert.deepEqual(await content(bytes), before);
      assert.deepEqual(await content(bytes, '1'), snapshot);
    }
  }
});

/** Repairs until a write fails. @returns true when none did */
async function repairFailing(storage: MemoryStorage, writes: number): Promise<boolean> {
  let left = writes;
  const failing = new Proxy<Storage>(storage, {
    get(target, key) {
      const value = Reflect.get(target, key, target) as unknown;
      if (typeof value !== 'function') return value;
      if (key !== 'writev' && key !== 'writeZeroes') return value.bind(target);
      return (...args: unknown[]) => {
        if (left-- === 0) throw new LunetteError('IO', 'the power is gone');
        return (value as (...all: unknown[]) => unknown).apply(target, args);
      };
    },
  });
  try {
    await checkQcow2(failing, { repair: 'all' });
    return true;
  } catch (error) {
    assert.match(String(error), /the power is gone/);
    return false;
  }
}

test('deep: a compressed cluster that cannot be read is a corruption, one that can is none', async () => {
  const file = await makeFile({ snapshot: false });
  const at = entryAt(file, 0);
  const data = Number(file.u64(at) & OFFSET);
  const stream = deflateRawSync(new Uint8Array(file.clusterSize).fill(7), { windowBits: 12 });
  file.bytes.fill(0, data, data + file.clusterSize);
  file.bytes.set(stream, data);
  file.setU64(at, COMPRESSED | BigInt(data));
  const good = await checkQcow2(new MemoryStorage({ bytes: file.bytes.slice() }), { deep: true });
  assert.deepEqual([good.corruptions, good.compressedClusters], [0, 1]);
  file.bytes.fill(0xff, data, data + 16);
  assert.equal((await checkQcow2(new MemoryStorage({ bytes: file.bytes.slice() }))).corruptions, 0);
  const bad = await checkQcow2(new MemoryStorage({ bytes: file.bytes.slice() }), { deep: true });
  assert.equal(bad.corruptions, 1);
  assert.match(bad.messages.join(), /compressed data at .+ no valid zlib stream/);
});

test('deep: data on metadata is found although the refcounts agree', async () => {
  const file = await makeFile({ snapshot: false });
  const table = file.l1Offset / file.clusterSize;
  file.setRefcount(clusterOf(file, 0), 0);
  file.setU64(entryAt(file, 0), BigInt(file.l1Offset));
  file.setRefcount(table, 2);
  assert.equal((await checkQcow2(new MemoryStorage({ bytes: file.bytes.slice() }))).corruptions, 0);
  const found = await checkQcow2(new MemoryStorage({ bytes: file.bytes.slice() }), { deep: true });
  assert.equal(found.corruptions, 1);
  assert.match(found.messages.join(), /points to metadata/);
});

test('where snapshots cannot be read nothing is given free and nothing is written', async () => {
  const file = await makeFile();
  file.setU32(Number(file.u64(64)) + 36, 5000);
  const storage = new MemoryStorage({ bytes: file.bytes.slice() });
  const result = await checkQcow2(storage, { repair: 'all' });
  assert.ok(result.corruptions > 0 && result.leaks > 0);
  assert.equal(result.corruptionsFixed + result.leaksFixed, 0);
  assert.match(result.messages.join('\n'), /nothing was repaired/);
  assert.deepEqual(storage.toBytes(), file.bytes);
});

test('a table that lies on something else is not written when flags are repaired', async () => {
  const file = await makeFile({ snapshot: false });
  // The refcount table taken for an L2 table: its entries look like some that lack the flag.
  file.setU64(file.l1Offset + 8, COPIED | BigInt(Number(file.u64(48))));
  const table = Number(file.u64(48));
  const before = file.bytes.slice(table, table + file.clusterSize);
  const storage = new MemoryStorage({ bytes: file.bytes.slice() });
  await checkQcow2(storage, { repair: 'all' });
  assert.deepEqual(storage.toBytes().slice(table, table + file.clusterSize), before);
});

test('leaks alone are mended without touching what is corrupt', async () => {
  const file = await makeFile({ snapshot: false });
  file.setRefcount(clusterOf(file, 0), 0);
  file.setRefcount(clusterOf(file, 1), 4);
  const low = clusterOf(file, 0);
  const storage = new MemoryStorage({ bytes: file.bytes.slice() });
  const result = await checkQcow2(storage, { repair: 'leaks' });
  const after = new Qcow2File(storage.toBytes());
  assert.equal(after.refcount(low), 0);
  assert.equal(after.refcount(clusterOf(file, 1)), 1);
  assert.equal(result.leaks, 0);
  assert.ok(result.corruptions > 0 && result.leaksFixed === 1);
});
