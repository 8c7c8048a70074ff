import type { BlockCache, BlockSpace } from './cache.ts';

/** Slots of the table in front of the cache: a power of two. */
const RECENT = 64;

/** A slice that differs from the file. */
interface DirtySlice {
  readonly bytes: Uint8Array;
  /** Which change was the last: a write-back that began before it does not make the slice clean. */
  change: number;
}

/** A copy of a dirty slice as it was when a write-back took it. */
export interface SliceCopy {
  readonly slice: number;
  readonly bytes: Uint8Array;
  readonly change: number;
}

/**
 * A mapping table of an image (block map, grain tables) in slices, as the bytes in the file. Clean slices live in the block
 * cache and may go at any time; changed ones are pinned here until the file holds them.
 *
 * Knows nothing of files: a function given by the format loads a slice, and whoever takes copies writes them.
 */
export class TableSlices {
  readonly #cache: BlockCache;
  readonly #count: number;
  #space: BlockSpace;
  readonly #load: (slice: number) => Promise<Uint8Array>;
  readonly #dirty = new Map<number, DirtySlice>();
  readonly #loading = new Map<number, Promise<Uint8Array>>();
  readonly #recentNumbers = new Float64Array(RECENT).fill(-1);
  readonly #recent: (Uint8Array | undefined)[] = new Array<Uint8Array | undefined>(RECENT).fill(undefined);
  #changes = 0;
  /** Counts forget(). */
  #forgotten = 0;
  #pinnedBytes = 0;

  /** @param load gives a slice's bytes as they are in the file; the array is given up by it */
  constructor(cache: BlockCache, count: number, load: (slice: number) => Promise<Uint8Array>) {
    this.#cache = cache;
    this.#count = count;
    this.#space = cache.space(count);
    this.#load = load;
  }

  /** True while something differs from the file. */
  get dirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** A slice's bytes when they are in memory; not to be changed. */
  tryGet(slice: number): Uint8Array | undefined {
    const slot = slice & (RECENT - 1);
    if (this.#recentNumbers[slot] === slice) return this.#recent[slot];
    const bytes = this.#dirty.get(slice)?.bytes ?? this.#space.get(slice);
    if (bytes !== undefined) this.#remember(slice, bytes);
    return bytes;
  }

  /**
   * A slice's bytes, read when needed; not to be changed. In the tick in which this resolves tryGet() finds it too, also when the
   * cache did not keep it.
   */
  async get(slice: number): Promise<Uint8Array> {
    let bytes = this.tryGet(slice);
    if (bytes !== undefined) return bytes;
    const forgotten = this.#forgotten;
    let loading = this.#loading.get(slice);
    if (loading === undefined) {
      loading = this.#load(slice);
      this.#loading.set(slice, loading);
    }
    let loaded: Uint8Array;
    try {
      loaded = await loading;
    } finally {
      if (this.#loading.get(slice) === loading) this.#loading.delete(slice);
    }
    // Somebody may have changed it since, in memory.
    bytes = this.tryGet(slice);
    if (bytes !== undefined) return bytes;
    // What was forgotten while it was read is not kept: it is as it was before.
    if (this.#forgotten !== forgotten) return this.get(slice);
    this.keep(slice, loaded);
    return loaded;
  }

  /** Puts a slice that was read into the cache, unless one is there. */
  keep(slice: number, bytes: Uint8Array): void {
    if (this.#dirty.has(slice)) return;
    this.#space.set(slice, bytes);
    this.#remember(slice, bytes);
  }

  /**
   * A slice's bytes to be changed, in the tick in which this resolves and no later: call again for the next change. The slice
   * counts as changed from now on.
   */
  async change(slice: number): Promise<Uint8Array> {
    return this.tryChange(slice) ?? this.#changed(slice, await this.get(slice));
  }

  /** As change(), when the slice is in memory. */
  tryChange(slice: number): Uint8Array | undefined {
    const bytes = this.tryGet(slice);
    return bytes === undefined ? undefined : this.#changed(slice, bytes);
  }

  #changed(slice: number, bytes: Uint8Array): Uint8Array {
    const dirty = this.#dirty.get(slice);
    if (dirty !== undefined) {
      dirty.change = ++this.#changes;
      return dirty.bytes;
    }
    // Arrays in the cache are not ours to change.
    const own = bytes.slice();
    this.#space.delete(slice);
    this.#dirty.set(slice, { bytes: own, change: ++this.#changes });
    this.#pin(own.length);
    this.#remember(slice, own);
    return own;
  }

  /** Copies of all changed slices, in the order of their numbers. */
  copies(): SliceCopy[] {
    const list: SliceCopy[] = [];
    for (const [slice, { bytes, change }] of this.#dirty) list.push({ slice, bytes: bytes.slice(), change });
    return list.sort((a, b) => a.slice - b.slice);
  }

  /** The file holds these copies: slices that did not change since are clean. */
  written(copies: readonly SliceCopy[]): void {
    for (const { slice, change } of copies) {
      const dirty = this.#dirty.get(slice);
      if (dirty === undefined || dirty.change !== change) continue;
      this.#dirty.delete(slice);
      this.#pin(-dirty.bytes.length);
      this.#space.set(slice, dirty.bytes);
    }
  }

  /** Forgets all slices, none of which is changed: another program may have written over them. */
  forget(): void {
    this.#forgotten++;
    this.#loading.clear();
    this.release();
    this.#space = this.#cache.space(this.#count);
  }

  /** Forgets everything, changes too, and gives the memory back. */
  release(): void {
    this.#dirty.clear();
    this.#pin(-this.#pinnedBytes);
    this.#recentNumbers.fill(-1);
    this.#recent.fill(undefined);
    this.#space.release();
  }

  #pin(delta: number): void {
    this.#pinnedBytes += delta;
    this.#cache.adjustPinned(delta);
  }

  #remember(slice: number, bytes: Uint8Array): void {
    const slot = slice & (RECENT - 1);
    this.#recentNumbers[slot] = slice;
    this.#recent[slot] = bytes;
  }
}
