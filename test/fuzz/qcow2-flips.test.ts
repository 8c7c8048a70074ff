import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { ExtentBuffer } from '../../formats/image/extent.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, openLayer } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

/** Damaged images in one run; LUNETTE_FLIPS asks for more. */
const FLIPS = Number(process.env.LUNETTE_FLIPS ?? 20_000);
/** Processor time that one image may take: a busy machine makes none of it slower. */
const MAX_IMAGE_MS = 1000;
const CACHE_BYTES = 200_000;
/** What the process may grow by beside its cache, once it has warmed up. */
const MAX_GROWTH = 64 * 1024 * 1024;
const WARM_UP = 1000;

interface Seed {
  readonly bytes: Uint8Array;
  /** Ranges that hold metadata: where flips matter. */
  readonly tables: readonly { readonly at: number; readonly length: number }[];
}

/** A small image that has something of everything: data, zeros, a compressed cluster, a snapshot, refcounts of some width. */
async function seedImage(options: { clusterSize: number; refcountBits: number; version: 2 | 3 }): Promise<Seed> {
  const size = 200 * options.clusterSize;
  const storage = await createImage({ size, ...options, ...(options.version === 2 ? { refcountBits: 16 } : {}) });
  const image = await openImage(storage);
  for (let i = 0; i < 6; i++) {
    await image.writev(i * 30 * options.clusterSize, IoVec.of(new Uint8Array(2 * options.clusterSize).fill(i + 1)));
  }
  await image.writeZeroes(0, options.clusterSize, false);
  await image.close();
  let file = new Qcow2File(storage.toBytes());
  if (file.refcountBits > 1) file.takeSnapshot('1', 'one');
  const again = new MemoryStorage({ bytes: file.bytes });
  const live = await openImage(again);
  await live.writev(options.clusterSize, IoVec.of(new Uint8Array(options.clusterSize).fill(9)));
  await live.close();
  file = new Qcow2File(again.toBytes());
  // The cluster just written becomes a compressed one, in the same place.
  const l2 = Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n);
  const data = file.u64(l2 + 8) & 0x00fffffffffffe00n;
  const stream = deflateRawSync(new Uint8Array(options.clusterSize).fill(7), { windowBits: 12 });
  file.bytes.set(stream, Number(data));
  const sectors = BigInt(Math.ceil(stream.length / 512) - 1);
  file.setU64(l2 + 8, (1n << 62n) | (sectors << BigInt(62 - (file.clusterBits - 8))) | data);

  const refcountTable = Number(file.u64(48));
  const tables = [
    { at: 0, length: 136 },
    { at: file.l1Offset, length: Math.max(8, file.l1Size * 8) },
    { at: l2, length: 200 * 8 },
    { at: refcountTable, length: 32 },
    { at: Number(file.u64(refcountTable)), length: 128 },
  ];
  if (file.u32(60) > 0) tables.push({ at: Number(file.u64(64)), length: 64 });
  return { bytes: file.bytes, tables };
}

function damage(random: Random, seed: Seed): Uint8Array {
  const bytes = seed.bytes.slice();
  for (let flips = random.pick([1, 1, 2, 5]); flips > 0; flips--) {
    const table = random.pick(seed.tables);
    const at = Math.min(bytes.length - 8, table.at + random.below(table.length));
    const view = new DataView(bytes.buffer);
    switch (random.below(6)) {
      case 0:
        bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
        break;
      case 1:
        bytes[at] = random.below(256);
        break;
      case 2:
        view.setUint32(at - (at % 4), random.pick([0, 1, 0x7fffffff, 0x80000000, 0xffffffff]));
        break;
      case 3: // Something plausible: the place of another table or cluster.
        view.setUint32(at - (at % 8) + 4, random.below(bytes.length / 512 + 4) * 512);
        break;
      case 4:
        bytes.fill(random.pick([0, 0xff]), at, at + random.below(16));
        break;
      default:
        view.setUint32(at - (at % 8), random.next());
    }
  }
  return random.chance(0.1) ? bytes.subarray(0, random.below(bytes.length)) : bytes;
}

