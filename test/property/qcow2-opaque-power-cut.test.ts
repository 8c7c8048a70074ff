import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { codeOf } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import type { EncodedUnit } from '../../formats/image/layer.ts';
import { createSnapshot, deleteSnapshot } from '../../formats/image/snapshots.ts';
import { loadClusterEncoder } from '../../formats/qcow2/cluster-codec.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { CutModel } from '../support/cut-model.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

/** Cuts in one run of each test; LUNETTE_CUTS asks for more. */
const CUTS = Number(process.env.LUNETTE_CUTS ?? 600);
const SECRET = Buffer.from('secret');
const CUTS_PER_WORKLOAD = 20;
const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };

interface Workload {
  readonly what: string;
  readonly storage: PowerCutStorage;
  readonly model: CutModel;
  /** Undefined where clusters are encrypted, not compressed. */
  readonly encode: ((bytes: Uint8Array) => EncodedUnit) | undefined;
}

const openCached = (storage: PowerCutStorage | MemoryStorage, random: Random): Promise<ChainImage> =>
  openImage(storage, { secret: SECRET, cache: new SharedBlockCache(random.pick([0, 50_000, 1_000_000])) });

/** Noise in front of zeros: from nothing to a whole cluster of what does not compress. */
function cluster(random: Random, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  if (random.chance(0.1)) return bytes;
  random.fill(bytes.subarray(0, random.chance(0.15) ? size : 1 + random.below(size / 2)));
  return bytes;
}

async function prepare(random: Random): Promise<Workload> {
  const clusterSize = random.pick([512, 1024, 4096]);
  const version = random.pick([2, 3, 3] as const);
  const refcountBits = version === 2 ? 16 : random.pick([1, 2, 4, 8, 16, 64]);
  const compressionType = version === 2 ? 'zlib' : random.pick(['zlib', 'zstd'] as const);
  const size = random.pick([6, 40, 200]) * clusterSize + random.pick([0, 512]);
  const file = await createImage({ size, clusterSize, version, refcountBits, compressionType });
  const device = random.chance(0.2) ? { spare: random.below(400) * clusterSize } : {};
  const storage = new PowerCutStorage(random, file.toBytes(), device);
  const model = new CutModel(storage, new Uint8Array(size));
  const encode = await loadClusterEncoder(compressionType, clusterSize);
  const place = storage.growsZeroed ? '' : 'on a device, ';
  const what = `${place}version ${version}, ${compressionType} in clusters of ${clusterSize}, ${refcountBits} refcount bits`;
  return { what, storage, model, encode };
}

/** An encrypted image: the key's making takes longer than all that is done with it, so one serves many workloads. */
async function prepareEncrypted(random: Random, files: Map<string, Uint8Array>): Promise<Workload> {
  const clusterSize = random.pick([512, 4096]);
  const cipherMode = random.pick(['xts', 'cbc']);
  const what = `${cipherMode}, clusters of ${clusterSize}`;
  const size = 60 * clusterSize + 512;
  let bytes = files.get(what);
  if (bytes === undefined) {
    const encryption = { secret: SECRET, iterTimeMs: 1, cipherAlg: 'aes-128', cipherMode };
    bytes = (await createImage({ size, clusterSize, encryption })).toBytes();
    files.set(what, bytes);
  }
  const storage = new PowerCutStorage(random, bytes, random.chance(0.2) ? { spare: 200 * clusterSize } : {});
  return { what, storage, model: new CutModel(storage, new Uint8Array(size)), encode: undefined };
}

function change(random: Random, image: ChainImage, { model, encode }: Workload): Promise<void> {
  const { size } = image;
  const unit = image.limits.allocationUnit;
  const offset = random.below(size);
  const length = 1 + random.below(Math.min(size - offset, 3 * unit));
  switch (random.below(7)) {
    case 2: {
      // Whole units: host clusters lose their last stream.
      const start = Math.floor(offset / unit) * unit;
      const end = Math.min(size, start + unit * (1 + random.below(8)));
      return model.change(start, new Uint8Array(end - start), () => image.writeZeroes(start, end - start, true));
    }
    case 0:
      return model.change(offset, new Uint8Array(length), () => image.writeZeroes(offset, length, random.chance(0.5)));
    case 1: {
      const bytes = random.bytes(length);
      return model.change(offset, bytes, () => image.writev(offset, IoVec.of(bytes)));
    }
    default: {
      if (encode === undefined) {
        const bytes = random.bytes(length);
        return model.change(offset, bytes, () => image.writev(offset, IoVec.of(bytes)));
      }
      const first = Math.floor(offset / unit);
      const count = Math.min(Math.ceil(size / unit) - first, 1 + random.below(20));
      const parts = Array.from({ length: count }, () => cluster(random, unit));
      const bytes = new Uint8Array(Buffer.concat(parts)).subarray(0, size - first * unit);
      return model.change(first * unit, bytes, () => image.writeCompressed(first * unit, parts.map(encode)));
    }
  }
}

