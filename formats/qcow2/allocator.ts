import { ImageError, StorageError } from '../core/errors.ts';
import { alignUp, divideUp } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';
import type { Geometry } from './geometry.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { Refcounts } from './refcount.ts';
import { areFree, getRefcount, setOnes } from './refcount-codec.ts';
import type { SliceCache } from './slices.ts';
import { Stock } from './stock.ts';

/** Host offsets of data have 56 bits, of which a number takes 53. */
const MAX_HOST_OFFSET = Number.MAX_SAFE_INTEGER;

/** Host clusters that follow each other. */
export interface ClusterRun {
  readonly first: number;
  readonly count: number;
  /** Never written since the file grew to hold them: they read as zeros. */
  readonly fresh: boolean;
  /** Their refcounts are durable, and so is a size of the file that holds them: see Stock. */
  readonly settled: boolean;
}

/** Gives out free clusters, lowest first, and takes them back. Callers hold the writer's mutex. */
export class Allocator {
  readonly #storage: Storage;
  readonly #slices: SliceCache;
  readonly #geometry: Geometry;
  readonly #metadata: MetadataMap;
  readonly #refcounts: Refcounts;
  /** Everything below is in use. */
  #hint = 0;
  /** Everything from this cluster on has never been written. */
  #untouched: number;
  readonly #stock: Stock;
  /** Whoever writes publishes: a stock of clusters is laid in. */
  #stocking = false;

  constructor(parts: {
    storage: Storage;
    slices: SliceCache;
    geometry: Geometry;
    metadata: MetadataMap;
    refcounts: Refcounts;
    /** Zeros in the file are no zeros to the guest. */
    encrypted: boolean;
  }) {
    this.#storage = parts.storage;
    this.#slices = parts.slices;
    this.#geometry = parts.geometry;
    this.#metadata = parts.metadata;
    this.#refcounts = parts.refcounts;
    const { clusterSize } = parts.geometry;
    this.#untouched =
      parts.storage.growsZeroed && !parts.encrypted
        ? alignUp(parts.storage.size, clusterSize) / clusterSize
        : Number.POSITIVE_INFINITY;
    this.#stock = new Stock(clusterSize);
    this.#refcounts.onAllocated = (first, count) => this.#touched(first + count);
  }

  /**
   * Takes the first free cluster and up to `most - 1` free ones that follow it. Their refcounts are 1 from now on.
   *
   * @throws {StorageError} NO_SPACE; {ImageError} CORRUPT when a free cluster holds metadata
   */
  async allocate(most: number): Promise<ClusterRun> {
    const stocked = this.#stock.take(most);
    if (stocked !== undefined) return stocked;
    const run = (await this.#allocate(most, false, this.#stocking ? this.#stock.most : 0)) as ClusterRun;
    if (run.count <= most) return run;
    await this.#lay(run.first + most, run.first + run.count);
    return { ...run, count: most };
  }

  /** Lays in stocks from now on: clusters that are given out are settled, most of the time. */
  stock(): void {
    this.#stocking = true;
  }

  /** To be told to settled() when all that is in memory now is durable. */
  get stockGeneration(): number {
    return this.#stock.generation;
  }

  settled(generation: number): void {
    this.#stock.settle(generation);
  }

  /** Gives the stock back, and lays in no other before stock(). @returns what it was, for trim() */
  async clearStock(): Promise<{ first: number; end: number }> {
    this.#stocking = false;
    const { first, end } = this.#stock.range;
    this.#stock.lay(end, end);
    if (first < end) await this.free(first, end - first);
    return { first, end };
  }

  /** Cuts off what is not in use of a former stock, when it is the end of the file. Counts are durable. */
  async trim({ first, end }: { first: number; end: number }): Promise<void> {
    const { clusterSize } = this.#geometry;
    if (first === end || this.#untouched !== end || this.#storage.size !== end * clusterSize) return;
    let used = first;
    await this.#refcounts.visit(first, end - first, (cluster, value) => {
      if (value !== 0) used = cluster + 1;
    });
    await this.#storage.resize(used * clusterSize);
    this.#untouched = used; // the file grows to hold them again
  }

  async #lay(first: number, end: number): Promise<void> {
    try {
      const size = end * this.#geometry.clusterSize;
      if (this.#storage.size < size) await this.#storage.resize(size);
      this.#stock.lay(first, end);
    } catch {
      await this.free(first, end - first); // a file that may not grow so far: without a stock, then
    }
  }