/** One of the things that a user may do with an image, after a look at it. Throws only what the image is to blame for. */
async function use(random: Random, bytes: Uint8Array): Promise<void> {
  const attempt = async (act: () => Promise<void>): Promise<void> => {
    try {
      await act();
    } catch (error) {
      if (!(error instanceof LunetteError) || error.code === 'INTERNAL') throw error;
    }
  };
  const cache = new SharedBlockCache(CACHE_BYTES);
  await attempt(async () => {
    const layer = await openLayer(new MemoryStorage({ bytes }), { metadataOnly: true, cache });
    await attempt(async () => {
      await layer.describe();
    });
    await layer.close();
  });
  const way = random.pick(['live', 'snapshot', 'write'] as const);
  if (way !== 'write') {
    await attempt(async () => {
      const storage = new MemoryStorage({ bytes });
      const image = await openImage(storage, {
        readOnly: true,
        cache,
        ...(way === 'live' ? {} : { snapshot: '1' }),
      });
      for (let i = 0; i < 8; i++) {
        const length = Math.min(image.size, 1 + random.below(5000));
        const offset = random.chance(0.7)
          ? Math.min(image.size - length, random.below(120_000))
          : random.below(image.size - length + 1);
        await attempt(() => image.readv(Math.max(0, offset), IoVec.of(new Uint8Array(length))));
        await attempt(async () => {
          await image.map(Math.max(0, offset), length, new ExtentBuffer());
        });
      }
      await image.close();
    });
  }
  if (way === 'write')
    await attempt(async () => {
      const image = await openImage(new MemoryStorage({ bytes, maxSize: 4 * 1024 * 1024 }), { cache });
      for (let i = 0; i < 6; i++) {
        const length = Math.min(image.size, 1 + random.below(5000));
        const offset = Math.max(0, Math.min(image.size - length, random.below(120_000)));
        const kind = random.below(4);
        await attempt(async () => {
          if (kind === 0) return void (await image.discard(offset, length));
          if (kind === 1) return image.writeZeroes(offset, length, random.chance(0.5));
          return image.writev(offset, IoVec.of(new Uint8Array(length)));
        });
        if (random.chance(0.3)) await attempt(() => image.flush());
      }
      await image.close();
    });
  assert.equal(cache.stats.pinnedBytes, 0, 'memory is still accounted for after close');
}

test(`${FLIPS} damaged images do no more than fail with an error of ours`, async (t) => {
  const random = randomFor(t);
  const seeds = [
    await seedImage({ clusterSize: 512, refcountBits: 16, version: 3 }),
    await seedImage({ clusterSize: 512, refcountBits: 64, version: 3 }),
    await seedImage({ clusterSize: 1024, refcountBits: 1, version: 3 }),
    await seedImage({ clusterSize: 4096, refcountBits: 16, version: 2 }),
  ];
  let warm = Number.POSITIVE_INFINITY;
  for (let i = 0; i < FLIPS; i++) {
    const bytes = damage(random, random.pick(seeds));
    const started = process.cpuUsage();
    try {
      await use(random, bytes);
    } catch (error) {
      throw new Error(`image ${i}: ${error instanceof Error ? error.stack : String(error)}`);
    }
    const { user, system } = process.cpuUsage(started);
    const took = (user + system) / 1000;
    assert.ok(took < MAX_IMAGE_MS, `image ${i} took ${took} ms`);
    if (i % 500 !== 0) continue;
    const { rss } = process.memoryUsage();
    assert.ok(rss < warm + CACHE_BYTES + MAX_GROWTH, `after image ${i} the process has ${rss} bytes, ${warm} before`);
    if (i === WARM_UP) warm = rss;
  }
});
