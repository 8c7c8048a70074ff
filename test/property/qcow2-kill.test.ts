import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { codeOf } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { ChainImage } from '../../formats/image/chain.ts';
import type { Layer } from '../../formats/image/layer.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { SettledImage } from '../../src/daemon/settled-image.ts';
import { KillStorage } from '../support/kill-storage.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';
import { SECTOR, SectorModel, stamped, wrongSector } from '../support/sector-model.ts';

/** LUNETTE_KILLED asks for more. */
const WORKLOADS = Number(process.env.LUNETTE_KILLED ?? 150);

interface Workload {
  readonly what: string;
  readonly random: Random;
  readonly storage: KillStorage;
  readonly parentBytes: Uint8Array | undefined;
  readonly chain: ChainImage;
  readonly image: SettledImage;
  readonly model: SectorModel;
  /** Sectors of the longest change. */
  readonly longest: number;
  /** Nearly all changes are writes. */
  readonly writesOnly: boolean;
}

/** An empty image over a storage whose process may be killed, perhaps with a parent. */
async function prepare(random: Random): Promise<Workload> {
  const extendedL2 = random.chance(0.03);
  const clusterSize = extendedL2 ? 16384 : random.pick([512, 512, 512, 512, 512, 512, 1024, 4096]);
  const clusters = extendedL2 ? random.pick([4, 8]) : random.pick(clusterSize > 1024 ? [40] : [40, 100, 200]);
  const size = clusters * clusterSize;
  const version = extendedL2 || random.chance(0.8) ? 3 : 2;
  // Wide refcounts in small clusters: blocks come often.
  const refcountBits = version === 2 ? 16 : random.pick([1, 8, 16, 64, 64, 64]);
  const parentBytes = random.chance(0.3) ? await parentOf(size, clusterSize) : undefined;
  const backing = parentBytes === undefined ? {} : { backingFile: 'parent.qcow2', backingFormat: 'qcow2' };
  const file = await createImage({ size, clusterSize, refcountBits, extendedL2, version, ...backing });
  const storage = new KillStorage(random, file.toBytes());
  const cache = new SharedBlockCache(random.pick([0, 50_000, 1_000_000]));
  const discardNoUnref = version === 3 && random.chance(0.2);
  const chain = await openImage(storage, { cache, discardNoUnref, parents: await parents(parentBytes) });
  const perCluster = clusterSize / SECTOR;
  const stampAt = (sector: number): number => (parentBytes !== undefined && inParent(sector, perCluster) ? 1 : 0);
  const model = new SectorModel(Array.from({ length: size / SECTOR }, (_, sector) => stampAt(sector)));
  const what =
    `version ${version}, ${clusters} clusters of ${clusterSize}, ${refcountBits} refcount bits` +
    `${parentBytes === undefined ? '' : ', with a parent'}${extendedL2 ? ', extended L2' : ''}`;
  const longest = random.pick([2, 8]) * random.pick([1, perCluster]);
  const image = new SettledImage(chain);
  return { what, random, storage, parentBytes, chain, image, model, longest, writesOnly: random.chance(0.5) };
}

/** Every other cluster of a parent has data. */
function inParent(sector: number, perCluster: number): boolean {
  return Math.floor(sector / perCluster) % 2 === 0;
}

async function parentOf(size: number, clusterSize: number): Promise<Uint8Array> {
  const file = await createImage({ size, clusterSize });
  const image = await openImage(file);
  for (let at = 0; at < size; at += 2 * clusterSize) {
    await image.writev(at, IoVec.of(stamped(1, at / SECTOR, clusterSize / SECTOR)));
  }
  await image.close();
  return file.toBytes();
}

async function parents(bytes: Uint8Array | undefined): Promise<Layer[]> {
  return bytes === undefined ? [] : [await openLayer(new MemoryStorage({ bytes }), { readOnly: true })];
}

/** One random change, and its effect in the model. */
async function change({ random, image, model, longest, writesOnly }: Workload): Promise<void> {
  const total = image.size / SECTOR;
  const first = random.below(total);
  const count = Math.min(total - first, random.between(1, longest));
  const [offset, length] = [first * SECTOR, count * SECTOR];
  const kind = writesOnly && random.chance(0.9) ? 'write' : random.pick(['write', 'write', 'zeroes', 'discard']);
  if (kind === 'zeroes') {
    return model.change(first, count, 0, () => image.writeZeroes(offset, length, random.chance(0.5)));
  }
  if (kind === 'discard') {
    const unit = image.limits.discardUnit / SECTOR;
    if (unit === 0) return;
    // Less than a unit may stay as it is.
    const start = Math.ceil(first / unit) * unit;
    const end = Math.floor((first + count) / unit) * unit;
    if (start >= end) return;
    return model.change(
      start,
      end - start,
      0,
      async () => void (await image.discard(start * SECTOR, (end - start) * SECTOR)),
    );
  }
  const stamp = model.newStamp();
  return model.change(first, count, stamp, async () => {
    const bytes = IoVec.of(stamped(stamp, first, count));
    if (!image.tryWritev(offset, bytes)) await image.writev(offset, bytes);
  });
}

