import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { codeOf } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import * as bitmaps from '../../formats/image/bitmaps.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { applySnapshot, createSnapshot } from '../../formats/image/snapshots.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { BitmapModel } from '../support/bitmap-model.ts';
import { CutModel } from '../support/cut-model.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

/** Cuts in one run of this test; LUNETTE_CUTS asks for more. */
const CUTS = Number(process.env.LUNETTE_CUTS ?? 1500);
const CUTS_PER_WORKLOAD = 30;

interface Workload {
  readonly what: string;
  readonly storage: PowerCutStorage;
  readonly model: CutModel;
  readonly bitmaps: BitmapModel;
}

async function prepare(random: Random): Promise<Workload> {
  const clusterSize = random.pick([512, 1024, 2048, 4096]);
  const refcountBits = random.pick([8, 16, 64]);
  const lazyRefcounts = random.chance(0.4);
  const size = random.pick([64, 300]) * clusterSize + random.pick([0, 512]);
  // A name behind the extensions, which moves when they grow; it is never followed.
  const backing = random.chance(0.3)
    ? { backingFile: `${'long '.repeat(random.below(60))}parent`, backingFormat: 'raw' }
    : {};
  const long = (backing.backingFile?.length ?? 0) > 100 && clusterSize < 4096;
  const file = await createImage({ size, clusterSize, refcountBits, lazyRefcounts, ...(long ? {} : backing) });
  const storage = new PowerCutStorage(random, file.toBytes());
  return {
    what: `clusters of ${clusterSize}, ${refcountBits} refcount bits${lazyRefcounts ? ', lazy' : ''}, ${size} bytes`,
    storage,
    model: new CutModel(storage, new Uint8Array(size)),
    bitmaps: new BitmapModel(storage),
  };
}

function openSession(storage: PowerCutStorage | MemoryStorage, random: Random): Promise<ChainImage> {
  return openImage(storage, { cache: new SharedBlockCache(random.pick([0, 50_000, 1_000_000])) });
}

async function change(
  random: Random,
  image: ChainImage,
  workload: Workload,
  before: Uint8Array | undefined,
): Promise<void> {
  const unit = image.limits.allocationUnit;
  const { size } = image;
  const offset = random.below(size);
  const length = 1 + random.below(Math.min(size - offset, random.chance(0.2) ? 20 * unit : 2 * unit));
  workload.bitmaps.write(offset, length, before?.slice(offset, offset + length));
  if (random.chance(0.3)) {
    const zeros = new Uint8Array(length);
    return workload.model.change(offset, zeros, () => image.writeZeroes(offset, length, random.chance(0.5)));
  }
  const bytes = random.bytes(length);
  return workload.model.change(offset, bytes, async () => {
    const list = IoVec.of(bytes);
    if (!image.tryWritev(offset, list)) await image.writev(offset, list);
  });
}

async function changeBitmaps(random: Random, image: ChainImage, { bitmaps: model }: Workload): Promise<void> {
  const { present } = model;
  const name = present.length === 0 ? undefined : random.pick(present);
  switch (name === undefined ? 0 : random.below(7)) {
    case 1:
      return model.remove(name as string, () => bitmaps.removeBitmap(image, name as string));
    case 2:
      return model.clear(name as string, () => bitmaps.clearBitmap(image, name as string));
    case 3:
      return model.setEnabled(name as string, true, () => bitmaps.enableBitmap(image, name as string));
    case 4:
      return model.setEnabled(name as string, false, () => bitmaps.disableBitmap(image, name as string));
    case 5: {
      const from = random.pick(present);
      if (from === name) break;
      return model.merge(name as string, from, image.size, async () =>
        bitmaps.mergeBitmap(image, name as string, await bitmaps.openBitmap(image, from)),
      );
    }
  }
  const fresh = `bitmap ${model.bitmaps.size + 1}`;
  const granularity = random.pick([512, 512, 1024, 8192]);
  const enabled = random.chance(0.7);
  return model.add(fresh, granularity, enabled, () => bitmaps.addBitmap(image, fresh, { granularity, enabled }));
}

