import { ImageError } from '../core/errors.ts';
import {
  ABSENT,
  ALLOCATED,
  COMPRESSED,
  DATA,
  ENCRYPTED,
  type ExtentBuffer,
  OPAQUE,
  WRITABLE,
  ZERO,
} from '../image/extent.ts';
import type { Storage } from '../storage/storage.ts';
import type { Geometry } from './geometry.ts';
import { COMPRESSED_BIT, COPIED, compressedOffset, getU32, OFFSET_HIGH, OFFSET_LOW, ZERO_BIT } from './l2.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { PointerTable } from './pointer-table.ts';
import type { SliceCache } from './slices.ts';

const TWO_32 = 0x100000000;
/** Bits of the upper half that put an offset at 2^53 or more: no file is that large. */
const TOO_HIGH = 0x00e00000;

/** What came of mapping from memory when it did not get to the end. */
const NEEDS_SLICE = -1;
const BROKEN = -2;

/** Slices that one call reads without waiting: each is a call of the kernel, and others want their turn. */
const MAX_LOADS = 8;

export interface MappingOptions {
  readonly geometry: Geometry;
  readonly l1: PointerTable;
  readonly slices: SliceCache;
  /** Where data clusters are: the image file or its external data file. */
  readonly dataStorage: Storage;
  /** Reads and writes data clusters: `dataStorage`, or what decrypts it. */
  readonly payload: Storage;
  /** Data clusters are encrypted by guest sectors: only the layer can read them. */
  readonly opaque: boolean;
  readonly storage: Storage;
  /** Clusters that hold metadata: never reported writable. Null when nothing is written. */
  readonly metadata: MetadataMap | null;
}

/** Guest offsets to extents through L1 and L2. Synchronous and without allocations as long as the slices are in memory. */
export class Mapping {
  /** False once writing has stopped: nothing is reported writable any more. */
  writable: boolean;
  readonly #l1: PointerTable;
  readonly #slices: SliceCache;
  readonly #payload: Storage;
  readonly #opaque: boolean;
  /** Flags of all data extents. */
  readonly #dataFlags: number;
  readonly #storage: Storage;
  readonly #metadata: MetadataMap | null;
  readonly #geometry: Geometry;
  readonly #clusterSize: number;
  readonly #l2Coverage: number;
  readonly #sliceCoverage: number;
  readonly #sliceSize: number;
  /** Reciprocals of powers of two: multiplying by them is exact, and cheaper than dividing. */
  readonly #perCluster: number;
  readonly #perL2: number;
  readonly #perSlice: number;
  readonly #perSliceSize: number;
  /** Entries have 8 bytes and their data is in this file: the common case. */
  readonly #plain: boolean;
  readonly #entrySize: number;
  readonly #external: boolean;
  readonly #compressedOffsetBits: number;
  /** What the last call was missing: the slice, or the guest offset of the broken entry. */
  #missing = 0;

  constructor(options: MappingOptions) {
    const { geometry } = options;
    this.#geometry = geometry;
    this.#l1 = options.l1;
    this.#slices = options.slices;
    this.#payload = options.payload;
    this.#opaque = options.opaque;
    this.#dataFlags = options.opaque || options.payload !== options.dataStorage ? ENCRYPTED : 0;
    this.#storage = options.storage;
    this.#metadata = options.metadata;
    this.writable = options.metadata !== null;
    this.#clusterSize = geometry.clusterSize;
    this.#l2Coverage = geometry.l2Coverage;
    this.#sliceCoverage = geometry.sliceCoverage;
    this.#sliceSize = geometry.sliceSize;
    this.#perCluster = 1 / geometry.clusterSize;
    this.#perL2 = 1 / geometry.l2Coverage;
    this.#perSlice = 1 / geometry.sliceCoverage;
    this.#perSliceSize = 1 / geometry.sliceSize;
    this.#plain = !geometry.extendedL2 && !options.opaque && options.dataStorage === options.storage;
    this.#entrySize = geometry.entrySize;
    this.#external = options.dataStorage !== options.storage;
    this.#compressedOffsetBits = geometry.compressedOffsetBits;
  }

