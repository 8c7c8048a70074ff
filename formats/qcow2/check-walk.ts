import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp, hex } from '../core/units.ts';
import { type CheckResult, report } from '../image/check.ts';
import { type CheckPages, MAX_PASSES } from './check-pages.ts';
import type { CheckSubject, L1Place } from './check-subject.ts';
import { L2References } from './check-tables.ts';
import { INCOMPATIBLE } from './features.ts';
import {
  COMPRESSED_BIT,
  COPIED,
  compressedLength,
  compressedOffset,
  getU32,
  hostOffset,
  OFFSET_LOW,
  runLength,
  ZERO_BIT,
} from './l2.ts';
import { PAGE_CLUSTERS } from './pass-pages.ts';
import { PointerTable } from './pointer-table.ts';
import { scanTables } from './table-scan.ts';

/** Bits of a standard L2 entry that the format reserves. */
const L2_RESERVED_HIGH = 0x3f000000;
const L2_RESERVED_LOW = 0x1fe;
const BITMAP_RESERVED_HIGH = 0xff000000;
const BITMAP_RESERVED_LOW = 0x1fe;
const READ_AHEAD = 1024 * 1024;
/** L1 tables may lie on each other: what is read of them is bounded by the file, times this. */
const MAX_L1_READS = 4;

/** What is found in one L2 table, for those who look deeper. Offsets in bytes. */
export interface L2Visitor {
  compressed(hostOffset: number, length: number, entryOffset: number): void;
  data(hostOffset: number, entryOffset: number): void;
  /** A table has been walked: what it needs may be awaited. */
  after?(): Promise<void> | undefined;
}

/** Counts what refers to the clusters of an image, pass by pass, and says what is wrong on the way. */
export class CheckWalk {
  readonly subject: CheckSubject;
  readonly pages: CheckPages;
  readonly #result: CheckResult;
  readonly #fileSize: number;
  readonly #external: boolean;
  /** L2 tables with their references, once the L1 tables have been read. */
  #tables: L2References | undefined;
  /** Blocks of refcounts that cannot be read. */
  readonly brokenBlocks = new Set<number>();
  /** L2 tables, by cluster, and the active L1 table that lie on something else. */
  readonly overlapped = new Set<number>();
  l1Overlapped = false;
  #activeL1: PointerTable | undefined;
  /** The refcount structures cannot be mended in place. */
  rebuild: boolean;
  /** Only the first pass reports what every pass meets. */
  #first = true;
  readonly #deep: boolean;

  /** @param deep also look for what QEMU does not count */
  constructor(subject: CheckSubject, pages: CheckPages, result: CheckResult, deep = false) {
    this.#deep = deep;
    this.subject = subject;
    this.pages = pages;
    this.#result = result;
    this.#fileSize = subject.storage.size;
    this.#external = (subject.header.incompatibleFeatures.low & INCOMPATIBLE.DATA_FILE) !== 0;
    this.rebuild = subject.refcountTableGone;
  }

  /** Clusters of the file, the last one perhaps in part. */
  get fileClusters(): number {
    return divideUp(this.#fileSize, this.subject.header.geometry.clusterSize);
  }

  get external(): boolean {
    return this.#external;
  }

  get tables(): L2References {
    return this.#tables as L2References;
  }

  /**
   * Counts everything once, for the pages of this pass.
   *
   * @param withRefcounts also what holds the refcounts themselves: not when that is to be made anew
   */
  async pass(withRefcounts: boolean, visitor?: L2Visitor): Promise<void> {
    const { header, snapshotTable, l1Tables } = this.subject;
    const { clusterSize } = header.geometry;
    if (withRefcounts) await this.#loadRefcounts();
    this.#count(0, clusterSize, 1, 'the header');
    for (const { offset, entries, references } of l1Tables) this.#count(offset, entries * 8, references, 'an L1 table');
    this.#count(snapshotTable.offset, snapshotTable.byteLength, 1, 'the snapshot table');
    const { crypto } = header.extensions;
    if (crypto !== undefined) this.#count(crypto.offset, crypto.length, 1, 'the encryption header');
    await this.#bitmaps();
    if (withRefcounts) this.#refcountTable();
    this.#tables ??= await this.#readL1Tables();
    await this.#l2Tables(visitor);
    if (withRefcounts) {
      this.#refcountBlocks();
      this.#l1Copied();
    }
    this.#overlaps();
    this.#first = false;
  }

  /** A block that something else refers to as well cannot be trusted, nor written. */
  #refcountBlocks(): void {
    const { refcountTable, header } = this.subject;
    const { clusterSize } = header.geometry;
    for (let index = 0; index < refcountTable.entries; index++) {
      const offset = refcountTable.target(index);
      if (offset <= 0 || offset >= this.fileClusters * clusterSize) continue;
      const references = this.pages.references(offset / clusterSize);
      if (references === undefined || references <= 1) continue;
      this.rebuild = true;
      this.#result.corruptions++;
      report(this.#result, `refcount block ${index} at ${hex(offset)} is referred to ${references} times`);
    }
    const end = (refcountTable.offset + refcountTable.byteLength) / clusterSize;
    for (let cluster = refcountTable.offset / clusterSize; cluster < end; cluster++) {
      if ((this.pages.references(cluster) ?? 1) > 1) this.rebuild = true;
    }
  }

  #l1Copied(): void {
    const table = this.#activeL1;
    if (table === undefined) return;
    const { clusterSize } = this.subject.header.geometry;
    for (let i = 0; i < table.entries; i++) {
      const target = table.target(i);
      if (target <= 0 || !(target < this.fileClusters * clusterSize)) continue;
      this.#compareCopied(target / clusterSize, table.copied(i), 1, table.offset + i * 8);
    }
  }

