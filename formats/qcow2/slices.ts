import type { BlockCache, BlockSpace } from '../cache/cache.ts';
import { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';

/** What a slice is part of: flush writes refcounts before mappings. */
export type SliceKind = 'refcount' | 'mapping';

/** Slots of the table in front of the cache: 2 to this power. */
const RECENT_BITS = 6;
const RECENT = 2 ** RECENT_BITS;
/** Slices are numbered within spaces of this many, so that the numbers stay small. */
const SPACE_SLICES = 2 ** 22;
/** Beyond this many spaces slices are read each time they are needed: a file of 16 TiB has that many at 4 KiB. */
const MAX_SPACES = 1024;
/** Most bytes in one write of neighbouring slices. */
const MAX_WRITE = 1024 * 1024;
/** Slices that are written without waiting: others on the event loop get their turn this often. */
const TURN_MS = 2;
/** Writes in flight while slices are written back. */
const WRITE_DEPTH = 8;

/** A slice that the cache must not evict: somebody works on it, or the file does not hold its content yet. */
interface PinnedSlice {
  bytes: Uint8Array;
  kind: SliceKind;
  /** Users that want it to stay in memory. */
  holds: number;
  /** Differs from the file, and no write of it has begun since it was changed. */
  dirty: boolean;
  /** What makes it dirty may get into the file at any moment, whatever else does: see Stock. */
  free: boolean;
  /** A write-back has it: `bytes` must not change, a change makes a copy. */
  writing: boolean;
  /** `bytes` is ours alone: not an array that the block cache keeps as well. */
  owned: boolean;
}

/** Slices that a write-back took, as they were then. */
export interface SliceBatch {
  readonly slices: readonly number[];
  readonly bytes: readonly Uint8Array[];
}

/** Spreads slices over slots: those of neighbouring tables differ in few bits. */
function slotOf(slice: number): number {
  return Math.imul(slice, 0x9e3779b1) >>> (32 - RECENT_BITS);
}

/**
 * Tables of one image file (L2 tables, refcount blocks) in slices of at most 4 KiB, as the bytes in the file. A slice is named by its
 * number: host offset / slice size.
 *
 * Clean slices are in the block cache; held and dirty ones are pinned here. Arrays may be replaced at any await: who changes
 * a slice asks modify() and changes it in the same tick, who reads it over an await holds it and peeks again.
 */
export class SliceCache {
  readonly size: number;
  readonly #storage: Storage;
  readonly #cache: BlockCache;
  readonly #spaces: BlockSpace[] = [];
  readonly #pinned = new Map<number, PinnedSlice>();
  readonly #loading = new Map<number, Promise<Uint8Array>>();
  /** Counts forget(). */
  #forgotten = 0;
  /** The slices used last, by the low bits of their number: found without a hash. */
  readonly #recentNumbers = new Float64Array(RECENT).fill(-1);
  readonly #recent: (Uint8Array | undefined)[] = new Array<Uint8Array | undefined>(RECENT).fill(undefined);

  constructor(storage: Storage, cache: BlockCache, sliceSize: number) {
    this.#storage = storage;
    this.#cache = cache;
    this.size = sliceSize;
  }

  /** The slice's bytes when they are in memory; not to be changed, nor kept over an await. */
  peek(slice: number): Uint8Array | undefined {
    const slot = slotOf(slice);
    if (this.#recentNumbers[slot] === slice) return this.#recent[slot];
    // Two places for each: slices that are used in turn do not drive each other out.
    if (this.#recentNumbers[slot ^ 1] === slice) return this.#recent[slot ^ 1];
    return this.#peekFurther(slice);
  }

  #peekFurther(slice: number): Uint8Array | undefined {
    const bytes = this.#pinned.get(slice)?.bytes ?? this.#space(slice)?.get(slice % SPACE_SLICES);
    if (bytes !== undefined) this.#remember(slice, bytes);
    return bytes;
  }

  /** As peek(), also with what can be read without waiting. */
  tryLoad(slice: number): Uint8Array | undefined {
    const known = this.peek(slice);
    // While somebody reads it, it is theirs to put into the cache.
    if (known !== undefined || this.#loading.has(slice)) return known;
    const bytes = new Uint8Array(this.size);
    if (!this.#tryRead(slice, bytes)) return undefined;
    this.#space(slice)?.set(slice % SPACE_SLICES, bytes);
    this.#remember(slice, bytes);
    return bytes;
  }

  /** Reads neighbouring slices with one read, those that are not in memory. They may be evicted again at any time. */
  async preload(first: number, count: number): Promise<void> {
    const missing: number[] = [];
    for (let slice = first; slice < first + count; slice++) {
      if (this.peek(slice) === undefined && !this.#loading.has(slice)) missing.push(slice);
    }
    if (missing.length === 0) return;
    const all = new Uint8Array(count * this.size);
    const part = (slice: number) => all.slice((slice - first) * this.size, (slice - first + 1) * this.size);
    if (this.#tryRead(first, all)) {
      for (const slice of missing) this.#space(slice)?.set(slice % SPACE_SLICES, part(slice));
      return;
    }
    const whole = this.#read(first, all);
    // Whoever asks for one meanwhile waits for this read: nothing is changed before it is there.
    const parts = missing.map((slice) => {
      const mine = whole.then(() => part(slice));
      mine.catch(() => undefined);
      this.#loading.set(slice, mine);
      return mine;
    });
    const each = (act: (slice: number) => void): void => {
      for (const [i, slice] of missing.entries()) if (this.#loading.get(slice) === parts[i]) act(slice);
    };
    try {
      await whole;
      each((slice) => this.#space(slice)?.set(slice % SPACE_SLICES, part(slice)));
    } finally {
      each((slice) => this.#loading.delete(slice));
    }
  }

  /** Reads a slice into memory, where it may be evicted again at any time. */
  async load(slice: number): Promise<Uint8Array> {
    const known = this.tryLoad(slice) ?? this.#loading.get(slice);
    if (known !== undefined) return known;
    const loading = this.#read(slice, new Uint8Array(this.size));
    this.#loading.set(slice, loading);
    try {
      const bytes = await loading;
      // Meanwhile the cluster may have become a new table: that content stands.
      const pinned = this.#pinned.get(slice);
      if (pinned !== undefined) return pinned.bytes;
      if (this.#loading.get(slice) === loading) {
        this.#space(slice)?.set(slice % SPACE_SLICES, bytes);
        this.#remember(slice, bytes);
      }
      return bytes;
    } finally {
      if (this.#loading.get(slice) === loading) this.#loading.delete(slice);
    }
  }

  /** Keeps a slice in memory until unhold(). @returns false when it has to be loaded first: see hold() */
  tryHold(slice: number, kind: SliceKind): boolean {
    const pinned = this.#pinned.get(slice);
    if (pinned !== undefined) {
      pinned.holds++;
      return true;
    }
    const bytes = this.peek(slice);
    if (bytes === undefined) return false;
    this.#pin(slice, { bytes, kind, holds: 1, dirty: false, free: false, writing: false, owned: false });
    return true;
  }

  async hold(slice: number, kind: SliceKind): Promise<void> {
    while (!this.tryHold(slice, kind)) {
      const before = this.#forgotten;
      const bytes = await this.load(slice);
      if (this.tryHold(slice, kind)) return;
      // Forgotten while it was read: it may have become another table, which is to be read then.
      if (this.#forgotten !== before) continue;
      // A small cache may have let go of it at once: pin what was read.
      this.#pin(slice, { bytes, kind, holds: 1, dirty: false, free: false, writing: false, owned: false });
      return;
    }
  }

  unhold(slice: number): void {
    const pinned = this.#pinned.get(slice);
    if (pinned === undefined) return;
    pinned.holds--;
    this.#settle(slice, pinned);
  }

  /**
   * The bytes of a slice that is held, to be changed in this tick; they will be written by the next write-back.
   *
   * @param free the change needs nothing else to be in the file before it
   */
  modify(slice: number, free = false): Uint8Array {
    const pinned = this.#pinned.get(slice);
    if (pinned === undefined) throw new RangeError(`slice ${slice} is changed without being held`);
    if (pinned.writing) {
      pinned.bytes = pinned.bytes.slice();
      pinned.writing = false; // the array that is being written is the writer's alone now
    } else if (!pinned.owned) {
      this.#space(slice)?.delete(slice % SPACE_SLICES);
      pinned.owned = true;
    }
    pinned.free = free && (pinned.free || !pinned.dirty);
    pinned.dirty = true;
    this.#remember(slice, pinned.bytes);
    return pinned.bytes;
  }

  /** Gives a slice new content without reading it, to be written by the next write-back. */
  create(slice: number, bytes: Uint8Array, kind: SliceKind): void {
    this.#loading.delete(slice);
    this.#space(slice)?.delete(slice % SPACE_SLICES);
    const pinned = this.#pinned.get(slice);
    if (pinned === undefined)
      this.#pin(slice, { bytes, kind, holds: 0, dirty: true, free: false, writing: false, owned: true });
    else Object.assign(pinned, { bytes, kind, dirty: true, free: false, writing: false, owned: true });
    this.#remember(slice, bytes);
  }

  /** Forgets the slices of a cluster that is no table any more, or whose content was written around this cache. */
  forget(firstSlice: number, count: number): void {
    this.#forgotten++;
    for (let slice = firstSlice; slice < firstSlice + count; slice++) {
      this.#loading.delete(slice);
      this.#space(slice)?.delete(slice % SPACE_SLICES);
      const slot = slotOf(slice);
      if (this.#recentNumbers[slot] === slice) this.#recentNumbers[slot] = -1;
      if (this.#recentNumbers[slot ^ 1] === slice) this.#recentNumbers[slot ^ 1] = -1;
      if (this.#pinned.delete(slice)) this.#cache.adjustPinned(-this.size);
    }
  }

  /** Forgets all slices, none of which is dirty: another program may have written over them. */
  forgetAll(): void {
    this.#forgotten++;
    this.release();
  }

  /** Takes all dirty slices of a kind for a write-back: their bytes as of now, whatever changes later. */
  takeDirty(kind: SliceKind): SliceBatch {
    const slices: number[] = [];
    for (const [slice, pinned] of this.#pinned) {
      if (pinned.dirty && pinned.kind === kind) slices.push(slice);
    }
    slices.sort((a, b) => a - b);
    const bytes = slices.map((slice) => {
      const pinned = this.#pinned.get(slice) as PinnedSlice;
      pinned.dirty = false;
      pinned.writing = true;
      return pinned.bytes;
    });
    return { slices, bytes };
  }

  /** As takeDirty('mapping') when none of them has to wait for anything else; else undefined. */
  takeFree(): SliceBatch | undefined {
    for (const pinned of this.#pinned.values()) {
      if (pinned.dirty && pinned.kind === 'mapping' && !pinned.free) return undefined;
    }
    return this.takeDirty('mapping');
  }

  /** Writes a batch, neighbours together. After an error call returnBatch(). */
  async writeBatch(batch: SliceBatch): Promise<void> {
    const { slices, bytes } = batch;
    let next = 0;
    let failed = false;
    let turn = performance.now();
    const worker = async () => {
      while (next < slices.length && !failed) {
        const list = new IoVec();
        const first = slices[next] as number;
        do {
          list.append(bytes[next] as Uint8Array);
          next++;
        } while (
          next < slices.length &&
          slices[next] === (slices[next - 1] as number) + 1 &&
          list.byteLength < MAX_WRITE
        );
        try {
          if (!this.#storage.tryWritev(first * this.size, list)) {
            await this.#storage.writev(first * this.size, list);
          } else if (performance.now() - turn > TURN_MS) {
            await new Promise((resolve) => setImmediate(resolve));
            turn = performance.now();
          }
        } catch (error) {
          failed = true;
          throw error;
        }
      }
    };
    const workers = Array.from({ length: Math.min(WRITE_DEPTH, slices.length) }, worker);
    for (const result of await Promise.allSettled(workers)) {
      if (result.status === 'rejected') throw result.reason;
    }
  }

  /** The batch is in the file. */
  finishBatch(batch: SliceBatch): void {
    batch.slices.forEach((slice, i) => {
      const pinned = this.#pinned.get(slice);
      if (pinned === undefined || pinned.bytes !== batch.bytes[i] || !pinned.writing) return;
      pinned.writing = false;
      this.#settle(slice, pinned);
    });
  }

  /** The batch did not get into the file: its slices are dirty again. */
  returnBatch(batch: SliceBatch): void {
    batch.slices.forEach((slice, i) => {
      const pinned = this.#pinned.get(slice);
      if (pinned === undefined) return; // dropped with its table
      pinned.free = false; // changes of the batch, which may have to wait, are in what it became since, too
      if (pinned.bytes !== batch.bytes[i] || !pinned.writing) return; // dirty by that
      pinned.writing = false;
      pinned.dirty = true;
    });
  }

  /** True while a slice of this kind waits to be written. */
  hasDirty(kind: SliceKind): boolean {
    for (const pinned of this.#pinned.values()) {
      if (pinned.dirty && pinned.kind === kind) return true;
    }
    return false;
  }

  /** Lets go of everything, also of what was never written. */
  release(): void {
    this.#cache.adjustPinned(-this.size * this.#pinned.size);
    this.#pinned.clear();
    this.#loading.clear();
    this.#recentNumbers.fill(-1);
    this.#recent.fill(undefined);
    for (const space of this.#spaces) space?.release();
    this.#spaces.length = 0;
  }

  /** Fills `bytes` from the first of its slices on, if that needs no waiting. Tables outside the file read as zeros. */
  #tryRead(first: number, bytes: Uint8Array): boolean {
    const offset = first * this.size;
    return offset >= this.#storage.size || this.#storage.tryReadv(offset, IoVec.of(bytes));
  }

  async #read(first: number, bytes: Uint8Array): Promise<Uint8Array> {
    const offset = first * this.size;
    if (offset < this.#storage.size) await this.#storage.readv(offset, IoVec.of(bytes));
    return bytes;
  }

  #pin(slice: number, pinned: PinnedSlice): void {
    this.#pinned.set(slice, pinned);
    this.#cache.adjustPinned(this.size);
    this.#remember(slice, pinned.bytes);
  }

  /** Unpins a slice that is nobody's and clean: it becomes the block cache's. */
  #settle(slice: number, pinned: PinnedSlice): void {
    if (pinned.holds > 0 || pinned.dirty || pinned.writing) return;
    this.#pinned.delete(slice);
    this.#cache.adjustPinned(-this.size);
    if (pinned.owned) this.#space(slice)?.set(slice % SPACE_SLICES, pinned.bytes);
  }

  #remember(slice: number, bytes: Uint8Array): void {
    const slot = slotOf(slice);
    if (this.#recentNumbers[slot] !== slice) {
      this.#recentNumbers[slot ^ 1] = this.#recentNumbers[slot] as number;
      this.#recent[slot ^ 1] = this.#recent[slot];
      this.#recentNumbers[slot] = slice;
    }
    this.#recent[slot] = bytes;
  }

  /** The space that a slice is kept in; undefined for those far out, and for what lies outside the file. */
  #space(slice: number): BlockSpace | undefined {
    const index = Math.floor(slice / SPACE_SLICES);
    if (index >= MAX_SPACES) return undefined;
    let space = this.#spaces[index];
    if (space === undefined) {
      if (slice * this.size >= this.#storage.size) return undefined;
      space = this.#cache.space(SPACE_SLICES);
      this.#spaces[index] = space;
    }
    return space;
  }
}