  /**
   * @param counted only of clusters that have a place for their refcount: undefined when none of them is free
   * @param spare where what is found is fresh, so many are taken if that is more
   */
  async #allocate(most: number, counted: boolean, spare = 0): Promise<ClusterRun | undefined> {
    const { refcountsPerSlice, refcountOrder, clusterSize } = this.#geometry;
    for (let cluster = this.#hint; ; ) {
      if ((cluster + 1) * clusterSize > MAX_HOST_OFFSET) throw this.#full('the image is as large as the format allows');
      const slice = this.#refcounts.sliceOf(cluster);
      if (slice < 0) {
        if (counted) return undefined;
        this.#refuseOutside(cluster);
        await this.#refcounts.addBlock(cluster);
        continue;
      }
      await this.#slices.hold(slice, 'refcount');
      try {
        const bytes = this.#slices.peek(slice) as Uint8Array;
        const base = cluster - (cluster % refcountsPerSlice);
        let free = cluster - base;
        while (free < refcountsPerSlice && getRefcount(bytes, refcountOrder, free) !== 0) free++;
        if (free === refcountsPerSlice) {
          cluster = base + refcountsPerSlice;
          this.#hint = cluster;
          continue;
        }
        let end = free + 1;
        const wanted = base + free < this.#untouched ? most : Math.max(most, spare);
        const stop = Math.min(refcountsPerSlice, free + wanted, this.#boundary(base + free) - base);
        if (areFree(bytes, refcountOrder, end, stop)) end = stop;
        else while (end < stop && getRefcount(bytes, refcountOrder, end) === 0) end++;
        return this.#take(slice, base, free, end);
      } finally {
        this.#slices.unhold(slice);
      }
    }
  }

  /**
   * Takes `count` clusters in one piece, for a table. Free places that are too small are passed over.
   *
   * @returns the first cluster
   */
  async allocateTogether(count: number): Promise<number> {
    const small: { first: number; count: number }[] = [];
    let piece: { first: number; count: number } | undefined;
    // A new refcount block lies in the first cluster that it counts: between two of them there is no room for so many.
    const long = count >= this.#geometry.refcountsPerBlock;
    try {
      for (;;) {
        const run = await this.#allocate(count - (piece?.count ?? 0), long);
        if (run === undefined) {
          if (piece !== undefined) small.push(piece);
          piece = undefined;
          return await this.#extend(count);
        }
        if (piece !== undefined && piece.first + piece.count === run.first) piece.count += run.count;
        else {
          if (piece !== undefined) small.push(piece);
          piece = { first: run.first, count: run.count };
          if (run.count < count) continue;
        }
        if (piece.count >= count) return piece.first;
      }
    } catch (error) {
      if (piece !== undefined) small.push(piece);
      throw error;
    } finally {
      for (const { first, count } of small) await this.free(first, count);
    }
  }

  /** Takes clusters behind all that have a place for their refcount; those places come behind them. @returns the first */
  async #extend(count: number): Promise<number> {
    const { clusterSize, refcountsPerBlock } = this.#geometry;
    const end = this.#refcounts.blocksEnd * refcountsPerBlock + count + divideUp(count, refcountsPerBlock - 1);
    if (end * clusterSize > MAX_HOST_OFFSET) throw this.#full('the image is as large as the format allows');
    this.#refuseOutside(end - 1);
    return this.#refcounts.addCounted(count);
  }

  /** Where a run that starts at a cluster must end so that it is fresh as a whole or not at all. */
  #boundary(cluster: number): number {
    return cluster < this.#untouched ? this.#untouched : Number.POSITIVE_INFINITY;
  }

  #take(slice: number, base: number, from: number, to: number): ClusterRun {
    this.#refuseOutside(base + to - 1);
    const taken = this.#metadata.firstIn(base + from, base + to);
    if (taken < base + to) {
      throw new ImageError('CORRUPT', 'a cluster that holds metadata has a refcount of 0', {
        path: this.#storage.path,
        field: 'refcount',
        offset: taken * this.#geometry.clusterSize,
      });
    }
    setOnes(this.#slices.modify(slice), this.#geometry.refcountOrder, from, to);
    const first = base + from;
    this.#hint = base + to;
    const fresh = first >= this.#untouched;
    this.#touched(base + to);
    return { first, count: to - from, fresh, settled: false };
  }

  /** Gives clusters back that nothing refers to. @throws what reading their refcounts throws: they are leaked then */
  async free(first: number, count: number): Promise<void> {
    await this.#refcounts.lower(first, count);
    this.freed(first);
  }

  /** A cluster has become free. */
  freed(cluster: number): void {
    if (cluster < this.#hint) this.#hint = cluster;
  }

  #touched(end: number): void {
    if (this.#untouched < end) this.#untouched = end;
  }

  /** A device does not grow. */
  #refuseOutside(cluster: number): void {
    if (this.#storage.growsZeroed) return;
    if ((cluster + 1) * this.#geometry.clusterSize > this.#storage.size) throw this.#full('the device is full');
  }

  #full(why: string): StorageError {
    return new StorageError('NO_SPACE', why, { path: this.#storage.path });
  }
}