  /** As Layer.tryMap. Ends early before a slice that is not in memory, unless that is the first. */
  tryMap(offset: number, length: number, out: ExtentBuffer): number {
    out.begin(offset);
    if (this.#plain && this.#mapOne(offset, length, out)) return 1;
    if (this.#fill(offset, offset + length, out) >= 0 || out.count > 0) return out.count;
    return -1;
  }

  /** The request that everything is built for: part of one plain data cluster whose slice is in memory. False: take the long way. */
  #mapOne(offset: number, length: number, out: ExtentBuffer): boolean {
    const within = offset - Math.floor(offset * this.#perCluster) * this.#clusterSize;
    if (within + length > this.#clusterSize) return false;
    const l1Index = Math.floor(offset * this.#perL2);
    const table = this.#l1.target(l1Index);
    if (table <= 0) return false;
    const inTable = offset - l1Index * this.#l2Coverage;
    const sliceIndex = Math.floor(inTable * this.#perSlice);
    const bytes = this.#slices.peek(table * this.#perSliceSize + sliceIndex);
    if (bytes === undefined) return false; // perhaps it can be read without waiting: the long way tries
    const entryAt = Math.floor((inTable - sliceIndex * this.#sliceCoverage) * this.#perCluster) * 8;
    const high = getU32(bytes, entryAt);
    const low = getU32(bytes, entryAt + 4);
    // Compressed, zero, too high or misaligned: not here.
    if ((high & (COMPRESSED_BIT | TOO_HIGH)) !== 0 || (low & ZERO_BIT) !== 0) return false;
    if ((low & OFFSET_LOW & (this.#clusterSize - 1)) !== 0) return false;
    const host = (high & OFFSET_HIGH) * TWO_32 + ((low & OFFSET_LOW) >>> 0);
    if (host === 0) return false;
    const writable =
      (high & COPIED) !== 0 &&
      this.writable &&
      this.#l1.copied(l1Index) &&
      this.#metadata?.has(host * this.#perCluster) === false;
    out.append(DATA, length, this.#payload, host + within, (writable ? WRITABLE : 0) | this.#dataFlags, 0);
    return true;
  }

  /** As Layer.map. @throws {ImageError} CORRUPT at a broken entry that nothing precedes */
  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    for (;;) {
      out.begin(offset);
      const result = this.#fill(offset, offset + length, out);
      if (result >= 0 || out.count > 0) return out.count;
      if (result === BROKEN) throw this.#broken(this.#missing);
      const slice = this.#missing;
      // Held, because a small cache may let go of it before we look.
      await this.#slices.hold(slice, 'mapping');
      try {
        out.begin(offset);
        const again = this.#fill(offset, offset + length, out);
        if (again >= 0 || out.count > 0) return out.count;
        if (again === BROKEN) throw this.#broken(this.#missing);
      } finally {
        this.#slices.unhold(slice);
      }
    }
  }

  /** The slice of the L2 table that maps a guest offset; -1 when there is no table. @throws {ImageError} CORRUPT */
  sliceOf(offset: number): number {
    const table = this.#l1.checkedTarget(Math.floor(offset / this.#l2Coverage));
    return table === 0 ? -1 : table / this.#sliceSize + Math.floor((offset % this.#l2Coverage) / this.#sliceCoverage);
  }

  /** Where the entry of a guest offset is in its slice, bytes. */
  entryAt(offset: number): number {
    return Math.floor((offset % this.#sliceCoverage) / this.#clusterSize) * this.#entrySize;
  }

  #fill(from: number, end: number, out: ExtentBuffer): number {
    let loads = 0;
    for (let at = from; at < end; ) {
      const l1Index = Math.floor(at * this.#perL2);
      const table = this.#l1.target(l1Index);
      if (table <= 0) {
        if (table < 0) {
          this.#missing = at;
          return BROKEN;
        }
        const length = Math.min(end, (l1Index + 1) * this.#l2Coverage) - at;
        if (!out.append(ABSENT, length)) return 0;
        at += length;
        continue;
      }
      const inTable = at - l1Index * this.#l2Coverage;
      const sliceIndex = Math.floor(inTable * this.#perSlice);
      const slice = table * this.#perSliceSize + sliceIndex;
      let bytes = this.#slices.peek(slice);
      if (bytes === undefined && loads++ < MAX_LOADS) bytes = this.#slices.tryLoad(slice);
      if (bytes === undefined) {
        this.#missing = slice;
        return NEEDS_SLICE;
      }
      const sliceStart = l1Index * this.#l2Coverage + sliceIndex * this.#sliceCoverage;
      const stop = Math.min(end, sliceStart + this.#sliceCoverage);
      // Through a table that is shared nothing is written in place, whatever its entries say.
      const writable = this.writable && this.#l1.copied(l1Index);
      at = this.#geometry.extendedL2
        ? this.#fillExtended(bytes, sliceStart, at, stop, out, writable)
        : this.#fillSlice(bytes, sliceStart, at, stop, out, writable);
      if (at < 0) return at;
      if (at < stop) return 0; // out is full
    }
    return 0;
  }

  /** Appends the extents of [at, stop) from one slice. @returns how far it got, or BROKEN */
  #fillSlice(
    bytes: Uint8Array,
    sliceStart: number,
    from: number,
    stop: number,
    out: ExtentBuffer,
    tableWritable: boolean,
  ): number {
    const clusterSize = this.#clusterSize;
    let at = from;
    const first = Math.floor((at - sliceStart) * this.#perCluster);
    let entryAt = first * 8;
    let within = at - sliceStart - first * clusterSize; // % on doubles is a call
    while (at < stop) {
      const length = Math.min(clusterSize - within, stop - at);
      const high = getU32(bytes, entryAt);
      const low = getU32(bytes, entryAt + 4);
      let done: boolean;
      // Compressed first: bit 0 of such an entry is part of an offset.
      if ((high & COMPRESSED_BIT) !== 0) {
        const offset = compressedOffset(high, low, this.#compressedOffsetBits);
        if (offset >= Number.MAX_SAFE_INTEGER || this.#external) return this.#stopAt(at);
        done = out.append(OPAQUE, length, this.#storage, offset, COMPRESSED);
      } else {
        const zero = (low & ZERO_BIT) !== 0;
        if ((low & OFFSET_LOW) === 0 && (high & OFFSET_HIGH) === 0 && !(this.#external && (high & COPIED) !== 0)) {
          if (zero && this.#geometry.version < 3) return this.#stopAt(at);
          done = out.append(zero ? ZERO : ABSENT, length);
        } else {
          const offset = (high & OFFSET_HIGH) * TWO_32 + ((low & OFFSET_LOW) >>> 0);
          if ((low & OFFSET_LOW & (clusterSize - 1)) !== 0 || (this.#external && offset !== at - within)) {
            return this.#stopAt(at);
          }
          if (zero) {
            if (this.#geometry.version < 3) return this.#stopAt(at);
            done = out.append(ZERO, length, this.#payload, offset + within, ALLOCATED);
          } else if ((high & TOO_HIGH) !== 0) {
            done = out.append(ZERO, length); // outside of any file: reads as zeros
          } else {
            const writable = (high & COPIED) !== 0 && tableWritable && !this.#isMetadata(offset);
            done = this.#appendData(out, length, offset + within, writable);
          }
        }
      }
      if (!done) return at;
      at += length;
      within = 0;
      entryAt += 8;
    }
    return at;
  }

  /** As #fillSlice for entries with subclusters: allocation bits in the last word, zero bits in the third. */
  #fillExtended(
    bytes: Uint8Array,
    sliceStart: number,
    from: number,
    stop: number,
    out: ExtentBuffer,
    tableWritable: boolean,
  ): number {
    const { clusterSize, subclusterSize } = this.#geometry;
    let at = from;
    while (at < stop) {
      const cluster = Math.floor((at - sliceStart) / clusterSize);
      const clusterStart = sliceStart + cluster * clusterSize;
      const entryAt = cluster * 16;
      const high = getU32(bytes, entryAt);
      const low = getU32(bytes, entryAt + 4);
      const zeros = getU32(bytes, entryAt + 8);
      const allocated = getU32(bytes, entryAt + 12);
      const clusterStop = Math.min(stop, clusterStart + clusterSize);
      if ((high & COMPRESSED_BIT) !== 0) {
        const offset = compressedOffset(high, low, this.#compressedOffsetBits);
        if (offset >= Number.MAX_SAFE_INTEGER || this.#external) return this.#stopAt(at);
        if (!out.append(OPAQUE, clusterStop - at, this.#storage, offset, COMPRESSED)) return at;
        at = clusterStop;
        continue;
      }
      const offset = (high & OFFSET_HIGH) * TWO_32 + ((low & OFFSET_LOW) >>> 0);
      const placed = offset !== 0 || (this.#external && (high & COPIED) !== 0);
      if (offset % clusterSize !== 0 || (zeros & allocated) !== 0 || (!placed && allocated !== 0))
        return this.#stopAt(at);
      if (placed && this.#external && offset !== clusterStart) return this.#stopAt(at);
      const reachable = (high & TOO_HIGH) === 0;
      const writable = (high & COPIED) !== 0 && tableWritable && !this.#isMetadata(offset);
      while (at < clusterStop) {
        const index = Math.floor((at - clusterStart) / subclusterSize);
        // Subclusters of one kind together: as many as there are ones from this bit on.
        const kind =
          ((allocated >>> index) & 1) !== 0 ? allocated : ((zeros >>> index) & 1) !== 0 ? zeros : ~(allocated | zeros);
        const others = ~(kind >>> index);
        const run = others === 0 ? 32 : 31 - Math.clz32(others & -others);
        const length = Math.min(clusterStart + (index + run) * subclusterSize, clusterStop) - at;
        const host = offset + (at - clusterStart);
        let done: boolean;
        if (kind === allocated) {
          done = reachable ? this.#appendData(out, length, host, writable) : out.append(ZERO, length);
        } else if (kind === zeros) {
          done = placed ? out.append(ZERO, length, this.#payload, host, ALLOCATED) : out.append(ZERO, length);
        } else {
          done = out.append(ABSENT, length);
        }
        if (!done) return at;
        at += length;
      }
    }
    return at;
  }

  #appendData(out: ExtentBuffer, length: number, host: number, writable: boolean): boolean {
    const flags = (writable ? WRITABLE : 0) | this.#dataFlags;
    return out.append(this.#opaque ? OPAQUE : DATA, length, this.#payload, host, flags);
  }

  #isMetadata(offset: number): boolean {
    return !this.#external && this.#metadata !== null && this.#metadata.has(offset * this.#perCluster);
  }

  #stopAt(offset: number): number {
    this.#missing = offset;
    return BROKEN;
  }

  #broken(offset: number): ImageError {
    const l1Index = Math.floor(offset / this.#l2Coverage);
    const table = this.#l1.target(l1Index);
    if (table < 0) {
      return new ImageError('CORRUPT', `L1 entry ${l1Index} points to a place that is no cluster boundary`, {
        path: this.#storage.path,
        field: 'L1 table',
        offset: this.#l1.offset + l1Index * 8,
      });
    }
    const entry = Math.floor((offset % this.#l2Coverage) / this.#clusterSize);
    return new ImageError('CORRUPT', `the L2 entry of guest offset ${offset} is not a valid one`, {
      path: this.#storage.path,
      field: 'L2 table',
      offset: table + entry * this.#entrySize,
    });
  }
}
