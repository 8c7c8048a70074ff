import { ImageError, StorageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';
import type { Geometry } from './geometry.ts';
import { HEADER_V2, MAX_REFCOUNT_TABLE_BYTES, type Qcow2Header } from './header.ts';
import type { HeaderSector } from './header-sector.ts';
import type { MetadataMap } from './metadata-map.ts';
import { PointerTable, type TableWrite, writeTable } from './pointer-table.ts';
import { getRefcount, setRefcount } from './refcount-codec.ts';
import type { SliceCache } from './slices.ts';
import { zeroFill } from './zero-fill.ts';

const ENTRY = 8;

/** Changes of the refcount table that a flush took: entries in place, or the whole table in a new place. */
export interface RefcountTableJob {
  readonly moved: boolean;
  readonly writes: readonly TableWrite[];
  readonly clusters: number;
}

/**
 * The refcounts of all clusters of the file, in memory as far as they are in use.
 *
 * Counts in memory are never below what any mapping, on disk or in memory, needs: they are raised before a cluster is given out, and
 * lowered only after the mapping that dropped it is durable. Callers hold the writer's mutex.
 */
export class Refcounts {
  readonly table: PointerTable;
  readonly #storage: Storage;
  readonly #slices: SliceCache;
  readonly #geometry: Geometry;
  readonly #metadata: MetadataMap;
  /** The table has a new place that the header does not know yet. */
  #moved = false;

  constructor(parts: {
    storage: Storage;
    slices: SliceCache;
    geometry: Geometry;
    metadata: MetadataMap;
    table: PointerTable;
  }) {
    this.#storage = parts.storage;
    this.#slices = parts.slices;
    this.#geometry = parts.geometry;
    this.#metadata = parts.metadata;
    this.table = parts.table;
  }

  static loadTable(storage: Storage, header: Qcow2Header): Promise<PointerTable> {
    const { clusterSize } = header.geometry;
    return PointerTable.load(storage, {
      name: 'refcount table',
      offset: header.refcountTableOffset,
      entries: (header.refcountTableClusters * clusterSize) / ENTRY,
      clusterSize,
    });
  }

  /** The slice with a cluster's refcount; -1 where there is no block: all counts are 0 there. @throws {ImageError} CORRUPT */
  sliceOf(cluster: number): number {
    const { refcountsPerBlock, refcountsPerSlice, sliceSize } = this.#geometry;
    const index = Math.floor(cluster / refcountsPerBlock);
    const block = this.table.checkedTarget(index);
    if (block === 0) return -1;
    return block / sliceSize + Math.floor((cluster - index * refcountsPerBlock) / refcountsPerSlice);
  }

  /** As sliceOf(), with the slice in memory where the cache can hold it: its whole block is read at once. */
  async ready(cluster: number): Promise<number> {
    const slice = this.sliceOf(cluster);
    if (slice < 0 || this.#slices.peek(slice) !== undefined) return slice;
    const { slicesPerCluster } = this.#geometry;
    await this.#slices.preload(slice - (slice % slicesPerCluster), slicesPerCluster);
    return slice;
  }

  async get(cluster: number): Promise<number> {
    const slice = this.sliceOf(cluster);
    if (slice < 0) return 0;
    const { refcountsPerSlice, refcountOrder } = this.#geometry;
    await this.#slices.hold(slice, 'refcount');
    try {
      return getRefcount(this.#slices.peek(slice) as Uint8Array, refcountOrder, cluster % refcountsPerSlice);
    } finally {
      this.#slices.unhold(slice);
    }
  }

  /** Shows the counts of clusters that follow each other, slice by slice; `visit` must not wait. */
  async visit(first: number, count: number, visit: (cluster: number, value: number) => void): Promise<void> {
    const { refcountsPerSlice, refcountOrder } = this.#geometry;
    for (let cluster = first; cluster < first + count; ) {
      const index = cluster % refcountsPerSlice;
      const stop = Math.min(refcountsPerSlice, index + first + count - cluster);
      const slice = this.sliceOf(cluster);
      if (slice < 0) {
        for (let i = index; i < stop; i++) visit(cluster++, 0);
        continue;
      }
      await this.#slices.hold(slice, 'refcount');
      try {
        const bytes = this.#slices.peek(slice) as Uint8Array;
        for (let i = index; i < stop; i++) visit(cluster++, getRefcount(bytes, refcountOrder, i));
      } finally {
        this.#slices.unhold(slice);
      }
    }
  }

  /** Sets one count, making its block when there is none. */
  async set(cluster: number, value: number): Promise<void> {
    if (value > this.#geometry.refcountMax) {
      throw new ImageError('TOO_LARGE', `a refcount of ${value} does not fit into ${this.#geometry.refcountBits} bits`);
    }
    for (;;) {
      const slice = this.sliceOf(cluster);
      if (slice < 0) {
        await this.addBlock(cluster);
        continue;
      }
      const { refcountsPerSlice, refcountOrder } = this.#geometry;
      await this.#slices.hold(slice, 'refcount');
      try {
        setRefcount(this.#slices.modify(slice), refcountOrder, cluster % refcountsPerSlice, value);
        return;
      } finally {
        this.#slices.unhold(slice);
      }
    }
  }

  /**
   * Lowers the counts of clusters that follow each other by one each.
   *
   * @throws {ImageError} CORRUPT when one was 0 already
   */
  async lower(first: number, count: number): Promise<void> {
    const { refcountsPerSlice, refcountOrder } = this.#geometry;
    for (let cluster = first; cluster < first + count; ) {
      const slice = this.sliceOf(cluster);
      if (slice < 0) throw this.#tooLow(cluster);
      await this.#slices.hold(slice, 'refcount');
      try {
        const bytes = this.#slices.modify(slice);
        const index = cluster % refcountsPerSlice;
        const stop = Math.min(refcountsPerSlice, index + first + count - cluster);
        for (let i = index; i < stop; i++, cluster++) {
          const value = getRefcount(bytes, refcountOrder, i);
          if (value === 0) throw this.#tooLow(cluster);
          if (value !== Number.POSITIVE_INFINITY) setRefcount(bytes, refcountOrder, i, value - 1);
        }
      } finally {
        this.#slices.unhold(slice);
      }
    }
  }

  #tooLow(cluster: number): ImageError {
    return new ImageError('CORRUPT', `a cluster that was in use has a refcount of 0`, {
      path: this.#storage.path,
      field: 'refcount',
      offset: cluster * this.#geometry.clusterSize,
    });
  }

  /** Makes a block in a cluster that is known to be free, wherever that is; its own count is for the caller to set. */
  async placeEmptyBlock(index: number, cluster: number): Promise<void> {
    const { clusterSize, slicesPerCluster, sliceSize } = this.#geometry;
    this.#refuseMetadata(cluster, 1);
    await zeroFill(this.#storage, cluster * clusterSize, clusterSize);
    this.#placeBlock(index, cluster, 0);
    this.#slices.create(cluster * slicesPerCluster, new Uint8Array(sliceSize), 'refcount');
    this.onAllocated(cluster, 1);
  }

  /** Makes the block for a cluster that has none: in the first cluster that it counts, so that it accounts for itself. */
  async addBlock(cluster: number): Promise<void> {
    const { refcountsPerBlock, clusterSize } = this.#geometry;
    const index = Math.floor(cluster / refcountsPerBlock);
    if (index >= this.table.entries) return this.#grow(index);
    const own = index * refcountsPerBlock;
    this.#refuseMetadata(own, 1);
    await zeroFill(this.#storage, own * clusterSize, clusterSize);
    this.#placeBlock(index, own, 1);
    this.onAllocated(own, 1);
  }

  /** Index of the first block behind the last that there is. */
  get blocksEnd(): number {
    let end = this.table.entries;
    while (end > 0 && this.table.target(end - 1) === 0) end--;
    return end;
  }

  /** Takes clusters behind all that have a block, with new blocks for them, which follow. @returns the first */
  async addCounted(count: number): Promise<number> {
    const { refcountsPerBlock, clusterSize } = this.#geometry;
    const blocks = divideUp(count, refcountsPerBlock - 1);
    if (this.blocksEnd + blocks > this.table.entries) await this.#grow(this.blocksEnd, blocks);
    const index = this.blocksEnd;
    const first = index * refcountsPerBlock;
    const total = count + blocks;
    this.#refuseMetadata(first, total);
    await zeroFill(this.#storage, (first + count) * clusterSize, blocks * clusterSize);
    for (let i = 0; i < blocks; i++) {
      const used = Math.max(0, Math.min(refcountsPerBlock, total - i * refcountsPerBlock));
      this.#placeBlock(index + i, first + count + i, used);
    }
    this.onAllocated(first, total);
    return first;
  }

  /** Enters a block into the table whose first `used` clusters are in use. */
  #placeBlock(index: number, cluster: number, used: number): void {
    const { clusterSize, sliceSize, slicesPerCluster, refcountsPerSlice, refcountOrder } = this.#geometry;
    for (let i = 0; i < slicesPerCluster; i++) {
      const bytes = new Uint8Array(sliceSize);
      const inSlice = Math.min(refcountsPerSlice, Math.max(0, used - i * refcountsPerSlice));
      for (let entry = 0; entry < inSlice; entry++) setRefcount(bytes, refcountOrder, entry, 1);
      const slice = cluster * slicesPerCluster + i;
      if (inSlice > 0) this.#slices.create(slice, bytes, 'refcount');
      else this.#slices.forget(slice, 1);
    }
    this.#metadata.add(cluster * clusterSize, clusterSize);
    this.table.set(index, cluster * clusterSize, false);
  }

  /** Moves the table to where it has room for `further` blocks more: behind everything, with the blocks that count its new place. */
  async #grow(index: number, further = 0): Promise<void> {
    const { refcountsPerBlock, clusterSize } = this.#geometry;
    const base = index * refcountsPerBlock;
    let tableClusters = divideUp(
      Math.max(index + 1 + further, Math.ceil(this.table.entries * 1.5)) * ENTRY,
      clusterSize,
    );
    let blocks = 1;
    for (;;) {
      const neededBlocks = divideUp(tableClusters + blocks, refcountsPerBlock);
      const neededTable = divideUp((index + neededBlocks + further) * ENTRY, clusterSize);
      if (neededBlocks <= blocks && neededTable <= tableClusters) break;
      blocks = Math.max(blocks, neededBlocks);
      tableClusters = Math.max(tableClusters, neededTable);
    }
    if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      tableClusters = MAX_REFCOUNT_TABLE_BYTES / clusterSize;
      if (
        index + blocks + further > MAX_REFCOUNT_TABLE_BYTES / ENTRY ||
        tableClusters * clusterSize <= this.table.byteLength
      ) {
        throw new StorageError('NO_SPACE', 'the image is as large as its refcount table can describe', {
          path: this.#storage.path,
        });
      }
    }
    const total = tableClusters + blocks;
    this.#refuseMetadata(base, total);
    await zeroFill(this.#storage, base * clusterSize, total * clusterSize);

    const old = { cluster: this.table.offset / clusterSize, count: this.table.byteLength / clusterSize };
    this.table.move(base * clusterSize, (tableClusters * clusterSize) / ENTRY);
    for (let i = 0; i < blocks; i++) {
      const used = Math.min(refcountsPerBlock, total - i * refcountsPerBlock);
      this.#placeBlock(index + i, base + tableClusters + i, used);
    }
    this.#metadata.add(base * clusterSize, tableClusters * clusterSize);
    this.#moved = true;
    this.onAllocated(base, total);
    this.onUnlinked(old.cluster, old.count);
  }

  /** Told of clusters that blocks and table took for themselves, so that nobody takes their space for fresh. */
  onAllocated: (first: number, count: number) => void = () => undefined;
  /** Told of the clusters of a table that has moved: in use until the header knows the new place. */
  onUnlinked: (first: number, count: number) => void = () => undefined;

  #refuseMetadata(first: number, count: number): void {
    for (let cluster = first; cluster < first + count; cluster++) {
      if (!this.#metadata.has(cluster)) continue;
      throw new ImageError('CORRUPT', 'a cluster that holds metadata has no refcount', {
        path: this.#storage.path,
        field: 'refcount',
        offset: cluster * this.#geometry.clusterSize,
      });
    }
  }

  /** There are blocks that the table in the file does not know, or it has moved. */
  get tableChanged(): boolean {
    return this.#moved || this.table.dirty;
  }

  takeTable(): RefcountTableJob {
    const clusters = this.table.byteLength / this.#geometry.clusterSize;
    const changed = this.table.takeDirty();
    if (!this.#moved) return { moved: false, writes: changed, clusters };
    this.#moved = false;
    return { moved: true, writes: [{ offset: this.table.offset, bytes: this.table.copy() }], clusters };
  }

  /** A job that did not get into the file whole. */
  returnTable(job: RefcountTableJob): void {
    if (job.moved) this.#moved = true;
    else if (!this.#moved) this.table.returned(job.writes);
  }

  /** Writes a moved table, which nothing points to yet. */
  async writeMoved(job: RefcountTableJob): Promise<void> {
    if (job.moved) await writeTable(this.#storage, job.writes);
  }

  /**
   * Makes the file use blocks that are new, or the table in its new place. All of these are durable already.
   *
   * @returns false when there was nothing to do
   */
  async link(job: RefcountTableJob, header: HeaderSector): Promise<boolean> {
    if (!job.moved) {
      await writeTable(this.#storage, job.writes);
      return job.writes.length > 0;
    }
    const offset = (job.writes[0] as TableWrite).offset;
    await header.update((view) => {
      HEADER_V2.write(view, { refcountTableOffset: offset, refcountTableClusters: job.clusters });
    });
    return true;
  }
}

/** Reads a range of a file into a new array. */
export async function readBytes(storage: Storage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await storage.readv(offset, IoVec.of(bytes));
  return bytes;
}
