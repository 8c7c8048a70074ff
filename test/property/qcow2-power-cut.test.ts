import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { codeOf } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../formats/image/snapshots.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { CutModel } from '../support/cut-model.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

/** Cuts in one run of this test; LUNETTE_CUTS asks for more. */
const CUTS = Number(process.env.LUNETTE_CUTS ?? 20_000);
const CUTS_PER_WORKLOAD = 200;
/** Of so many of them it is looked at what comes after: writing on, snapshots. */
const FURTHER = 0.1;

interface Workload {
  readonly what: string;
  readonly storage: PowerCutStorage;
  /** External data file. */
  readonly data?: PowerCutStorage | undefined;
  /** It is the disk at all times. */
  readonly raw?: boolean;
  readonly model: CutModel;
  readonly parentBytes: Uint8Array | undefined;
  /** Nearly all changes are small writes, and they are published. */
  readonly small?: boolean;
}

async function openWith(
  workload: Pick<Workload, 'parentBytes'>,
  storage: PowerCutStorage | MemoryStorage,
  random: Random,
  dataFile?: Storage,
): Promise<ChainImage> {
  const cache = new SharedBlockCache(random.pick([0, 50_000, 1_000_000]));
  // Version 2 has no zero clusters, so nothing discarded could keep its place.
  const discardNoUnref = random.chance(0.2) && (await versionOf(storage)) > 2;
  if (workload.parentBytes === undefined) return openImage(storage, { cache, dataFile, discardNoUnref });
  const parent = await openLayer(new MemoryStorage({ bytes: workload.parentBytes }), { readOnly: true });
  return openImage(storage, { cache, parents: [parent], dataFile, discardNoUnref });
}

/** Version of the image, from the last byte of the header's field. */
async function versionOf(storage: Storage): Promise<number> {
  const byte = new Uint8Array(1);
  await storage.readv(7, IoVec.of(byte));
  return byte[0] ?? 0;
}

/** An image whose refcount table is nearly full: it moves while the image is written. */
async function prepareFull(random: Random): Promise<Workload> {
  const clusterSize = 512;
  const size = 4400 * clusterSize;
  const file = await createImage({ size, clusterSize, refcountBits: 64 });
  const before = await openImage(file);
  await before.writev(0, IoVec.of(random.bytes(random.between(3880, 3930) * clusterSize)));
  const model = await readAll(before);
  await before.close();
  const storage = new PowerCutStorage(random, file.toBytes());
  return {
    what: 'a nearly full refcount table',
    storage,
    model: new CutModel(storage, model),
    parentBytes: undefined,
  };
}

/** A new disk, as an installation fills it: small writes, each published before it is acknowledged. */
async function prepareNew(random: Random): Promise<Workload> {
  const clusterSize = random.pick([512, 1024, 4096]);
  const size = random.pick([400, 1000]) * clusterSize;
  const parentBytes = random.chance(0.2)
    ? (await filled(random, { size: size / 2, clusterSize })).toBytes()
    : undefined;
  const backing = parentBytes === undefined ? {} : { backingFile: 'parent.qcow2', backingFormat: 'qcow2' };
  const file = await createImage({ size, clusterSize, refcountBits: random.pick([1, 4, 16, 64]), ...backing });
  const shown = new Uint8Array(size);
  if (parentBytes !== undefined) shown.set(await readAll(await openImage(new MemoryStorage({ bytes: parentBytes }))));
  const storage = new PowerCutStorage(random, file.toBytes());
  const what = `a new disk of ${size} bytes in clusters of ${clusterSize}${parentBytes === undefined ? '' : ', with a parent'}`;
  return { what, storage, model: new CutModel(storage, shown), parentBytes, small: true };
}

