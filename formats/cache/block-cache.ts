import { LRUCache } from 'lru-cache';
import { LunetteError } from '../core/errors.ts';
import type { BlockCache, BlockCacheStats, BlockSpace } from './cache.ts';
import { ColdPolicy, KEEP_BELOW } from './cold-policy.ts';
import { FrequencySketch } from './frequency.ts';
import { type BlockCodec, loadLz4 } from './lz4.ts';

export interface SharedBlockCacheOptions {
  /** Part of the budget, 0 to 1, that compressed blocks may take; 0: no cold tier. Default: COLD_SHARE. */
  readonly coldShare?: number;
  /** What compresses. Default: lz4, loaded when the first block falls out of the warm part. */
  readonly loadCodec?: () => Promise<BlockCodec | undefined>;
}

export interface SharedBlockCacheStats extends BlockCacheStats {
  /** Blocks given to the compressor, and those of them that were kept. */
  readonly compressions: number;
  readonly coldKept: number;
}

/**
 * What compressed blocks may take of the budget unless told. Measured (test/bench/cache-cold-tier.bench.ts): a quarter brings
 * most of the hits that half does, and fewer of the hits that it has anyway need decompressing.
 */
export const COLD_SHARE = 0.25;

/** More than requests in flight at a time. */
const MISSED_SLOTS = 1024;
/** Smaller blocks are not worth the call. */
const MIN_COLD_BLOCK = 4096;
/** One counter of demand for so many bytes of the budget: a cluster of usual size takes this much when compressed well. */
const WANTED_BLOCK = 16 * 1024;
/** Room for blocks that are being compressed, as a part of the budget and in bytes: what bounds the compressor's queue. */
const COMPRESSING_SHARE = 1 / 32;
const MAX_COMPRESSING = 8 * 1024 * 1024;

/** A block at the compressor. An object for each time: the same array may be given to it again. */
interface Compressing {
  readonly bytes: Uint8Array;
}

/**
 * Clean blocks of all open images within one byte budget: plain ones, least recently used first out, and of those that
 * fell out the ones that compress well. A cold hit is decompressed at once and is plain again. Compressing happens on
 * libuv's pool, bounded; what does not fit there is dropped, so eviction never waits.
 *
 * plain + compressing + cold bytes are at most budget - pinned, at all times.
 */
export class SharedBlockCache implements BlockCache {
  readonly budget: number;
  readonly #coldShare: number;
  readonly #compressingLimit: number;
  readonly #loadCodec: () => Promise<BlockCodec | undefined>;
  #codec: BlockCodec | undefined;
  #codecAsked = false;

  /** By key: a space's first key plus the block's number. One number, because a string per lookup would be garbage. */
  readonly #warm: LRUCache<number, Uint8Array>;
  readonly #cold: LRUCache<number, Uint8Array>;
  readonly #compressing = new Map<number, Compressing>();
  #compressingBytes = 0;
  /** How often a block was asked for that was not there as plain bytes: what it would be worth as a cold one. */
  readonly #wanted: FrequencySketch;
  /** Blocks that did not shrink when they were tried: not tried again until that is forgotten. */
  readonly #stubborn: FrequencySketch;
  /** Keys that were missed and not set since, one for each slot. */
  readonly #awaited = new Float64Array(MISSED_SLOTS).fill(-1);
  #pinnedBytes = 0;
  /** Sorted by first key. */
  readonly #spaces: Space[] = [];

  #hits = 0;
  #misses = 0;
  #coldHits = 0;
  #evictions = 0;
  #compressions = 0;
  #coldKept = 0;

