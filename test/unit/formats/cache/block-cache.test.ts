import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import type { BlockSpace } from '../../../../formats/cache/cache.ts';
import { type BlockCodec, loadLz4 } from '../../../../formats/cache/lz4.ts';
import { KiB } from '../../../../formats/core/units.ts';
import { Random } from '../../../support/random.ts';

/** A block whose bytes say which one it is, and that compresses well. */
function block(number: number, length = 64 * KiB): Uint8Array {
  return new Uint8Array(length).fill(number);
}

/** lz4 that says when its results have arrived, however busy the machine is. */
class AwaitedLz4 implements BlockCodec {
  readonly #codec: BlockCodec;
  readonly #running = new Set<Promise<unknown>>();

  constructor(codec: BlockCodec) {
    this.#codec = codec;
  }

  static async load(): Promise<AwaitedLz4> {
    const codec = await loadLz4();
    assert.ok(codec !== undefined, 'lz4-napi is not installed');
    return new AwaitedLz4(codec);
  }

  compress(bytes: Uint8Array): Promise<Uint8Array> {
    const result = this.#codec.compress(bytes);
    const running: Promise<unknown> = result.finally(() => this.#running.delete(running));
    this.#running.add(running);
    return result;
  }

  decompress(bytes: Uint8Array): Uint8Array {
    return this.#codec.decompress(bytes);
  }

  /** Resolves when the cache has taken every result. */
  async idle(): Promise<void> {
    await Promise.all(this.#running);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A cache whose codec is at hand from the first eviction on. */
async function cacheWithCodec(
  budget: number,
  codec: BlockCodec | undefined,
  coldShare = 0.5,
): Promise<SharedBlockCache> {
  const cache = new SharedBlockCache(budget, { coldShare, loadCodec: () => Promise.resolve(codec) });
  const space = cache.space(1);
  // A block that must go tells the cache to load its codec.
  space.set(0, block(0, 4 * KiB));
  cache.adjustPinned(budget);
  cache.adjustPinned(-budget);
  space.release();
  await Promise.resolve();
  return cache;
}

/** Keeps the first 1/16 of a block, which is enough for blocks of one repeated byte; finishes when told. */
class ManualCodec implements BlockCodec {
  readonly waiting: (() => void)[] = [];

  compress(bytes: Uint8Array): Promise<Uint8Array> {
    return new Promise((resolve) => {
      this.waiting.push(() => resolve(bytes.slice(0, bytes.length / 16)));
    });
  }

  decompress(bytes: Uint8Array): Uint8Array {
    return new Uint8Array(bytes.length * 16).fill(bytes[0] as number);
  }

  async finish(): Promise<void> {
    for (const done of this.waiting.splice(0)) done();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function bytesHeld(cache: SharedBlockCache): number {
  const { warmBytes, coldBytes, pinnedBytes } = cache.stats;
  return warmBytes + coldBytes + pinnedBytes;
}

test('get gives the very array that was set', () => {
  const space = new SharedBlockCache(1024 * KiB).space(10);
  const bytes = block(3);
  space.set(3, bytes);
  assert.equal(space.get(3), bytes);
  assert.equal(space.get(4), undefined);
});

test('a miss counts once until the block is there, however often it is asked for meanwhile', () => {
  const cache = new SharedBlockCache(1024 * KiB);
  const space = cache.space(10);
  for (let i = 0; i < 5; i++) assert.equal(space.get(3), undefined);
  space.set(3, block(3));
  for (let i = 0; i < 5; i++) assert.ok(space.get(3));
  assert.equal(cache.stats.misses, 1);
  assert.equal(cache.stats.hits, 5);
  space.delete(3);
  assert.equal(space.get(3), undefined);
  assert.equal(cache.stats.misses, 2);
});

test('spaces do not see each other, and released numbers start empty', () => {
  const cache = new SharedBlockCache(1024 * KiB);
  const a = cache.space(4);
  const b = cache.space(4);
  a.set(0, block(1));
  b.set(0, block(2));
  assert.equal(a.get(0)?.[0], 1);
  assert.equal(b.get(0)?.[0], 2);
  a.release();
  assert.equal(cache.stats.warmBytes, 64 * KiB);
  const c = cache.space(4);
  assert.equal(c.get(0), undefined);
  assert.equal(b.get(0)?.[0], 2);
});

test('a released space holds nothing, takes nothing and may be released again', () => {
  const cache = new SharedBlockCache(1024 * KiB);
  const space = cache.space(4);
  space.release();
  const heir = cache.space(4);
  heir.set(1, block(7));
  space.set(1, block(9));
  space.delete(1);
  space.release();
  assert.equal(space.get(1), undefined);
  assert.equal(heir.get(1)?.[0], 7);
});

test('a block outside the space is a bug that is reported', () => {
  const space = new SharedBlockCache(1024 * KiB).space(4);
  for (const number of [-1, 4, Number.NaN]) {
    assert.throws(() => space.get(number), { code: 'INTERNAL' });
    assert.throws(() => space.set(number, block(0)), { code: 'INTERNAL' });
  }
});

test('the least recently used block goes first', () => {
  const cache = new SharedBlockCache(256 * KiB, { coldShare: 0 });
  const space = cache.space(10);
  for (let i = 0; i < 4; i++) space.set(i, block(i));
  space.get(0);
  space.set(4, block(4));
  assert.equal(space.get(1), undefined);
  for (const i of [0, 2, 3, 4]) assert.equal(space.get(i)?.[0], i);
  assert.equal(cache.stats.evictions, 1);
});

test('replacing a block counts its bytes once', () => {
  const cache = new SharedBlockCache(256 * KiB);
  const space = cache.space(2);
  space.set(0, block(1));
  space.set(0, block(2, 32 * KiB));
  assert.equal(cache.stats.warmBytes, 32 * KiB);
  assert.equal(space.get(0)?.[0], 2);
  space.delete(0);
  assert.equal(cache.stats.warmBytes, 0);
});

test('a block larger than the budget is not kept, and what was there under its number is gone', () => {
  const cache = new SharedBlockCache(256 * KiB);
  const space = cache.space(2);
  space.set(0, block(1));
  space.set(0, block(2, 512 * KiB));
  assert.equal(space.get(0), undefined);
  const none = new SharedBlockCache(0).space(1);
  none.set(0, block(1));
  assert.equal(none.get(0), undefined);
});

test('pinned memory takes the room of clean blocks, and above a quarter writers must wait', () => {
  const cache = new SharedBlockCache(1024 * KiB, { coldShare: 0 });
  const space = cache.space(16);
  for (let i = 0; i < 16; i++) space.set(i, block(i));
  cache.adjustPinned(256 * KiB);
  assert.equal(cache.pinnedFull, false);
  assert.equal(cache.stats.warmBytes, 768 * KiB);
  cache.adjustPinned(1);
  assert.equal(cache.pinnedFull, true);
  cache.adjustPinned(2048 * KiB);
  assert.equal(cache.stats.warmBytes, 0);
  assert.throws(() => cache.adjustPinned(-4096 * KiB), { code: 'INTERNAL' });
});

test('a block that fell out and compresses well comes back with the same bytes', async () => {
  const codec = await AwaitedLz4.load();
  const cache = await cacheWithCodec(4096 * KiB, codec);
  const space = cache.space(100);
  const random = new Random(1);
  const originals: Uint8Array[] = [];
  for (let i = 0; i < 100; i++) {
    const bytes = block(0);
    random.fill(bytes.subarray(0, 8 * KiB));
    originals.push(bytes);
    space.set(i, bytes);
    await codec.idle();
    assert.ok(bytesHeld(cache) <= cache.budget);
  }
  assert.ok(cache.stats.coldBytes > 0);
  const before = cache.stats.coldHits;
  assert.equal(Buffer.compare(space.get(5) as Uint8Array, originals[5] as Uint8Array), 0);
  assert.equal(cache.stats.coldHits, before + 1);
  const promoted = space.get(5);
  assert.equal(space.get(5), promoted, 'it is plain again');
  assert.equal(cache.stats.coldHits, before + 1);
});

test('without lz4 there is no cold tier and nothing else changes', async () => {
  const cache = await cacheWithCodec(1024 * KiB, undefined);
  const space = cache.space(100);
  for (let i = 0; i < 100; i++) space.set(i, block(i));
  assert.equal(space.get(99)?.[0], 99);
  assert.equal(space.get(0), undefined);
  assert.equal(cache.stats.compressions, 0);
  assert.equal(cache.stats.coldBytes, 0);
});

test('eviction never waits: what does not fit into the compressor is dropped', async () => {
  const codec = new ManualCodec();
  const cache = await cacheWithCodec(4096 * KiB, codec);
  const space = cache.space(200);
  for (let i = 0; i < 200; i++) space.set(i, block(i));
  // 1/32 of the budget is 128 KiB: two blocks of 64 KiB.
  assert.equal(codec.waiting.length, 2);
  assert.ok(bytesHeld(cache) <= cache.budget);
  await codec.finish();
  assert.equal(cache.stats.coldBytes, 8 * KiB);
});

test('a block is found while it is being compressed, and is then plain again', async () => {
  const codec = new ManualCodec();
  const cache = await cacheWithCodec(4096 * KiB, codec);
  const space = cache.space(200);
  for (let i = 0; i < 63; i++) space.set(i, block(i));
  assert.equal(codec.waiting.length, 1);
  assert.equal(space.get(0)?.[0], 0);
  assert.equal(cache.stats.coldHits, 0);
  await codec.finish();
  assert.equal(space.get(0)?.[0], 0);
  assert.equal(cache.stats.coldHits, 0);
});

test('what is compressed late does not bring back a block that was replaced, deleted or released', async () => {
  const codec = new ManualCodec();
  const cache = await cacheWithCodec(8192 * KiB, codec);
  const space = cache.space(200);
  const other = cache.space(10);
  other.set(1, block(11));
  for (let i = 0; i < 126; i++) space.set(i, block(i));
  assert.equal(codec.waiting.length, 3); // other's block, 0 and 1
  other.release();
  space.set(0, block(100));
  space.delete(1);
  const heir = cache.space(10);
  await codec.finish();
  assert.equal(space.get(0)?.[0], 100);
  assert.equal(space.get(1), undefined);
  assert.equal(heir.get(1), undefined);
});

test('deleting and releasing reach compressed blocks', async () => {
  const codec = new ManualCodec();
  const cache = await cacheWithCodec(4096 * KiB, codec);
  const space = cache.space(200);
  for (let i = 0; i < 64; i++) space.set(i, block(i));
  await codec.finish();
  assert.equal(cache.stats.coldBytes, 8 * KiB);
  space.delete(0);
  assert.equal(cache.stats.coldBytes, 4 * KiB);
  space.release();
  assert.equal(bytesHeld(cache), 0);
});

test('a space whose blocks do not compress stops costing compressions, another one goes on', async () => {
  const codec = await AwaitedLz4.load();
  const cache = await cacheWithCodec(1024 * KiB, codec);
  const fill = async (space: BlockSpace, from: number, count: number, make: (number: number) => Uint8Array) => {
    for (let i = from; i < from + count; i++) {
      space.set(i, make(i));
      await codec.idle();
    }
  };
  const noise = (number: number): Uint8Array => new Random(number).bytes(4 * KiB);
  const random = cache.space(4000);
  await fill(random, 0, 400, noise);
  const learned = cache.stats.compressions;
  assert.ok(learned >= 32, `${learned} tries`);
  await fill(random, 400, 1600, noise);
  assert.ok(cache.stats.compressions - learned < 1600 / 20, `${cache.stats.compressions - learned} further tries`);
  const good = cache.space(4000);
  const kept = cache.stats.coldKept;
  await fill(good, 0, 600, (number) => block(number, 4 * KiB));
  assert.ok(cache.stats.coldKept > kept + 50, `${cache.stats.coldKept - kept} kept`);
});

test('bad options are refused', () => {
  assert.throws(() => new SharedBlockCache(-1), { code: 'INVALID' });
  assert.throws(() => new SharedBlockCache(1.5), { code: 'INVALID' });
  assert.throws(() => new SharedBlockCache(1, { coldShare: 2 }), { code: 'INVALID' });
  assert.throws(() => new SharedBlockCache(1).space(-1), { code: 'INVALID' });
});