async function run(workload: Workload, random: Random): Promise<void> {
  const { storage, model } = workload;
  const image = await openCached(storage, random);
  const full = random.chance(0.3);
  const failing = random.chance(0.2);
  const tolerate = (error: unknown): void => {
    // Narrow refcounts cannot count a snapshot's references to a shared cluster.
    if (!['NO_SPACE', 'IO', 'TOO_LARGE'].includes(codeOf(error))) throw error;
  };
  for (let i = random.between(5, 25); i > 0; i--) {
    if (full) storage.maxSize = random.chance(0.5) ? storage.size : Number.MAX_SAFE_INTEGER;
    if (failing) storage.failing = (call) => call === 'write' && random.chance(0.05);
    const pending = Array.from({ length: random.between(1, 4) }, () => change(random, image, workload));
    if (random.chance(0.3)) pending.push(model.flush(() => image.flush()));
    for (const result of await Promise.allSettled(pending)) if (result.status === 'rejected') tolerate(result.reason);
    if (!random.chance(0.15)) continue;
    // A change that failed may have happened in part: what is seen now is what must be kept.
    model.current = await readAll(image);
    const name = model.present[0];
    if (name !== undefined && random.chance(0.5)) {
      await model.deleteSnapshot(name, () => deleteSnapshot(image, { name })).catch(tolerate);
    } else {
      const fresh = `snapshot ${model.snapshots.size + 1}`;
      await model.takeSnapshot(fresh, () => createSnapshot(image, fresh)).catch(tolerate);
    }
  }
  storage.maxSize = Number.MAX_SAFE_INTEGER;
  storage.failing = () => false;
  if (!random.chance(0.5)) return;
  const closed = await image.close().then(
    () => true,
    (error: unknown) => {
      tolerate(error);
      return false;
    },
  );
  if (closed && !failing) assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN, workload.what);
}

async function judge(workload: Workload, random: Random, at: number): Promise<void> {
  const bytes = workload.storage.cut(random, at, random.pick([0, 0.1, 0.5, 0.9, 1]));
  const context = `${workload.what}, cut at step ${at} of ${workload.storage.now}`;
  const { corruptions, missingCopied } = new Qcow2File(bytes).inspect();
  assert.deepEqual(corruptions, [], context);
  if (!workload.model.restructuredBefore(at)) assert.deepEqual(missingCopied, [], context);
  const storage = new MemoryStorage({ bytes });
  const image = await openCached(storage, random);
  const wrong = workload.model.judge(at, await readAll(image));
  assert.equal(wrong, -1, `${context}: byte ${wrong} is neither as flushed nor as written since`);
  const again = cluster(random, image.limits.allocationUnit);
  if (workload.encode === undefined) await image.writev(random.below(image.size - 1), IoVec.of(random.bytes(1)));
  else await image.writeCompressed(0, [workload.encode(again)]);
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, [], `${context}, written again`);
  for (const [name, { bytes: shown, takenAt, deletingAt }] of workload.model.snapshots) {
    if (takenAt >= at || deletingAt < at) continue;
    const snapshot = await openImage(storage, { readOnly: true, snapshot: name, secret: SECRET });
    assert.ok(Buffer.compare(await readAll(snapshot), shown) === 0, `${context}: ${name} has changed`);
    await snapshot.close();
  }
}

test(`${CUTS} power cuts among compressed writes lose nothing that was flushed`, async (t) => {
  const random = randomFor(t);
  for (let cuts = 0; cuts < CUTS; cuts += CUTS_PER_WORKLOAD) {
    const workload = await prepare(random);
    await run(workload, random);
    for (let i = 0; i < CUTS_PER_WORKLOAD; i++) await judge(workload, random, random.between(0, workload.storage.now));
  }
});

test(`${CUTS / 4} power cuts among encrypted writes lose nothing that was flushed`, async (t) => {
  const random = randomFor(t);
  const files = new Map<string, Uint8Array>();
  for (let cuts = 0; cuts < CUTS / 4; cuts += CUTS_PER_WORKLOAD) {
    const workload = await prepareEncrypted(random, files);
    await run(workload, random);
    for (let i = 0; i < CUTS_PER_WORKLOAD; i++) await judge(workload, random, random.between(0, workload.storage.now));
  }
});