  /** @param budget bytes for everything: plain blocks, compressed blocks and pinned memory */
  constructor(budget: number, options: SharedBlockCacheOptions = {}) {
    const { coldShare = COLD_SHARE, loadCodec = loadLz4 } = options;
    if (!Number.isSafeInteger(budget) || budget < 0) throw new LunetteError('INVALID', `cache budget ${budget}`);
    if (!(coldShare >= 0 && coldShare <= 1)) throw new LunetteError('INVALID', `cold share ${coldShare}`);
    this.budget = budget;
    this.#loadCodec = loadCodec;
    this.#coldShare = coldShare;
    this.#wanted = new FrequencySketch(coldShare === 0 ? 0 : budget / WANTED_BLOCK);
    this.#stubborn = new FrequencySketch(coldShare === 0 ? 0 : budget / WANTED_BLOCK);
    this.#compressingLimit = coldShare === 0 ? 0 : Math.min(MAX_COMPRESSING, Math.floor(budget * COMPRESSING_SHARE));
    // Neither evicts by itself, room is made before something comes in: lru-cache counts bytes and knows the order.
    const maxSize = Math.max(1, budget);
    this.#warm = new LRUCache({
      maxSize,
      sizeCalculation: byteLength,
      noDisposeOnSet: true,
      dispose: (bytes, key, reason) => {
        if (reason === 'evict') this.#evicted(key, bytes);
      },
    });
    this.#cold = new LRUCache({
      maxSize,
      sizeCalculation: byteLength,
      dispose: (_bytes, key, reason) => {
        if (reason === 'evict') this.#spaceOf(key)?.policy.expired();
      },
    });
  }

  space(count: number): BlockSpace {
    if (!Number.isSafeInteger(count) || count < 0) throw new LunetteError('INVALID', `a space of ${count} blocks`);
    // The first gap that is large enough: keys stay small numbers, which V8 keeps without an allocation.
    let first = 0;
    let at = 0;
    for (; at < this.#spaces.length; at++) {
      const space = this.#spaces[at] as Space;
      if (space.first - first >= count) break;
      first = space.first + space.count;
    }
    const space = new Space(this, first, count);
    this.#spaces.splice(at, 0, space);
    return space;
  }

  adjustPinned(delta: number): void {
    const pinned = this.#pinnedBytes + delta;
    if (!(pinned >= 0)) throw new LunetteError('INTERNAL', `pinned cache memory would be ${pinned} bytes`);
    this.#pinnedBytes = pinned;
    this.#makeRoom(0);
    // Dirty tables may take the compressor's room as well.
    if (this.#room === 0) {
      this.#compressing.clear();
      this.#compressingBytes = 0;
    }
  }

  get pinnedFull(): boolean {
    return this.#pinnedBytes > this.budget / 4;
  }

  /** Figures of now; a new object each time. */
  get stats(): SharedBlockCacheStats {
    return {
      hits: this.#hits,
      misses: this.#misses,
      coldHits: this.#coldHits,
      evictions: this.#evictions,
      warmBytes: this.#warm.calculatedSize + this.#compressingBytes,
      coldBytes: this.#cold.calculatedSize,
      pinnedBytes: this.#pinnedBytes,
      compressions: this.#compressions,
      coldKept: this.#coldKept,
    };
  }

  /** For Space only. */
  get(key: number): Uint8Array | undefined {
    const bytes = this.#warm.get(key, LOOKUP);
    if (bytes !== undefined) {
      this.#hits++;
      return bytes;
    }
    return this.#getDemoted(key);
  }

  /** For Space only. */
  set(key: number, bytes: Uint8Array): void {
    const slot = key % MISSED_SLOTS;
    if (this.#awaited[slot] === key) this.#awaited[slot] = -1;
    this.delete(key);
    this.#keep(key, bytes);
  }

  /** For Space only. */
  delete(key: number): void {
    this.#warm.delete(key);
    this.#cold.delete(key);
    this.#forgetCompressing(key);
  }

  /** For Space only. */
  release(space: Space): void {
    const at = this.#spaces.indexOf(space);
    if (at < 0) return;
    this.#spaces.splice(at, 1);
    const end = space.first + space.count;
    for (const keys of [this.#warm, this.#cold, this.#compressing]) {
      for (const key of [...keys.keys()]) {
        if (key >= space.first && key < end) this.delete(key);
      }
    }
  }

  #getDemoted(key: number): Uint8Array | undefined {
    let bytes = this.#compressing.get(key)?.bytes;
    if (bytes !== undefined) {
      this.#forgetCompressing(key);
    } else {
      const compressed = this.#cold.get(key, LOOKUP);
      if (compressed === undefined || this.#codec === undefined) {
        this.#missed(key);
        return undefined;
      }
      bytes = this.#codec.decompress(compressed);
      this.#coldHits++;
      this.#spaceOf(key)?.policy.hit();
    }
    this.#hits++;
    this.#wanted.count(key);
    this.#keep(key, bytes);
    return bytes;
  }

  /** Counts a miss once: who does not find a block looks again on the slow path, and so do all who wait for it meanwhile. */
  #missed(key: number): void {
    const slot = key % MISSED_SLOTS;
    if (this.#awaited[slot] === key) return;
    this.#awaited[slot] = key;
    this.#misses++;
    this.#wanted.count(key);
  }

  /** Makes a block plain. Its compressed copy, if there is one, stays: it is what a later eviction need not compress again. */
  #keep(key: number, bytes: Uint8Array): void {
    const size = bytes.byteLength;
    if (size === 0 || size > this.#room) return;
    this.#makeRoom(size);
    this.#warm.set(key, bytes, LOOKUP);
  }

  /** Lets blocks go until `size` more bytes fit. Those that go may be compressed: that happens in room set aside for it. */
  #makeRoom(size: number): void {
    const room = Math.max(0, this.#room - size);
    while (this.#warm.calculatedSize + this.#cold.calculatedSize > room) {
      // Pinned memory takes from both parts alike.
      if (this.#warm.size === 0 || this.#cold.calculatedSize > this.#coldRoom) this.#cold.pop();
      else this.#warm.pop();
    }
  }

  /** Bytes for plain and cold blocks. */
  get #room(): number {
    return Math.max(0, this.budget - this.#pinnedBytes - this.#compressingLimit);
  }

  /** Bytes of that for cold blocks. */
  get #coldRoom(): number {
    return this.#room * this.#coldShare;
  }

  #evicted(key: number, bytes: Uint8Array): void {
    this.#evictions++;
    const size = bytes.byteLength;
    if (this.#cold.has(key) || this.#stubborn.estimate(key) > 0) return;
    if (size < MIN_COLD_BLOCK || this.#compressingBytes + size > this.#compressingLimit) return;
    if (this.#codec === undefined) {
      this.#askForCodec();
      return;
    }
    if (this.#room === 0 || !this.#deservesCold(key, size)) return;
    const space = this.#spaceOf(key);
    if (space === undefined || !space.policy.wants()) return;
    const begun = { bytes };
    this.#compressing.set(key, begun);
    this.#compressingBytes += size;
    this.#compressions++;
    this.#codec.compress(bytes).then(
      (compressed) => this.#compressed(space, key, begun, compressed),
      () => {
        if (this.#compressing.get(key) === begun) this.#forgetCompressing(key);
      },
    );
  }

  /**
   * While the cold part has room, everything does. After that a block must have been asked for more often than the one that
   * would go: blocks that are all alike (a scan, random access) then stay instead of pushing one another out.
   */
  #deservesCold(key: number, size: number): boolean {
    if (this.#cold.calculatedSize + this.#compressingBytes + size * KEEP_BELOW <= this.#coldRoom) return true;
    for (const victim of this.#cold.rkeys()) return this.#wanted.estimate(key) > this.#wanted.estimate(victim);
    return true;
  }

  #compressed(space: Space, key: number, begun: Compressing, compressed: Uint8Array): void {
    const keep = space.policy.tried(begun.bytes.byteLength, compressed.byteLength);
    if (!keep) this.#stubborn.count(key);
    // Asked for, replaced or released while it was compressing: the result is of no use. Nor is it where the same array has come back since:
    // whoever had it meanwhile may have changed it.
    if (this.#compressing.get(key) !== begun) return;
    this.#forgetCompressing(key);
    const size = compressed.byteLength;
    const coldRoom = this.#coldRoom;
    if (!keep || size > coldRoom) return;
    while (this.#cold.calculatedSize + size > coldRoom) this.#cold.pop();
    this.#makeRoom(size);
    // Copied: what the compressor gives may hold on to room for the worst case.
    this.#cold.set(key, Uint8Array.prototype.slice.call(compressed), LOOKUP);
    this.#coldKept++;
  }

  #forgetCompressing(key: number): void {
    const begun = this.#compressing.get(key);
    if (begun === undefined) return;
    this.#compressing.delete(key);
    this.#compressingBytes -= begun.bytes.byteLength;
  }

  #askForCodec(): void {
    if (this.#codecAsked) return;
    this.#codecAsked = true;
    this.#loadCodec().then(
      (codec) => {
        this.#codec = codec;
      },
      () => {}, // No codec, no cold tier.
    );
  }

  #spaceOf(key: number): Space | undefined {
    let low = 0;
    let high = this.#spaces.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const space = this.#spaces[middle] as Space;
      if (key < space.first) high = middle - 1;
      else if (key >= space.first + space.count) low = middle + 1;
      else return space;
    }
    return undefined;
  }
}

/** Reused: lru-cache would make an options object per call. */
const LOOKUP = {};

function byteLength(bytes: Uint8Array): number {
  return bytes.byteLength;
}

/** A range of keys. After release() it holds nothing and takes nothing: late completions of an image that was closed. */
class Space implements BlockSpace {
  readonly #cache: SharedBlockCache;
  readonly first: number;
  readonly count: number;
  readonly policy = new ColdPolicy();
  #released = false;

  constructor(cache: SharedBlockCache, first: number, count: number) {
    this.#cache = cache;
    this.first = first;
    this.count = count;
  }

  get(block: number): Uint8Array | undefined {
    return this.#holds(block) ? this.#cache.get(this.first + block) : undefined;
  }

  set(block: number, bytes: Uint8Array): void {
    if (this.#holds(block)) this.#cache.set(this.first + block, bytes);
  }

  delete(block: number): void {
    if (this.#holds(block)) this.#cache.delete(this.first + block);
  }

  release(): void {
    this.#released = true;
    this.#cache.release(this);
  }

  #holds(block: number): boolean {
    if (!(block >= 0 && block < this.count)) {
      throw new LunetteError('INTERNAL', `cache block ${block} of a space of ${this.count}`);
    }
    return !this.#released;
  }
}
