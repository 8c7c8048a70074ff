import type { BlockCache } from '../cache/cache.ts';
import { ImageError, StorageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp } from '../core/units.ts';
import { getU32LE } from '../core/words.ts';
import { ABSENT, COMPRESSED, DATA, type ExtentBuffer, OPAQUE, WRITABLE, ZERO } from '../image/extent.ts';
import type { Region, Reservation } from '../image/layer.ts';
import type { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import type { CompressedGrains } from './compressed.ts';
import type { ExtentFacts, VmdkExtent } from './extent.ts';
import type { GrainTables } from './grain-tables.ts';
import { SECTOR } from './header.ts';

/** Entry of a grain that reads as zeros whatever the parent holds; only in extents whose header allows it. */
export const ENTRY_ZEROED = 1;
/** Sector numbers are 32 bits wide. */
const MAX_SECTOR = 2 ** 32;
/** Grains in one reservation: the mover comes again for more. */
const MAX_RESERVED = 1024;
/** Freed grains that are used again in this session; more stay holes in the file. */
const MAX_FREE = 2 ** 20;
const ZERO_CHUNK = 1024 * 1024;

/** What differs between hosted and ESX extents in the header. */
export interface ExtentMarks {
  /** Sets or clears "not closed properly". */
  setUnclean(unclean: boolean): Promise<void>;
  /** Lets zeroed-grain entries appear, durable; absent where the format has none. */
  allowZeroed?: () => Promise<void>;
  /** Where the next grain goes, for formats that write that down. */
  setNext?: (offset: number) => Promise<void>;
}

export interface SparseParts {
  readonly storage: Storage;
  /** Bytes of the disk. */
  readonly length: number;
  /** Bytes. */
  readonly grain: number;
  readonly tables: GrainTables;
  readonly marks: ExtentMarks;
  /** The least sector that a grain may have: before it are header and tables. */
  readonly firstSector: number;
  /** Byte offset behind all that is in use, when that may be past the end of the file. */
  readonly end: number;
  readonly writable: boolean;
  /** Entries of 1 are zeroed grains. */
  readonly zeroed: boolean;
  readonly hasParent: boolean;
  readonly leases: LeaseBook;
  readonly cache: BlockCache;
  readonly facts: ExtentFacts;
  /** Reads compressed grains; undefined when they are plain. */
  readonly compressed?: CompressedGrains | undefined;
}

/** A sparse extent with a grain directory: hosted ("KDMV", plain or compressed) or ESX ("COWD"). */
export class SparseExtent implements VmdkExtent {
  readonly length: number;
  readonly grain: number;
  readonly storage: Storage;
  readonly writable: boolean;
  readonly facts: ExtentFacts;
  readonly #parts: SparseParts;
  readonly #tables: GrainTables;
  #zeroed: boolean;
  /** Byte offset where the next grain goes. */
  #next: number;
  /** Byte offsets of grains that nothing refers to, in memory or in the file. */
  #free: number[] = [];
  /**
   * Grain number to byte offset: nothing in memory refers to them, but the file does. A grain that is written again before a flush
   * gets its old place back, so that the two copies of its entry never hold different places, whenever the power goes.
   */
  #retired = new Map<number, number>();
  #reclaiming: Promise<void> = Promise.resolve();
  #flushing: Promise<void> = Promise.resolve();
  #noted: number;
  /** The file is being made longer: who writes behind that meanwhile would be cut off. */
  #growing: Promise<void> | undefined;

  constructor(parts: SparseParts) {
    this.#parts = parts;
    this.#tables = parts.tables;
    this.length = parts.length;
    this.grain = parts.grain;
    this.storage = parts.storage;
    this.writable = parts.writable;
    this.facts = parts.facts;
    this.#zeroed = parts.zeroed;
    this.#next = alignUp(Math.max(parts.storage.size, parts.end), parts.grain);
    this.#noted = parts.end;
  }

  tryMap(offset: number, length: number, out: ExtentBuffer): void {
    const { grain, storage } = this;
    const { entries } = this.#tables;
    const flags = this.writable ? WRITABLE : 0;
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / grain);
      const table = Math.floor(index / entries);
      const bytes = this.#tables.tryTable(table);
      if (bytes === undefined) return;
      const entry = getU32LE(bytes, 4 * (index - table * entries));
      const start = index * grain;
      const take = Math.min(start + grain, end) - at;
      let fits: boolean;
      if (entry === 0) fits = out.append(ABSENT, take);
      else if (entry === ENTRY_ZEROED && this.#zeroed) fits = out.append(ZERO, take);
      else if (!this.#isPlace(start, entry)) return;
      else if (this.#parts.compressed !== undefined)
        fits = out.append(OPAQUE, take, storage, entry * SECTOR, COMPRESSED);
      else fits = out.append(DATA, take, storage, entry * SECTOR + (at - start), flags);
      if (!fits) return;
      at += take;
    }
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<void> {
    const before = out.end;
    for (;;) {
      this.tryMap(offset, length, out);
      if (out.end > before) return;
      const index = Math.floor(offset / this.grain);
      const entry = await this.#tables.get(index);
      if (entry !== 0 && !(entry === ENTRY_ZEROED && this.#zeroed) && !this.#isPlace(index * this.grain, entry)) {
        throw new ImageError('CORRUPT', `grain ${index} is at sector ${entry}, which is not in the data of the file`, {
          path: this.storage.path,
          field: 'grain table',
          help: 'A check with repair looks for the right one in the other copy of the table',
        });
      }
    }
  }

  async renew(offset: number, length: number): Promise<void> {
    await this.storage.lock('shared'); // the file may be longer by now
    await this.#tables.renew(Math.floor(offset / this.grain), Math.floor((offset + length - 1) / this.grain));
  }

  /** Whether the file holds the disk's bytes of a grain at that sector, or will. */
  #isPlace(start: number, sector: number): boolean {
    if (sector < this.#parts.firstSector) return false;
    const size = this.#parts.compressed === undefined ? Math.min(this.grain, this.length - start) : SECTOR;
    const end = sector * SECTOR + size;
    return end <= this.storage.size || (this.writable && end <= this.#next);
  }

  tryReadOpaque(offset: number, iov: IoVec): boolean {
    const index = Math.floor(offset / this.grain);
    return this.#parts.compressed?.tryRead(index, offset - index * this.grain, iov) ?? false;
  }

  async readOpaque(offset: number, iov: IoVec): Promise<void> {
    const index = Math.floor(offset / this.grain);
    const entry = await this.#tables.get(index);
    const length = Math.min(this.grain, this.length - index * this.grain);
    await this.#parts.compressed?.read(index, entry, length, offset - index * this.grain, iov);
  }

  async beginWrite(): Promise<void> {
    if (this.writable) await this.#parts.marks.setUnclean(true);
  }

  async reserve(offset: number, length: number): Promise<Reservation> {
    if (!this.writable) throw new ImageError('READ_ONLY', 'this extent is read-only', { path: this.storage.path });
    if (this.#parts.cache.pinnedFull) await this.flush();
    while (this.#growing !== undefined) await this.#growing.catch(() => undefined);
    const { grain, storage } = this;
    const first = Math.floor(offset / grain);
    const last = Math.min(Math.floor((offset + length - 1) / grain), first + MAX_RESERVED - 1);
    const places: number[] = [];
    /** Those that got their old places back. */
    const returned = new Set<number>();
    const regions: Region[] = [];
    for (let index = first; index <= last; index++) {
      const old = this.#retired.get(index);
      this.#retired.delete(index);
      const place = old ?? this.#free.pop() ?? this.#append(grain);
      if (place === undefined) break;
      places.push(place);
      if (old !== undefined) returned.add(index);
      regions.push({
        storage,
        storageOffset: place,
        // The end of the last grain is not part of the disk.
        length: Math.min(grain, this.length - index * grain),
        guestOffset: index * grain,
        fill: 'current',
        fresh: storage.growsZeroed && place >= storage.size,
      });
    }
    if (places.length === 0) throw this.#full();
    return {
      end: Math.min((first + places.length) * grain, this.length),
      regions,
      commit: async () => {
        for (const [i, place] of places.entries()) await this.#tables.set(first + i, place / SECTOR);
      },
      abort: async () => {
        for (const [i, place] of places.entries()) {
          if (returned.has(first + i)) this.#retired.set(first + i, place);
          else this.#release([place]);
        }
      },
    };
  }

  /** Space at the end of the file; undefined when sector numbers end there, or it is a device, which has no more. */
  #append(length: number): number | undefined {
    const place = this.#next;
    const next = alignUp(place + length, this.grain);
    if (next / SECTOR > MAX_SECTOR || !this.storage.growsZeroed) return undefined;
    this.#next = next;
    return place;
  }

  #full(): StorageError {
    const why = this.storage.growsZeroed
      ? 'a sparse extent’s file ends at 2 TiB: its sectors have numbers of 32 bits'
      : 'new grains go to the end of the file, and a device has no room behind its end';
    return new StorageError('NO_SPACE', why, { path: this.storage.path });
  }

  #release(places: readonly number[]): void {
    for (const place of places) if (this.#free.length < MAX_FREE) this.#free.push(place);
  }

  async zero(offset: number, length: number, unmap: boolean): Promise<boolean> {
    if (!this.writable) throw new ImageError('READ_ONLY', 'this extent is read-only', { path: this.storage.path });
    const { grain } = this;
    const { hasParent, marks } = this.#parts;
    if (hasParent && !this.#zeroed && marks.allowZeroed !== undefined) {
      await marks.allowZeroed();
      this.#zeroed = true;
    }
    let complete = true;
    for (let at = offset; at < offset + length; at += grain) {
      const index = at / grain;
      const entry = await this.#tables.get(index);
      if (entry === ENTRY_ZEROED && this.#zeroed) continue;
      if (entry !== 0 && (!unmap || (hasParent && !this.#zeroed))) {
        await this.#writeZeros(entry * SECTOR, Math.min(grain, offset + length - at));
      } else if (hasParent && !this.#zeroed) complete = false;
      else if (entry !== 0 || hasParent) {
        if (this.#parts.cache.pinnedFull) await this.flush();
        await this.#tables.set(index, hasParent ? ENTRY_ZEROED : 0);
        if (entry !== 0) this.#retired.set(index, entry * SECTOR);
      }
    }
    return complete;
  }

  async #writeZeros(place: number, length: number): Promise<void> {
    if (await this.storage.writeZeroes(place, length, false)) return;
    const zeros = new Uint8Array(Math.min(length, ZERO_CHUNK));
    for (let at = 0; at < length; at += zeros.length) {
      await this.storage.writev(place + at, IoVec.of(zeros, 0, Math.min(zeros.length, length - at)));
    }
  }

  /**
   * Data, durable, then both copies of the tables. New tables count as data: they are durable before the directory names them.
   */
  flush(): Promise<void> {
    const flushing = this.#flushing.catch(() => undefined).then(() => this.#flushOnce());
    this.#flushing = flushing;
    return flushing;
  }

  async #flushOnce(): Promise<void> {
    if (!this.writable) return;
    const copies = this.#tables.copies();
    const retired = this.#retired;
    this.#retired = new Map();
    try {
      await this.#tables.writeNew(copies, (length) => {
        const place = this.#append(length);
        if (place === undefined) throw this.#full();
        return place;
      });
      // Grains whose end was zeros have not been written up to it.
      if (copies.length > 0 && this.storage.size < this.#next && this.storage.growsZeroed) await this.#grow();
      if (this.#parts.marks.setNext !== undefined && this.#noted !== this.#next) {
        const next = this.#next;
        await this.#parts.marks.setNext(next);
        this.#noted = next;
      }
      await this.storage.sync();
      if (copies.length > 0) {
        await this.#tables.write(copies);
        await this.storage.sync();
        this.#tables.written(copies);
      }
    } catch (error) {
      for (const [index, place] of retired) this.#retired.set(index, place);
      throw error;
    }
    if (retired.size > 0) this.#reclaim([...retired.values()]);
  }

  /** Makes the file as long as what is reserved by now. Whoever reserves meanwhile waits: all writes stay inside that length. */
  async #grow(): Promise<void> {
    this.#growing = this.storage.resize(this.#next);
    try {
      await this.#growing;
    } finally {
      this.#growing = undefined;
    }
  }

  /** Gives grains to the next allocation once nobody reads there, and their space to the host meanwhile. */
  #reclaim(places: readonly number[]): void {
    this.#reclaiming = Promise.all([this.#reclaiming, this.#parts.leases.quiesced()]).then(async () => {
      for (const place of places) await this.storage.discard(place, this.grain).catch(() => false);
      this.#release(places);
    });
  }

  async finish(): Promise<void> {
    await this.#reclaiming;
    if (this.writable) await this.#parts.marks.setUnclean(false);
  }

  release(): void {
    this.#tables.release();
    this.#parts.compressed?.release();
  }
}
