import { ImageError } from '../core/errors.ts';
import { alignUp, divideUp } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';
import { readBitmapDirectory } from './bitmaps.ts';
import { AUTOCLEAR, INCOMPATIBLE } from './features.ts';
import type { Geometry } from './geometry.ts';
import type { Qcow2Header } from './header.ts';
import { COMPRESSED_BIT, compressedLength, compressedOffset, getU32, hostOffset, OFFSET_LOW, runLength } from './l2.ts';
import { PointerTable } from './pointer-table.ts';
import { readBytes } from './refcount.ts';
import { ReferenceCounts } from './reference-counts.ts';
import { checkSnapshotL1, type SnapshotTable } from './snapshot.ts';
import { scanTables } from './table-scan.ts';

/** Compressed data is counted by sectors: the last one may stick out of the file. */
const TOLERANCE = 1;

export interface CountedImage {
  readonly storage: Storage;
  readonly header: Qcow2Header;
  readonly snapshotTable: SnapshotTable;
  readonly l1: PointerTable;
  readonly refcountTable: PointerTable;
}

/**
 * Counts every reference in an image: what its refcounts must be. The work is bounded by the file: tables that would be counted twice, or lie
 * outside, end it.
 *
 * @throws {ImageError} CORRUPT when the metadata cannot be followed
 */
export async function countReferences(image: CountedImage): Promise<ReferenceCounts> {
  const { storage, header, l1, refcountTable, snapshotTable } = image;
  const { clusterSize } = header.geometry;
  const counts = new ReferenceCounts(divideUp(storage.size, clusterSize) + TOLERANCE);
  const counter = new Counter(image, counts);
  counter.table(0, clusterSize, 'header');
  counter.table(refcountTable.offset, refcountTable.byteLength, 'refcount table');
  for (let i = 0; i < refcountTable.entries; i++) {
    const block = refcountTable.checkedTarget(i);
    if (block !== 0) counter.table(block, clusterSize, 'refcount block');
  }
  counter.table(l1.offset, l1.byteLength, 'L1 table');
  counter.table(snapshotTable.offset, snapshotTable.byteLength, 'snapshot table');
  const { crypto } = header.extensions;
  if (crypto !== undefined) counter.table(crypto.offset, crypto.length, 'encryption header');
  await counter.bitmaps();

  // An L2 table is read once, however many L1 tables refer to it.
  const tables = new Map<number, number>();
  collect(l1, tables);
  for (const snapshot of snapshotTable.snapshots) {
    checkSnapshotL1(snapshot, clusterSize);
    // Claimed before it is read: L1 tables that lie on each other would make us read the file many times over.
    counter.table(snapshot.l1TableOffset, snapshot.l1Size * 8, 'snapshot L1 table');
    const options = {
      name: 'snapshot L1 table',
      offset: snapshot.l1TableOffset,
      entries: snapshot.l1Size,
      clusterSize,
    };
    collect(await PointerTable.load(storage, options), tables);
  }
  await counter.l2Tables(tables);
  return counts;
}

/** Counts how often an L1 table refers to its L2 tables. */
function collect(table: PointerTable, tables: Map<number, number>): void {
  for (let i = 0; i < table.entries; i++) {
    const target = table.checkedTarget(i);
    if (target !== 0) tables.set(target, (tables.get(target) ?? 0) + 1);
  }
}

/**
 * Counts the references that one L1 table makes: to L2 tables, and through them to data. Its own clusters are not among them.
 *
 * @throws {ImageError} CORRUPT
 */
export async function countThroughL1(
  image: Pick<CountedImage, 'storage' | 'header'>,
  l1: PointerTable,
): Promise<ReferenceCounts> {
  const { clusterSize } = image.header.geometry;
  const counts = new ReferenceCounts(divideUp(image.storage.size, clusterSize) + TOLERANCE);
  const counter = new Counter(image, counts);
  const tables = new Map<number, number>();
  collect(l1, tables);
  await counter.l2Tables(tables);
  return counts;
}

class Counter {
  readonly #image: Pick<CountedImage, 'storage' | 'header'>;
  readonly #geometry: Geometry;
  readonly #counts: ReferenceCounts;
  readonly #external: boolean;