/** @param before what the disk shows, when this is the session's first change */
async function restructure(
  random: Random,
  image: ChainImage,
  workload: Workload,
  before: Uint8Array | undefined,
): Promise<void> {
  const { model } = workload;
  const { present } = model;
  const unit = image.limits.allocationUnit;
  switch (random.below(3)) {
    case 0:
      if (present.length === 0) break;
      {
        const name = random.pick(present);
        const bytes = model.snapshots.get(name)?.bytes as Uint8Array;
        workload.bitmaps.write(0, Math.max(image.size, bytes.length), before);
        workload.bitmaps.cut(bytes.length); // all that the disk shows then
        return model.replace(bytes, () => applySnapshot(image, { name }));
      }
    case 1: {
      const size = Math.max(512, image.size + (random.below(40 * unit) - 20 * unit));
      const bytes = new Uint8Array(size - (size % 512));
      bytes.set(model.current.subarray(0, bytes.length));
      workload.bitmaps.cut(Math.min(image.size, bytes.length));
      return model.replace(bytes, () => image.resize(bytes.length, { shrink: true }));
    }
  }
  const fresh = `snapshot ${model.snapshots.size + 1}`;
  return model.takeSnapshot(fresh, () => createSnapshot(image, fresh));
}

async function session(workload: Workload, random: Random): Promise<void> {
  const { storage, model } = workload;
  const image = await openSession(storage, random);
  let before: Uint8Array | undefined = model.current.slice();
  for (let i = random.between(1, 12); i > 0; i--) {
    const writes = random.below(4);
    const pending = Array.from({ length: writes }, () => change(random, image, workload, before));
    if (random.chance(0.3)) pending.push(model.flush(() => image.flush()));
    await Promise.all(pending);
    const restructuring = random.chance(0.1);
    const changing = random.chance(0.5);
    const begun = (): void => {
      workload.bitmaps.begun();
      before = undefined;
    };
    if (writes > 0 || changing) begun();
    if (changing) await changeBitmaps(random, image, workload);
    if (!restructuring) continue;
    model.current = await readAll(image);
    await restructure(random, image, workload, before).catch((error: unknown) => {
      if (codeOf(error) !== 'TOO_LARGE') throw error; // narrow refcounts cannot count many snapshots
    });
    begun();
  }
  const shown = await readAll(image);
  await model.flush(() => image.close());
  const file = new Qcow2File(storage.toBytes());
  assert.deepEqual(file.inspect(), { corruptions: [], leaks: [], missingCopied: [] }, workload.what);
  assert.deepEqual(workload.bitmaps.judge(file, storage.now, shown, true), [], workload.what);
}

async function judge(workload: Workload, random: Random, at: number): Promise<void> {
  const bytes = workload.storage.cut(random, at, random.pick([0, 0.1, 0.5, 0.9, 1]));
  const context = `${workload.what}, cut at step ${at} of ${workload.storage.now}`;
  const file = new Qcow2File(bytes);
  // With the dirty bit refcounts may be anything: opening puts them right.
  if (!file.dirty) assert.deepEqual(file.inspect().corruptions, [], context);
  const storage = new MemoryStorage({ bytes });
  const image = await openSession(storage, random);
  const shown = await readAll(image);
  const wrong = workload.model.judge(at, shown);
  assert.equal(wrong, -1, `${context}: byte ${wrong} is neither as flushed nor as written since`);
  assert.deepEqual(workload.bitmaps.judge(file, at, shown), [], context);

  // Written on, it is no worse, and what is still valid takes note.
  const usable = (await bitmaps.listBitmaps(image)).filter(({ enabled, inconsistent }) => enabled && !inconsistent);
  const offset = random.below(image.size - 1);
  await image.writev(offset, IoVec.of(random.bytes(1)));
  await image.close();
  const again = new Qcow2File(storage.toBytes());
  assert.ok(!again.dirty);
  const found = again.inspect();
  if (file.dirty) assert.deepEqual(found, { corruptions: [], leaks: [], missingCopied: [] }, `${context}, repaired`);
  assert.deepEqual(found.corruptions, [], `${context}, written again`);
  for (const { name } of usable) {
    const here = again.bitmaps().find((each) => each.name === name);
    assert.ok(here !== undefined && !here.inUse, `${context}: ${name} is not valid any more`);
    assert.ok(again.isDirty(here, Math.floor(offset / here.granularity)), `${context}: ${name} misses a write`);
  }
}

test(`${CUTS} power cuts leave bitmaps that hold every write, or say that they are inconsistent`, async (t) => {
  const random = randomFor(t);
  for (let cuts = 0; cuts < CUTS; cuts += CUTS_PER_WORKLOAD) {
    const workload = await prepare(random);
    for (let i = random.between(1, 4); i > 0; i--) await session(workload, random);
    for (let i = 0; i < CUTS_PER_WORKLOAD; i++) await judge(workload, random, random.between(0, workload.storage.now));
  }
});
