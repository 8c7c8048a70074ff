import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';
import { COPIED, getU32, hostOffset, OFFSET_HIGH, OFFSET_LOW, setEntry } from './l2.ts';

const SECTOR = 512;
const ENTRY = 8;

/** A table of big-endian 64-bit entries that is held in memory whole, and written by sectors. */
export interface TableWrite {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/**
 * An L1 table or the refcount table: entries that point to tables of one cluster. Kept as the bytes in the file; changes are
 * collected by sectors of 512 bytes, which are what a disk writes at once.
 */
export class PointerTable {
  /** Where it is in the file. */
  offset: number;
  #bytes: Uint8Array;
  readonly #name: string;
  readonly #clusterSize: number;
  #dirty = new Set<number>();

  constructor(options: { name: string; offset: number; bytes: Uint8Array; clusterSize: number }) {
    this.#name = options.name;
    this.offset = options.offset;
    this.#bytes = options.bytes;
    this.#clusterSize = options.clusterSize;
  }

  /** Reads a table of `entries` entries; what lies behind the end of the file is zeros. */
  static async load(
    storage: Storage,
    options: { name: string; offset: number; entries: number; clusterSize: number },
  ): Promise<PointerTable> {
    // Pages that nothing is read into cost nothing: the file's real size bounds the memory that is touched.
    const bytes = new Uint8Array(options.entries * ENTRY);
    const inFile = Math.max(0, Math.min(bytes.length, storage.size - options.offset));
    if (inFile > 0) await storage.readv(options.offset, IoVec.of(bytes, 0, inFile));
    return new PointerTable({ ...options, bytes });
  }

  get entries(): number {
    return this.#bytes.length / ENTRY;
  }

  get byteLength(): number {
    return this.#bytes.length;
  }

  /** The whole table as of now. */
  copy(): Uint8Array {
    return this.#bytes.slice();
  }

  /** Host offset of what an entry points to, 0 for none and past the table's end; -1 when it is not aligned to a cluster. */
  target(index: number): number {
    const at = index * ENTRY;
    if (at >= this.#bytes.length) return 0;
    const low = getU32(this.#bytes, at + 4);
    // Cluster sizes are powers of two below 2^32: the lower half alone tells.
    if ((low & OFFSET_LOW & (this.#clusterSize - 1)) !== 0) return -1;
    return hostOffset(getU32(this.#bytes, at), low);
  }

  /** As target(). @throws {ImageError} CORRUPT */
  checkedTarget(index: number): number {
    const target = this.target(index);
    if (target >= 0) return target;
    throw new ImageError('CORRUPT', `${this.#name} entry ${index} points to a place that is no cluster boundary`, {
      field: this.#name,
      offset: this.offset + index * ENTRY,
    });
  }

  /** The first entry from `index` on that has any bit set; `entries` when none has. Most tables are mostly empty. */
  nextUsed(index: number): number {
    const bytes = this.#bytes;
    let at = index * ENTRY;
    if (bytes.byteOffset % 4 === 0) {
      const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      let word = at / 4;
      while (word < words.length && words[word] === 0) word++;
      at = word * 4;
    } else {
      while (at < bytes.length && bytes[at] === 0) at++;
    }
    return Math.floor(at / ENTRY);
  }

  copied(index: number): boolean {
    return (getU32(this.#bytes, index * ENTRY) & COPIED) !== 0;
  }

  /** True when bits are set that the format reserves. */
  hasReservedBits(index: number): boolean {
    const high = getU32(this.#bytes, index * ENTRY);
    const low = getU32(this.#bytes, index * ENTRY + 4);
    return (high & ~(COPIED | OFFSET_HIGH)) !== 0 || (low & ~OFFSET_LOW) !== 0;
  }

  set(index: number, target: number, copied: boolean): void {
    setEntry(this.#bytes, index * ENTRY, target, copied ? COPIED : 0, 0);
    this.#dirty.add(Math.floor((index * ENTRY) / SECTOR));
  }

  get dirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** The changed sectors as of now; they are clean then, until returned(). */
  takeDirty(): TableWrite[] {
    const sectors = [...this.#dirty].sort((a, b) => a - b);
    this.#dirty = new Set();
    const writes: TableWrite[] = [];
    for (let i = 0; i < sectors.length; ) {
      const first = sectors[i] as number;
      let end = first + 1;
      for (i++; i < sectors.length && sectors[i] === end; i++) end++;
      writes.push({ offset: this.offset + first * SECTOR, bytes: this.#bytes.slice(first * SECTOR, end * SECTOR) });
    }
    return writes;
  }

  /** Writes that did not get into the file. Only for a table that has not moved since. */
  returned(writes: readonly TableWrite[]): void {
    for (const { offset, bytes } of writes) {
      const first = Math.floor((offset - this.offset) / SECTOR);
      for (let i = 0; i * SECTOR < bytes.length; i++) this.#dirty.add(first + i);
    }
  }

  /**
   * Takes the entries from `first` on and before `end` anew from the file, where another program may have changed or moved the table. Nothing
   * is dirty.
   */
  async reload(
    storage: Storage,
    { offset, entries }: { readonly offset: number; readonly entries: number },
    first: number,
    end: number,
  ): Promise<void> {
    const stop = Math.min(end, entries);
    const bytes = new Uint8Array(Math.max(0, stop - first) * ENTRY);
    const from = offset + first * ENTRY;
    const inFile = Math.max(0, Math.min(bytes.length, storage.size - from));
    if (inFile > 0) await storage.readv(from, IoVec.of(bytes, 0, inFile));
    if (entries * ENTRY !== this.#bytes.length) {
      const longer = new Uint8Array(entries * ENTRY);
      longer.set(this.#bytes.subarray(0, longer.length));
      this.#bytes = longer;
    }
    this.offset = offset;
    if (bytes.length > 0) this.#bytes.set(bytes, first * ENTRY);
  }

  /** Becomes another table: what a reader maps from now on. All of it is in the file already. */
  replace(offset: number, bytes: Uint8Array): void {
    this.#bytes = bytes;
    this.offset = offset;
    this.#dirty = new Set();
  }

  /** Continues with a larger copy of itself in another place: all of it is to be written there by whoever moves it. */
  move(offset: number, entries: number): void {
    const bytes = new Uint8Array(entries * ENTRY);
    bytes.set(this.#bytes);
    this.#bytes = bytes;
    this.offset = offset;
    this.#dirty = new Set();
  }
}

export async function writeTable(storage: Storage, writes: readonly TableWrite[]): Promise<void> {
  for (const { offset, bytes } of writes) {
    const list = IoVec.of(bytes);
    if (!storage.tryWritev(offset, list)) await storage.writev(offset, list);
  }
}