  constructor(image: Pick<CountedImage, 'storage' | 'header'>, counts: ReferenceCounts) {
    this.#image = image;
    this.#geometry = image.header.geometry;
    this.#counts = counts;
    this.#external = (image.header.incompatibleFeatures.low & INCOMPATIBLE.DATA_FILE) !== 0;
  }

  /** Counts a table that belongs to nothing else. */
  table(offset: number, length: number, field: string): void {
    if (length === 0) return;
    const { clusterSize } = this.#geometry;
    const first = offset / clusterSize;
    const count = divideUp(length, clusterSize);
    if (!this.#counts.add(first, count, 1)) this.#outside(offset, field);
    for (let cluster = first; cluster < first + count; cluster++) {
      if (this.#counts.get(cluster) > 1) this.#fail(`the ${field} lies on other metadata`, field, offset);
    }
  }

  async bitmaps(): Promise<void> {
    const { storage, header } = this.#image;
    const reference = header.extensions.bitmaps;
    if (reference === undefined || (header.autoclearFeatures.low & AUTOCLEAR.BITMAPS) === 0) return;
    const { clusterSize } = this.#geometry;
    this.table(reference.directoryOffset, reference.directorySize, 'bitmap directory');
    for (const bitmap of await readBitmapDirectory(storage, reference, clusterSize)) {
      this.table(bitmap.tableOffset, bitmap.tableSize * 8, 'bitmap table');
      const bytes = await readBytes(storage, bitmap.tableOffset, bitmap.tableSize * 8);
      for (let at = 0; at < bytes.length; at += 8) {
        const offset = hostOffset(getU32(bytes, at), getU32(bytes, at + 4));
        if (offset !== 0) this.#clusters(offset, clusterSize, 1, bitmap.tableOffset + at);
      }
    }
  }

  /** Counts L2 tables and all they refer to, as often as they are referred to themselves. */
  async l2Tables(tables: ReadonlyMap<number, number>): Promise<void> {
    const { clusterSize } = this.#geometry;
    const offsets = Float64Array.from(tables.keys()).sort();
    for (const offset of offsets) this.#clusters(offset, clusterSize, tables.get(offset) as number, offset);
    await scanTables(this.#image.storage, offsets, clusterSize, {
      visit: (bytes, offset) => {
        this.#l2Table(bytes, offset, tables.get(offset) as number);
        return undefined;
      },
    });
  }

  #l2Table(bytes: Uint8Array, offset: number, references: number): void {
    const { clusterSize, entrySize, compressedOffsetBits } = this.#geometry;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 0; at < bytes.length; at += entrySize) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      if (this.#external) {
        // Data in a file of its own is counted by nobody.
        if ((high & COMPRESSED_BIT) !== 0)
          this.#fail('an L2 entry is compressed, but data is in another file', 'L2 table', offset + at);
        continue;
      }
      if ((high & COMPRESSED_BIT) !== 0) {
        const start = compressedOffset(high, low, compressedOffsetBits);
        this.#clusters(start, compressedLength(high, low, compressedOffsetBits), references, offset + at);
        continue;
      }
      const target = hostOffset(high, low);
      if (target === 0) continue;
      if ((low & OFFSET_LOW & (clusterSize - 1)) !== 0)
        this.#fail('an L2 entry is not aligned to a cluster', 'L2 table', offset + at);
      const count = entrySize === 8 ? runLength(view, at, high, low, clusterSize) : 1;
      if (!this.#counts.add(target / clusterSize, count, references)) this.#outside(offset + at, 'L2 table');
      at += (count - 1) * entrySize;
    }
  }

  #clusters(offset: number, length: number, references: number, entryOffset: number): void {
    const { clusterSize } = this.#geometry;
    const first = Math.floor(offset / clusterSize);
    const end = alignUp(offset + length, clusterSize) / clusterSize;
    if (!this.#counts.add(first, end - first, references)) this.#outside(entryOffset, 'L2 table');
  }

  #outside(offset: number, field: string): never {
    this.#fail(`the ${field} refers to space outside the file`, field, offset);
  }

  #fail(why: string, field: string, offset: number): never {
    throw new ImageError('CORRUPT', why, { path: this.#image.storage.path, field, offset });
  }
}