/** An image with some data, perhaps a parent and snapshots, that is about to be written. */
async function prepare(random: Random): Promise<Workload> {
  if (random.chance(0.05)) return prepareFull(random);
  if (random.chance(0.1)) return prepareNew(random);
  const extendedL2 = random.chance(0.25);
  const clusterSize = extendedL2 ? 16384 : random.pick([512, 512, 1024, 4096]);
  const version = extendedL2 ? 3 : random.pick([2, 3, 3, 3] as const);
  // Wide refcounts in small clusters: refcount blocks and their table grow often.
  const refcountBits = version === 2 ? 16 : random.pick([1, 2, 4, 8, 16, 32, 64, 64, 64]);
  const clusters = random.pick(extendedL2 ? [3, 8, 15] : clusterSize > 1024 ? [20, 40, 64] : [40, 64, 200, 600]);
  const size = clusters * clusterSize + random.pick([0, 512]);
  const external = version === 3 && random.chance(0.25);
  const raw = external && random.chance(0.5);
  const parentBytes =
    !raw && random.chance(0.4)
      ? (await filled(random, { size: size + random.pick([0, 5 * clusterSize]), clusterSize })).toBytes()
      : undefined;
  const backing = parentBytes === undefined ? {} : { backingFile: 'parent.qcow2', backingFormat: 'qcow2' };
  const dataFile = external ? new MemoryStorage() : undefined;
  const file = await createImage({
    size,
    clusterSize,
    version,
    refcountBits,
    extendedL2,
    preallocation:
      parentBytes === undefined || extendedL2 ? random.pick(['off', 'off', 'off', 'metadata', 'full']) : 'off',
    dataFileRaw: raw,
    ...(external ? { dataFile: 'data', dataStorage: dataFile } : {}),
    ...backing,
  });
  const before = await openWith({ parentBytes }, file, random, dataFile);
  for (let i = random.pick([0, 2, 10]); i > 0; i--) {
    const offset = random.below(size);
    await before.writev(offset, IoVec.of(random.bytes(1 + random.below(Math.min(size - offset, 6 * clusterSize)))));
  }
  let shown = await readAll(before);
  await before.close();
  let bytes = file.toBytes();
  const snapshots = new Map<string, Uint8Array>();
  // One bit cannot count a second reference.
  for (let i = refcountBits > 1 && !external ? random.below(3) : 0; i > 0 && refcountBits >= 2; i--) {
    if (refcountBits === 2 && snapshots.size === 2) break;
    const image = new Qcow2File(bytes);
    image.takeSnapshot(String(snapshots.size + 1), `snapshot ${snapshots.size + 1}`);
    bytes = image.bytes;
    snapshots.set(`snapshot ${snapshots.size + 1}`, shown);
    const again = new MemoryStorage({ bytes });
    const live = await openWith({ parentBytes }, again, random);
    const offset = random.below(size);
    await live.writev(offset, IoVec.of(random.bytes(1 + random.below(Math.min(size - offset, 4 * clusterSize)))));
    shown = await readAll(live);
    await live.close();
    bytes = again.toBytes();
  }
  assert.deepEqual(new Qcow2File(bytes).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
  // On a block device, with more room or less than the image comes to need.
  const device = random.chance(0.2) ? { spare: random.below(1200) * clusterSize } : {};
  const storage = new PowerCutStorage(random, bytes, device);
  const onDevice = random.chance(0.2) ? { spare: random.below(20) * clusterSize } : {};
  const data =
    dataFile &&
    new PowerCutStorage(random, dataFile.toBytes(), { ...onDevice, path: '/cut/data', clock: storage.clock });
  const model = new CutModel(storage, shown);
  for (const [name, bytes] of snapshots) {
    model.snapshots.set(name, { bytes, takingAt: -1, takenAt: -1, deletingAt: Infinity, deletedAt: Infinity });
  }
  const what =
    `${storage.growsZeroed ? '' : 'on a device, '}version ${version}, clusters of ${clusterSize}, ${refcountBits} refcount bits, ${size} bytes, ` +
    `${snapshots.size} snapshots${parentBytes === undefined ? '' : ', with a parent'}` +
    `${extendedL2 ? ', extended L2' : ''}${external ? `, ${raw ? 'raw ' : ''}data file` : ''}`;
  return { what, storage, data, raw, model, parentBytes };
}

async function filled(random: Random, options: { size: number; clusterSize: number }): Promise<MemoryStorage> {
  const storage = await createImage(options);
  const image = await openImage(storage);
  for (let at = 0; at < options.size; at += 3 * options.clusterSize) {
    const length = Math.min(options.size - at, 1 + random.below(2 * options.clusterSize));
    await image.writev(at, IoVec.of(random.bytes(length)));
  }
  await image.close();
  return storage;
}

/** One random change, and its effect in the model. @param scale of its length, bytes @param small only a small write */
function change(
  random: Random,
  image: ChainImage,
  { model, raw }: Workload,
  { scale, small }: { scale: number; small: boolean },
): Promise<void> {
  const size = image.size;
  const offset = random.below(size);
  const length = 1 + random.below(Math.min(size - offset, random.chance(0.2) && !small ? 30 * scale : 3 * scale));
  switch (small ? 7 : random.below(8)) {
    case 0:
    case 1:
      return model.change(offset, new Uint8Array(length), () => image.writeZeroes(offset, length, random.chance(0.5)));
    case 2: {
      const unit = image.limits.discardUnit;
      // In a raw data file a discard is what the file makes of it: it may stay as it is.
      if (unit === 0 || raw) return Promise.resolve();
      const start = Math.ceil(offset / unit) * unit;
      const end = offset + length === size ? size : Math.floor((offset + length) / unit) * unit;
      const discard = async (): Promise<void> => void (await image.discard(offset, length));
      if (start >= end) return discard();
      return model.change(start, new Uint8Array(end - start), discard);
    }
    default: {
      const bytes = random.bytes(length);
      return model.change(offset, bytes, async () => {
        const list = IoVec.of(bytes);
        if (!image.tryWritev(offset, list)) await image.writev(offset, list);
      });
    }
  }
}

/** A change of the image as a whole: snapshots, size. */
function restructure(random: Random, image: ChainImage, model: CutModel, unit: number): Promise<void> {
  const present = model.present;
  const name = present.length === 0 ? undefined : random.pick(present);
  switch (random.below(4)) {
    case 0:
      if (name === undefined) break;
      return model.replace(model.snapshots.get(name)?.bytes as Uint8Array, () => applySnapshot(image, { name }));
    case 1:
      if (name === undefined) break;
      return model.deleteSnapshot(name, () => deleteSnapshot(image, { name }));
    case 2: {
      const size = Math.max(512, image.size + (random.below(40 * unit) - 20 * unit));
      const bytes = new Uint8Array(size - (size % 512));
      bytes.set(model.current.subarray(0, bytes.length));
      const preallocation = random.pick(['off', 'off', 'metadata', 'falloc', 'full'] as const);
      return model.replace(bytes, () => image.resize(bytes.length, { shrink: true, preallocation }));
    }
  }
  const fresh = `snapshot ${model.snapshots.size + 1}`;
  return model.takeSnapshot(fresh, () => createSnapshot(image, fresh));
}

async function run(workload: Workload, random: Random): Promise<void> {
  const { storage, data, model } = workload;
  const image = await openWith(workload, storage, random, data);
  const unit = image.limits.allocationUnit;
  const scale = random.pick([unit, image.limits.zeroUnit]);
  // Now and then the disk is full, or reads, writes or syncs fail, whole or half-way: what was reported as done stays done.
  const full = random.chance(0.3);
  const failing = random.chance(0.3);
  const chances = {
    read: failing && random.chance(0.5) ? random.pick([0.01, 0.05]) : 0,
    write: failing ? random.pick([0, 0.05, 0.2]) : 0,
    sync: failing && random.chance(0.3) ? 0.02 : 0,
  };
  const tears = random.chance(0.5);
  const { small = false } = workload;
  const publishing = small || random.chance(0.3);
  let looking = false;
  for (let i = small ? random.between(40, 120) : random.between(5, 40); i > 0; i--) {
    for (const file of data === undefined ? [storage] : [storage, data]) {
      if (full) file.maxSize = random.chance(0.5) ? file.size : Number.MAX_SAFE_INTEGER;
      // For a while, then not.
      const calm = random.chance(0.3);
      file.failing = (call) => !calm && !looking && chances[call] > 0 && random.chance(chances[call]);
      file.tears = tears;
    }
    const pending = Array.from({ length: random.between(1, small ? 8 : 4) }, () =>
      change(random, image, workload, { scale, small: small && random.chance(0.95) }),
    );
    if (random.chance(0.3)) pending.push(model.flush(() => image.flush()));
    if (publishing && random.chance(0.5))
      pending.push(...Array.from(pending, (done) => done.then(() => image.publish())));
    for (const result of await Promise.allSettled(pending)) {
      if (result.status === 'rejected' && !['NO_SPACE', 'IO'].includes(codeOf(result.reason))) throw result.reason;
    }
    looking = true;
    if (publishing && random.chance(0.2)) await judgePublished(workload, image, random);
    looking = false;
    if (!random.chance(small ? 0.02 : 0.2)) continue;
    // A change that failed may have happened in part: what is seen now is what must be kept.
    looking = true;
    model.current = await readAll(image);
    looking = false;
    await restructure(random, image, model, unit).catch((error: unknown) => {
      // Narrow refcounts cannot count many snapshots; version 2 cannot resize with snapshots or over a longer parent.
      if (!['NO_SPACE', 'IO', 'TOO_LARGE', 'UNSUPPORTED'].includes(codeOf(error))) throw error;
    });
  }
  for (const file of data === undefined ? [storage] : [storage, data]) {
    file.maxSize = Number.MAX_SAFE_INTEGER;
    file.failing = () => false;
  }
  if (random.chance(0.5)) {
    const closed = await image.close().then(
      () => true,
      (error: unknown) => {
        if (codeOf(error) !== 'IO') throw error;
        return false;
      },
    );
    // After a clean close nothing is lost, not even space.
    if (closed && !failing) {
      const found = new Qcow2File(storage.toBytes()).inspect();
      assert.deepEqual(found, { corruptions: [], leaks: [], missingCopied: [] }, workload.what);
    }
  }
}

/** What is published outlives the process: whoever opens the file then sees what the image shows now. */
async function judgePublished(workload: Workload, image: ChainImage, random: Random): Promise<void> {
  try {
    await image.publish();
  } catch (error) {
    if (!['NO_SPACE', 'IO'].includes(codeOf(error))) throw error;
    return;
  }
  const bytes = workload.storage.toBytes();
  const data = workload.data && new MemoryStorage({ bytes: workload.data.toBytes() });
  assert.deepEqual(new Qcow2File(bytes).inspect().corruptions, [], `${workload.what}, published`);
  const killed = await openWith(workload, new MemoryStorage({ bytes }), random, data);
  const [shown, found] = [await readAll(image), await readAll(killed)];
  assert.ok(Buffer.compare(shown, found) === 0, `${workload.what}: what was published is not in the file`);
  await killed.close();
}

/** What a cut leaves must open, have sound metadata, and show every flushed byte and the snapshots as they were. */
async function judge(workload: Workload, random: Random, at: number): Promise<void> {
  const keep = random.pick([0, 0.1, 0.5, 0.9, 1]);
  const bytes = workload.storage.cut(random, at, keep);
  const dataBytes = workload.data?.cut(random, at, random.pick([keep, 0, 1]));
  const data = dataBytes && new MemoryStorage({ bytes: dataBytes });
  const context = `${workload.what}, cut at step ${at} of ${workload.storage.now}`;
  const { corruptions, missingCopied } = new Qcow2File(bytes).inspect();
  assert.deepEqual(corruptions, [], context);
  const restructured = workload.model.restructuredBefore(at);
  if (!restructured) assert.deepEqual(missingCopied, [], context);
  const storage = new MemoryStorage({ bytes });
  const image = await openWith(workload, storage, random, data);
  const shown = await readAll(image);
  const wrong = workload.model.judge(at, shown);
  assert.equal(wrong, -1, `${context}: byte ${wrong} is neither as flushed nor as written since`);
  if (workload.raw) {
    const alone = new Uint8Array(shown.length);
    alone.set((dataBytes as Uint8Array).subarray(0, shown.length));
    assert.ok(Buffer.compare(alone, shown) === 0, `${context}: the raw data file holds something else than the disk`);
  }
  if (!random.chance(FURTHER)) return image.close();
  // It can be written on, and closes without making anything worse.
  await image.writev(random.below(image.size - 1), IoVec.of(random.bytes(1)));
  await image.close();
  const again = new Qcow2File(storage.toBytes());
  const found = again.inspect();
  assert.deepEqual(found.corruptions, [], `${context}, written again`);
  // Version 2 has no bit that would tell the next writer to look.
  if (again.version > 2) assert.deepEqual(found.missingCopied, [], `${context}, written again`);
  const layer = await openLayer(new MemoryStorage({ bytes: storage.toBytes() }), { metadataOnly: true });
  const listed = new Set(((await layer.describe()).snapshots ?? []).map(({ name }) => name));
  for (const [name, { bytes: shown, takingAt, takenAt, deletingAt, deletedAt }] of workload.model.snapshots) {
    if (takingAt >= at || deletedAt < at) assert.ok(!listed.has(name), `${context}: ${name} is there`);
    if (takenAt < at && deletingAt >= at) assert.ok(listed.has(name), `${context}: ${name} is gone`);
    if (!listed.has(name)) continue;
    const parents =
      workload.parentBytes === undefined
        ? []
        : [await openLayer(new MemoryStorage({ bytes: workload.parentBytes }), { readOnly: true })];
    const snapshot = await openImage(storage, { readOnly: true, snapshot: name, parents });
    assert.ok(Buffer.compare(await readAll(snapshot), shown) === 0, `${context}: ${name} has changed`);
    await snapshot.close();
  }
}

test(`${CUTS} power cuts lose nothing that was flushed and leave sound metadata`, async (t) => {
  const random = randomFor(t);
  for (let cuts = 0; cuts < CUTS; cuts += CUTS_PER_WORKLOAD) {
    const workload = await prepare(random);
    await run(workload, random);
    for (let i = 0; i < CUTS_PER_WORKLOAD; i++) await judge(workload, random, random.between(0, workload.storage.now));
  }
});
