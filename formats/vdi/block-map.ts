import type { BlockCache } from '../cache/cache.ts';
import { type SliceCopy, TableSlices } from '../cache/table-slices.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp } from '../core/units.ts';
import { getU32LE, setU32LE } from '../core/words.ts';
import type { Storage } from '../storage/storage.ts';
import { ENTRY_FREE, ENTRY_ZERO } from './header.ts';

/** Entries in a slice of the map. */
const SLICE_ENTRIES = 4096;
const SLICE_BITS = 12;
const SLICE_MASK = SLICE_ENTRIES - 1;
const SLICE_BYTES = 4 * SLICE_ENTRIES;
/** Slices that a scan of the whole map reads at once. */
const SCAN_SLICES = 64;

/** The block map of one image: block number to physical index, or FREE, or ZERO. */
export class BlockMap {
  readonly #storage: Storage;
  readonly #offset: number;
  readonly #count: number;
  readonly #slices: TableSlices;

  /** @param place byte offset of the map and its number of entries */
  constructor(storage: Storage, place: { offset: number; count: number }, cache: BlockCache) {
    this.#storage = storage;
    this.#offset = place.offset;
    this.#count = place.count;
    this.#slices = new TableSlices(cache, divideUp(place.count, SLICE_ENTRIES), (slice) => this.#load(slice));
  }

  get count(): number {
    return this.#count;
  }

  get dirty(): boolean {
    return this.#slices.dirty;
  }

  /** The entry of a block when it is in memory; -1 else. */
  tryGet(block: number): number {
    const bytes = this.#slices.tryGet(block >>> SLICE_BITS);
    return bytes === undefined ? -1 : getU32LE(bytes, 4 * (block & SLICE_MASK));
  }

  async get(block: number): Promise<number> {
    return getU32LE(await this.#slices.get(block >>> SLICE_BITS), 4 * (block & SLICE_MASK));
  }

  /** Changes an entry in memory; write() brings it to the file. */
  async set(block: number, entry: number): Promise<void> {
    setU32LE(await this.#slices.change(block >>> SLICE_BITS), 4 * (block & SLICE_MASK), entry);
  }

  /** What differs from the file, as it is now. */
  copies(): SliceCopy[] {
    return this.#slices.copies();
  }

  /** Writes copies to the file. They count as written when written() is told so, after a sync. */
  async write(copies: readonly SliceCopy[]): Promise<void> {
    const list = new IoVec();
    for (let i = 0; i < copies.length; ) {
      const first = (copies[i] as SliceCopy).slice;
      list.clear();
      for (; i < copies.length && (copies[i] as SliceCopy).slice === first + list.count; i++) {
        list.append((copies[i] as SliceCopy).bytes);
      }
      await this.#storage.writev(this.#offset + first * SLICE_BYTES, list);
    }
  }

  written(copies: readonly SliceCopy[]): void {
    this.#slices.written(copies);
  }

  /** Visits all entries that are a place in the file, in the order of blocks. What was changed in memory is seen as it is there. */
  async forEachAllocated(visit: (block: number, index: number) => void): Promise<void> {
    const last = divideUp(this.#count, SLICE_ENTRIES);
    const buffer = new Uint8Array(SCAN_SLICES * SLICE_BYTES);
    for (let first = 0; first < last; first += SCAN_SLICES) {
      const start = first * SLICE_BYTES;
      const length = Math.min(buffer.length, 4 * this.#count - start);
      await this.#storage.readv(this.#offset + start, IoVec.of(buffer, 0, length));
      for (let slice = first; slice < Math.min(last, first + SCAN_SLICES); slice++) {
        const at = (slice - first) * SLICE_BYTES;
        const bytes = this.#slices.tryGet(slice) ?? buffer.subarray(at, Math.min(at + SLICE_BYTES, length));
        for (let i = 0; i < bytes.length; i += 4) {
          const entry = getU32LE(bytes, i);
          if (entry < ENTRY_ZERO) visit(slice * SLICE_ENTRIES + i / 4, entry);
        }
      }
    }
  }

  /** Reads it anew from here on. Nothing is changed in memory. */
  forget(): void {
    this.#slices.forget();
  }

  release(): void {
    this.#slices.release();
  }

  async #load(slice: number): Promise<Uint8Array> {
    const entries = Math.min(SLICE_ENTRIES, this.#count - slice * SLICE_ENTRIES);
    const bytes = new Uint8Array(4 * entries);
    await this.#storage.readv(this.#offset + slice * SLICE_BYTES, IoVec.of(bytes));
    return bytes;
  }
}

/** The bytes of a map without any block, or with block i at index i. */
export function newMapBytes(count: number, fill: 'free' | 'identity'): Uint8Array {
  const bytes = new Uint8Array(4 * count);
  for (let i = 0; i < count; i++) setU32LE(bytes, 4 * i, fill === 'free' ? ENTRY_FREE : i);
  return bytes;
}