  /** Tables that lie on something else: their entries are not written. */
  #overlaps(): void {
    for (const cluster of this.tables.clusters()) {
      const references = this.pages.references(cluster);
      if (references !== undefined && references !== this.tables.all(cluster)) this.overlapped.add(cluster);
    }
    const { offset, entries } = this.subject.l1Tables[0] as L1Place;
    const { clusterSize } = this.subject.header.geometry;
    const end = Math.min(divideUp(offset + entries * 8, clusterSize), this.fileClusters + 1);
    for (let cluster = offset / clusterSize; cluster < end; cluster++) {
      if ((this.pages.references(cluster) ?? 1) > 1) this.l1Overlapped = true;
    }
  }

  #corrupt(count: number, message: string): void {
    if (!this.#first) return;
    this.#result.corruptions += count;
    report(this.#result, message);
  }

  #unreadable(message: string, error: unknown): void {
    if (!(error instanceof LunetteError)) throw error;
    if (!this.#first) return;
    this.#result.checkErrors++;
    report(this.#result, `${message}: ${error.message}`);
  }

  /** Counts references to all clusters of a range. @returns false when it is outside the file */
  #count(offset: number, length: number, references: number, what: string, entryOffset = -1): boolean {
    if (!(length > 0)) return true;
    const { clusterSize } = this.subject.header.geometry;
    // The last cluster of a file may be there in part.
    if (!(offset + length - this.#fileSize < clusterSize)) {
      const entry = entryOffset < 0 ? '' : ` (entry at ${hex(entryOffset)})`;
      this.#corrupt(references, `${what} at ${hex(offset)}, ${length} bytes, is outside the file${entry}`);
      return false;
    }
    const end = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= end; cluster++) this.pages.add(cluster, references);
    return true;
  }

  /** Refcounts as they are in the file, of clusters that the file has. */
  async #loadRefcounts(): Promise<void> {
    const { refcountTable, header, storage } = this.subject;
    const { clusterSize, refcountsPerBlock, refcountOrder } = header.geometry;
    const blocks: { readonly index: number; readonly offset: number }[] = [];
    for (let index = 0; index < refcountTable.entries && index * refcountsPerBlock <= this.fileClusters; index++) {
      const offset = refcountTable.target(index);
      if (offset < 0) this.brokenBlocks.add(index);
      else if (offset !== 0 && offset < this.#fileSize) blocks.push({ index, offset });
    }
    blocks.sort((a, b) => a.offset - b.offset);
    const indexAt = (i: number): number => (blocks[i] as (typeof blocks)[0]).index;
    await scanTables(
      storage,
      blocks.map(({ offset }) => offset),
      clusterSize,
      {
        visit: (bytes, _offset, i) => {
          const first = indexAt(i) * refcountsPerBlock;
          const count = Math.min(refcountsPerBlock, this.fileClusters + 1 - first);
          this.pages.setRefcounts(first, count, bytes, refcountOrder);
          return undefined;
        },
        unreadable: (error, offset, i) => {
          this.#unreadable(`the refcount block at ${hex(offset)} cannot be read`, error);
          this.brokenBlocks.add(indexAt(i));
        },
      },
    );
  }

  /** After all else: a block that something else refers to as well is not one that can be trusted. */
  #refcountTable(): void {
    const { refcountTable, header } = this.subject;
    const { clusterSize } = header.geometry;
    this.#count(refcountTable.offset, refcountTable.byteLength, 1, 'the refcount table');
    for (let index = 0; index < refcountTable.entries; index++) {
      const offset = refcountTable.target(index);
      if (offset < 0) {
        this.rebuild = true;
        this.#corrupt(1, `refcount block ${index} is at no cluster boundary`);
      } else if (refcountTable.hasReservedBits(index) || refcountTable.copied(index)) {
        this.rebuild = true;
        this.#corrupt(1, `refcount table entry ${index} has reserved bits set`);
      } else if (offset !== 0) {
        if (offset >= this.fileClusters * clusterSize) {
          this.rebuild = true;
          this.#corrupt(1, `refcount block ${index} at ${hex(offset)} is outside the file`);
          continue;
        }
        this.pages.add(offset / clusterSize, 1);
      }
    }
  }

  async #bitmaps(): Promise<void> {
    const { header, storage, bitmaps } = this.subject;
    const reference = header.extensions.bitmaps;
    if (reference === undefined || bitmaps.length === 0) return;
    this.#count(reference.directoryOffset, reference.directorySize, 1, 'the bitmap directory');
    const piece = new Uint8Array(64 * 1024);
    for (const { tableOffset, tableSize, name } of bitmaps) {
      const length = tableSize * 8;
      if (!this.#count(tableOffset, length, 1, `the table of bitmap ${name}`)) continue;
      for (let at = 0; at < length; at += piece.length) {
        const size = Math.min(piece.length, length - at, this.#fileSize - tableOffset - at);
        if (size < 8) break;
        try {
          await storage.readv(tableOffset + at, IoVec.of(piece, 0, size));
        } catch (error) {
          this.#unreadable(`the table of bitmap ${name} cannot be read`, error);
          break;
        }
        for (let i = 0; i + 8 <= size; i += 8) this.#bitmapEntry(getU32(piece, i), getU32(piece, i + 4), name);
      }
    }
  }

  #bitmapEntry(high: number, low: number, name: string): void {
    const { clusterSize } = this.subject.header.geometry;
    const offset = hostOffset(high, low);
    const marked = (low & ZERO_BIT) !== 0;
    if ((high & BITMAP_RESERVED_HIGH) !== 0 || (low & BITMAP_RESERVED_LOW) !== 0 || (marked && offset !== 0)) {
      this.#corrupt(1, `bitmap ${name} has a table entry with reserved bits set`);
    } else if (offset % clusterSize !== 0) {
      this.#corrupt(1, `bitmap ${name} has a cluster at ${hex(offset)}, which is no cluster boundary`);
    } else if (offset !== 0) {
      this.#count(offset, clusterSize, 1, `a cluster of bitmap ${name}`);
    }
  }

  /** Reads every L1 table, once, and collects the L2 tables that they refer to. */
  async #readL1Tables(): Promise<L2References> {
    const tables = new L2References();
    const { storage, l1Tables, header } = this.subject;
    const { clusterSize } = header.geometry;
    let allowance = Math.max(this.#fileSize * MAX_L1_READS, READ_AHEAD);
    for (const place of l1Tables) {
      const { offset, references, active } = place;
      const entries = Math.max(0, Math.min(place.entries, Math.ceil((this.#fileSize - offset) / 8)));
      allowance -= entries * 8;
      if (allowance < 0) {
        this.#result.checkErrors++;
        report(this.#result, 'L1 tables lie on each other: not all of them are checked');
        break;
      }
      let table: PointerTable;
      try {
        table = await PointerTable.load(storage, { name: 'L1 table', offset, entries, clusterSize });
      } catch (error) {
        this.#unreadable(`the L1 table at ${hex(offset)} cannot be read`, error);
        continue;
      }
      if (active) this.#activeL1 = table;
      for (let i = 0; i < entries; i++) {
        const target = table.target(i);
        if (target === 0) {
          // Nobody writes that: its table may have been lost, and is among what nothing refers to.
          if (table.copied(i) || table.hasReservedBits(i))
            this.#corrupt(references, `L1 entry ${i} at ${hex(offset)} has flags and no L2 table`);
          continue;
        }
        if (table.hasReservedBits(i))
          this.#corrupt(references, `L1 entry ${i} at ${hex(offset)} has reserved bits set`);
        if (target < 0) this.#corrupt(references, `L1 entry ${i} at ${hex(offset)} points to no cluster boundary`);
        else if (!(target + clusterSize - this.#fileSize < clusterSize)) {
          this.#corrupt(
            references,
            `L1 entry ${i} at ${hex(offset)}: the L2 table at ${hex(target)} is outside the file`,
          );
          if (active && table.copied(i)) this.#corrupt(1, `L1 entry ${i} has the COPIED flag, the refcount is 0`);
        } else tables.add(target / clusterSize, references, active);
      }
    }
    return tables;
  }

  async #l2Tables(visitor: L2Visitor | undefined): Promise<void> {
    const { clusterSize } = this.subject.header.geometry;
    const clusters = this.tables.clusters();
    const offsets = clusters.map((cluster) => cluster * clusterSize);
    await scanTables(this.subject.storage, offsets, clusterSize, {
      visit: (bytes, offset) => {
        const cluster = offset / clusterSize;
        this.pages.add(cluster, this.tables.all(cluster));
        this.#l2Entries(bytes, offset, this.tables.all(cluster), this.tables.active(cluster), visitor);
        return visitor?.after?.();
      },
      unreadable: (error, offset) => {
        this.pages.add(offset / clusterSize, this.tables.all(offset / clusterSize));
        this.#unreadable(`an L2 table at ${hex(offset)} cannot be read`, error);
      },
    });
  }

  #l2Entries(bytes: Uint8Array, at: number, all: number, active: number, visitor: L2Visitor | undefined): void {
    const { clusterSize, entrySize, extendedL2, compressedOffsetBits, version } = this.subject.header.geometry;
    const result = this.#result;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const runs = !extendedL2 && !this.#external && visitor === undefined;
    let next = 0;
    for (let i = 0; i < clusterSize; i += entrySize) {
      const high = view.getUint32(i);
      const low = view.getUint32(i + 4);
      if (runs) {
        const count = this.#plainRun(view, i, high, low);
        if (count > 0) {
          const offset = hostOffset(high, low);
          if (this.#first && active > 0) {
            result.allocatedClusters += active * count;
            if (next !== 0 && offset !== next) result.fragmentedClusters += active;
            next = offset + count * clusterSize;
          }
          const first = offset / clusterSize;
          this.pages.addRun(first, count, all);
          if (active > 0) this.#copiedRun(first, count, (high & COPIED) !== 0, active, at + i);
          i += (count - 1) * entrySize;
          continue;
        }
      }
      const allocation = extendedL2 ? getU32(bytes, i + 12) : 0;
      if (high === 0 && low === 0) {
        if (allocation !== 0) this.#corrupt(all, `the L2 entry at ${hex(at + i)} maps subclusters of no cluster`);
        continue;
      }
      if ((high & COMPRESSED_BIT) !== 0) {
        const offset = compressedOffset(high, low, compressedOffsetBits);
        const length = compressedLength(high, low, compressedOffsetBits);
        if ((high & COPIED) !== 0)
          this.#corrupt(all, `the L2 entry at ${hex(at + i)} has the COPIED flag although it is compressed`);
        if (this.#external) {
          this.#corrupt(all, `the L2 entry at ${hex(at + i)} is compressed, but data is in another file`);
          continue;
        }
        if (allocation !== 0 || (extendedL2 && getU32(bytes, i + 8) !== 0))
          this.#corrupt(all, `the L2 entry at ${hex(at + i)} is compressed and has subclusters`);
        const inside = this.#count(offset, length, all, 'compressed data', at + i);
        if (this.#first && active > 0) {
          result.allocatedClusters += active;
          result.compressedClusters += active;
          result.fragmentedClusters += active;
        }
        if (inside && this.#first) visitor?.compressed(offset, length, at + i);
        continue;
      }
      const offset = hostOffset(high, low);
      const zero = !extendedL2 && (low & ZERO_BIT) !== 0;
      if (this.#deep && zero && version === 2)
        this.#corrupt(all, `the L2 entry at ${hex(at + i)} has the zero flag, which version 2 does not have`);
      if ((high & L2_RESERVED_HIGH) !== 0 || (low & L2_RESERVED_LOW) !== 0)
        this.#corrupt(all, `the L2 entry at ${hex(at + i)} has reserved bits set`);
      if (offset === 0 && !(this.#external && (high & COPIED) !== 0 && !zero)) {
        if (allocation !== 0) this.#corrupt(all, `the L2 entry at ${hex(at + i)} maps subclusters of no cluster`);
        continue;
      }
      if (extendedL2 && (allocation & getU32(bytes, i + 8)) !== 0)
        this.#corrupt(all, `the L2 entry at ${hex(at + i)} has subclusters that are both zero and data`);
      // By bits: a remainder of large numbers takes longer than all the rest.
      if ((low & OFFSET_LOW & (clusterSize - 1)) !== 0)
        this.#corrupt(all, `the L2 entry at ${hex(at + i)} points to no cluster boundary`);
      if (this.#first && active > 0) {
        result.allocatedClusters += active;
        if (next !== 0 && offset !== next) result.fragmentedClusters += active;
        next = offset + clusterSize;
      }
      let inside = true;
      if (!this.#external) {
        inside = this.#count(offset, clusterSize, all, 'data', at + i);
      }
      if (active > 0) this.#copied(offset, (high & COPIED) !== 0, inside, active, at + i);
      if (inside && this.#first) visitor?.data(offset, at + i);
    }
  }

  /**
   * How many entries from byte `at` on are nothing unusual, map clusters that follow each other in the file, and agree in their flags: what
   * most entries are. 0 when the first is none of these.
   */
  #plainRun(view: DataView, at: number, high: number, low: number): number {
    const { clusterSize, version } = this.subject.header.geometry;
    if ((high & (COMPRESSED_BIT | L2_RESERVED_HIGH)) !== 0) return 0;
    if ((low & (clusterSize - 1) & ~ZERO_BIT) !== 0 || ((low & ZERO_BIT) !== 0 && version === 2)) return 0;
    const offset = hostOffset(high, low);
    if (offset === 0) return 0;
    const count = runLength(view, at, high, low, clusterSize);
    return offset + count * clusterSize - this.#fileSize < clusterSize ? count : 0;
  }

  /** Compares COPIED with the refcounts of clusters that follow each other inside the file. */
  #copiedRun(first: number, count: number, copied: boolean, active: number, at: number): void {
    for (let cluster = first; cluster < first + count; ) {
      const page = this.pages.page(cluster);
      const stop = Math.min(first + count, cluster - (cluster % PAGE_CLUSTERS) + PAGE_CLUSTERS);
      if (page !== undefined) {
        for (let i = cluster - page.first; i < stop - page.first; i++) {
          i = copied ? page.notAlone(i, stop - page.first) : page.alone(i, stop - page.first);
          if (i >= stop - page.first) break;
          if (!this.isBroken(page.first + i)) this.#mismatch(copied, active, at + (page.first + i - first) * 8);
        }
      }
      cluster = stop;
    }
  }

  /** COPIED means: the refcount in the file is exactly one. */
  #copied(offset: number, copied: boolean, inside: boolean, active: number, at: number): void {
    if (this.#external || !inside) {
      if (this.#first && copied !== this.#external) this.#mismatch(copied, active, at);
      return;
    }
    const { clusterSize } = this.subject.header.geometry;
    this.#compareCopied(Math.floor(offset / clusterSize), copied, active, at);
  }

  /** Compares a COPIED flag with the refcount of a cluster inside the file. */
  #compareCopied(cluster: number, copied: boolean, active: number, at: number): void {
    const page = this.pages.page(cluster);
    if (page === undefined || this.isBroken(cluster)) return;
    if ((page.refcount(cluster - page.first) === 1) !== copied) this.#mismatch(copied, active, at);
  }

  #mismatch(copied: boolean, active: number, at: number): void {
    this.#result.corruptions += active;
    report(this.#result, `the entry at ${hex(at)} ${copied ? 'has' : 'lacks'} the COPIED flag, against the refcount`);
  }

  isBroken(cluster: number): boolean {
    if (this.brokenBlocks.size === 0) return false;
    return this.brokenBlocks.has(Math.floor(cluster / this.subject.header.geometry.refcountsPerBlock));
  }
}

/** Walks an image as often as it takes to have seen all clusters. */
export async function forEachPass(
  walk: CheckWalk,
  withRefcounts: boolean,
  act: () => Promise<void> | void,
  visitor?: L2Visitor,
): Promise<void> {
  for (let pass = 0; ; pass++) {
    if (pass === MAX_PASSES) {
      throw new ImageError('TOO_LARGE', 'the clusters in use are too far from each other to be checked', {
        path: walk.subject.storage.path,
      });
    }
    await walk.pass(withRefcounts, visitor);
    await act();
    if (!walk.pages.next()) return;
  }
}