async function turns(count: number): Promise<void> {
  for (; count > 0; count--) await Promise.resolve();
}

function nextRound(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** The storage may fail, or be full: whoever asked hears of it, and was promised nothing. */
async function tolerantly(call: Promise<void>): Promise<void> {
  await call.catch((error: unknown) => {
    if (!['NO_SPACE', 'IO'].includes(codeOf(error))) throw error;
  });
}

/** Changes one after the other, as one of the guest's queues issues them. */
async function queue(workload: Workload): Promise<void> {
  const { random } = workload;
  for (let n = random.between(1, 4); n > 0; n--) {
    await tolerantly(change(workload));
    await turns(random.below(6));
  }
}

/** Some queues at once; beside them flushes and publications that come while others wait for their turn. */
async function round(workload: Workload): Promise<void> {
  const { random } = workload;
  const pending = Array.from({ length: random.between(1, 8) }, () => queue(workload));
  for (let n = random.below(6); n > 0; n--) pending.push(burst(workload));
  await Promise.all(pending);
}

async function burst(workload: Workload): Promise<void> {
  const { random, image } = workload;
  await turns(random.below(60));
  const pending: Promise<void>[] = [];
  for (let n = random.between(2, 4); n > 0; n--) {
    pending.push(tolerantly(random.chance(0.3) ? image.publish() : image.flush()));
    await turns(random.below(4));
  }
  await Promise.all(pending);
  // What a flush left out stays out until another one.
  if (random.chance(0.2)) await judge(workload);
  else judgeCounts(workload);
}

function judgeCounts({ what, storage }: Workload): void {
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, [], what);
}

/** What the process would leave if it were killed now is sound, and has what was acknowledged. */
async function judge({ what, storage, parentBytes, model }: Workload): Promise<void> {
  const bytes = storage.toBytes();
  const allowed = model.allowed();
  assert.deepEqual(new Qcow2File(bytes).inspect().corruptions, [], what);
  const left = new MemoryStorage({ bytes });
  const image = await openImage(left, { parents: await parents(parentBytes) });
  assert.equal(wrongSector(await readAll(image), allowed), undefined, what);
  await image.close();
  assert.deepEqual(new Qcow2File(left.toBytes()).inspect().corruptions, [], `${what}, closed again`);
}

/** Does something over and over, at random moments, until told to stop. */
async function repeat(
  random: Random,
  running: { on: boolean },
  longest: number,
  act: () => Promise<void>,
): Promise<void> {
  while (running.on) {
    await turns(random.below(longest));
    if (random.chance(0.5)) await nextRound();
    await act();
  }
}

async function run(workload: Workload): Promise<void> {
  const { random, storage, image } = workload;
  const failing = random.chance(0.4);
  // With little room no stock of clusters is laid in: each that is new has to be counted.
  const scarce = random.chance(0.8);
  const room = 150 * image.limits.allocationUnit;
  const running = { on: true };
  const beside = [
    repeat(random, running, 300, () => judge(workload)),
    repeat(random, running, 10, () => tolerantly(image.publish())),
  ];
  const rounds = async (): Promise<void> => {
    for (let n = random.between(1, 4); n > 0; n--) {
      const chance = failing ? random.pick([0, 0.01, 0.05]) : 0;
      storage.failing = () => random.chance(chance);
      storage.maxSize = storage.size + (scarce ? random.below(room) : 10 * room);
      await round(workload);
    }
  };
  try {
    await Promise.all([...beside, rounds().finally(() => (running.on = false))]);
  } finally {
    running.on = false;
    storage.failing = () => false;
    storage.maxSize = Number.MAX_SAFE_INTEGER;
  }
}

/** In the end the image shows what was acknowledged, and closes to a file that does, too. */
async function finish(workload: Workload): Promise<void> {
  const { what, storage, chain, image, model, parentBytes } = workload;
  const shown = await readAll(chain);
  assert.equal(wrongSector(shown, model.allowed()), undefined, `${what}, in the end`);
  await tolerantly(image.close());
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect().corruptions, [], `${what}, closed`);
  const again = await openImage(new MemoryStorage({ bytes: storage.toBytes() }), {
    parents: await parents(parentBytes),
  });
  assert.ok(Buffer.compare(await readAll(again), shown) === 0, `${what}: closed, it shows something else`);
  await again.close();
}

test('killed at any moment, nothing that was acknowledged is lost, and every cluster in use is counted', async (t) => {
  const random = randomFor(t);
  for (let i = 0; i < WORKLOADS; i++) {
    const workload = await prepare(random);
    await run(workload);
    await finish(workload);
  }
});
