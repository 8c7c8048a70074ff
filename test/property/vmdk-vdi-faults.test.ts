import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { FormatDriver } from '../../formats/driver.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import { RawLayer } from '../../formats/raw/raw.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { checkVdi } from '../../formats/vdi/check.ts';
import { createVdi } from '../../formats/vdi/create.ts';
import { vdi } from '../../formats/vdi/driver.ts';
import { checkVmdk } from '../../formats/vmdk/check.ts';
import { vmdk } from '../../formats/vmdk/driver.ts';
import { CutModel } from '../support/cut-model.ts';
import { openLayer, testContext } from '../support/layers.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { keptOpen, readAll } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';
import { type Folder, newDisk } from '../support/vmdk-files.ts';

/** LUNETTE_FAULTS asks for more. */
const WORKLOADS = Number(process.env.LUNETTE_FAULTS ?? 12);
const CUTS_PER_WORKLOAD = 25;
const UNIT = 4096;

interface Disk {
  readonly what: string;
  readonly driver: FormatDriver;
  readonly bytes: Uint8Array;
  /** Of the layer below; undefined: there is none. */
  readonly parentSize: number | undefined;
  readonly size: number;
}

async function newVdi(random: Random, size: number): Promise<Disk> {
  const storage = new MemoryStorage();
  const blockExtra = random.pick([0, 512]);
  const type = random.pick(['dynamic', 'dynamic', 'fixed'] as const);
  await createVdi(storage, { size, blockSize: UNIT, blockExtra, type });
  return {
    what: `${type} VDI, ${blockExtra} extra`,
    driver: vdi,
    bytes: storage.toBytes(),
    parentSize: undefined,
    size,
  };
}

async function newVmdk(random: Random, size: number): Promise<Disk> {
  const folder: Folder = new Map();
  const hasParent = random.chance(0.4);
  const parent = hasParent ? { parent: { hint: 'base.vmdk', cid: 1 } } : {};
  const path = await newDisk(folder, 'disk.vmdk', { size, grainSize: UNIT, ...parent });
  const bytes = (folder.get(path) as MemoryStorage).toBytes();
  const bare = random.chance(0.4);
  const view = new DataView(bytes.buffer);
  // No table is there: both directories are empty.
  if (bare) for (const field of [48, 56]) view.setUint32(512 * view.getUint32(field, true), 0, true);
  const what = `VMDK${hasParent ? ' with a parent' : ''}${bare ? ' without tables' : ''}`;
  return { what, driver: vmdk, bytes, parentSize: hasParent ? size + 512 : undefined, size };
}

async function open({ driver, parentSize }: Disk, storage: Storage, random: Random): Promise<ChainImage> {
  const context = testContext({ cache: random.pick([0, 30_000, 2 ** 20]) });
  const layer = await openLayer(driver, keptOpen(storage), { context });
  if (parentSize === undefined) return new ChainImage([layer]);
  return new ChainImage([
    layer,
    new RawLayer(new MemoryStorage({ bytes: new Uint8Array(parentSize).fill(0xab) }), true),
  ]);
}

async function assertClean(disk: Disk, bytes: Uint8Array, context: string): Promise<void> {
  const storage = new MemoryStorage({ bytes });
  if (disk.driver === vdi) {
    const found = await checkVdi(storage, testContext());
    assert.equal(found.corruptions, 0, `${context}\n${found.messages.join('\n')}`);
  } else {
    const found = await checkVmdk(storage, { context: testContext() });
    assert.deepEqual([found.corruptions, found.checkErrors], [0, 0], `${context}\n${JSON.stringify(found)}`);
  }
}

function change(random: Random, image: ChainImage, model: CutModel): Promise<void> {
  const size = image.size;
  const offset = random.below(size);
  const length = 1 + random.below(Math.min(size - offset, random.chance(0.2) ? 20 * UNIT : 3 * UNIT));
  const kind = random.below(8);
  if (kind < 2) {
    return model.change(offset, new Uint8Array(length), () => image.writeZeroes(offset, length, random.chance(0.7)));
  }
  if (kind === 2) {
    const unit = image.limits.discardUnit;
    const start = unit === 0 ? size : Math.ceil(offset / unit) * unit;
    const end = unit === 0 ? 0 : offset + length === size ? size : Math.floor((offset + length) / unit) * unit;
    const discard = async (): Promise<void> => void (await image.discard(offset, length));
    return start < end ? model.change(start, new Uint8Array(end - start), discard) : discard();
  }
  const bytes = random.bytes(length);
  return model.change(offset, bytes, async () => {
    const list = IoVec.of(bytes);
    if (!image.tryWritev(offset, list)) await image.writev(offset, list);
  });
}

test('a VMDK or VDI disk that meets errors and full file systems loses nothing that was flushed, whenever the power goes', async (t) => {
  const random = randomFor(t);
  for (let i = 0; i < WORKLOADS; i++) {
    const size = random.between(6, 60) * UNIT + random.pick([0, 512]);
    const disk = await (random.chance(0.4) ? newVdi : newVmdk)(random, size);
    const storage = new PowerCutStorage(random, disk.bytes);
    const image = await open(disk, storage, random);
    const model = new CutModel(storage, await readAll(image));
    const full = random.chance(0.5);
    const failing = random.chance(0.5);
    const chances = {
      read: failing ? random.pick([0, 0.02]) : 0,
      write: failing ? random.pick([0, 0.05, 0.2]) : 0,
      sync: failing ? random.pick([0, 0, 0.02]) : 0,
    };
    storage.tears = random.chance(0.5);
    const what = `${disk.what} of ${size} bytes ${JSON.stringify({ full, ...chances })}`;
    const tolerate = (error: unknown): void => {
      if (!['NO_SPACE', 'IO'].includes(codeOf(error))) throw error;
    };
    for (let rounds = random.between(5, 40); rounds > 0; rounds--) {
      if (full) storage.maxSize = random.chance(0.5) ? storage.size : Number.MAX_SAFE_INTEGER;
      const calm = random.chance(0.3);
      storage.failing = (call) => !calm && chances[call] > 0 && random.chance(chances[call]);
      const pending = Array.from({ length: random.between(1, 4) }, () => change(random, image, model));
      if (random.chance(0.3)) pending.push(model.flush(() => image.flush()));
      for (const result of await Promise.allSettled(pending)) if (result.status === 'rejected') tolerate(result.reason);
    }
    storage.maxSize = Number.MAX_SAFE_INTEGER;
    storage.failing = () => false;
    await model.flush(() => image.flush()).catch(tolerate);
    if (random.chance(0.5)) await image.close().catch(tolerate);
    for (let cut = 0; cut < CUTS_PER_WORKLOAD; cut++) {
      const at = cut === 0 ? storage.now : random.between(0, storage.now);
      const bytes = storage.cut(random, at, random.pick([0, 0.1, 0.5, 0.9, 1]));
      const context = `${what}, cut at step ${at} of ${storage.now}`;
      await assertClean(disk, bytes, context);
      const again = await open(disk, new MemoryStorage({ bytes }), random);
      const wrong = model.judge(at, await readAll(again));
      assert.equal(wrong, -1, `${context}: byte ${wrong} is neither as flushed nor as written since`);
      await again.close();
    }
  }
});
