import { ImageError } from '../core/errors.ts';
import { getRefcount, setRefcount } from './refcount-codec.ts';
import type { CountSpan, ReferenceCounts } from './reference-counts.ts';
import type { WriteState } from './write-state.ts';

/**
 * References that many clusters gain or lose at once, taken slice by slice in the order of the file: each slice of refcounts is changed
 * once, however often its clusters are referred to.
 */
export class RefcountBatch {
  readonly #state: WriteState;
  readonly #counts: ReferenceCounts;
  readonly #flush: () => Promise<void>;
  /** Clusters before this one have been raised. */
  #raised = 0;

  /** @param flush for when there is too much in memory that is not written */
  constructor(state: WriteState, counts: ReferenceCounts, flush: () => Promise<void>) {
    this.#state = state;
    this.#counts = counts;
    this.#flush = flush;
  }

  /**
   * Looks at all counts before any is changed: whether they are what the references need, and whether they can be raised.
   *
   * @throws {ImageError} CORRUPT; TOO_LARGE when a count does not fit
   */
  async check(raise: boolean): Promise<void> {
    const { refcountOrder, refcountMax } = this.#state.parts.geometry;
    for (const first of this.#slices()) {
      await this.#withSlice(first, (bytes) => {
        for (const span of this.#spans(first)) {
          const at = misfit(bytes, refcountOrder, span, first, raise ? refcountMax : Number.POSITIVE_INFINITY);
          if (at === 0) continue;
          throw at < 0 ? this.#tooFew(first - at - 1) : this.#tooMany(first + at - 1);
        }
      });
    }
  }

  async raise(): Promise<void> {
    for (const first of this.#slices()) {
      await this.#state.change(() => this.#changeSlice(first, 1));
      this.#raised = first + this.#state.parts.geometry.refcountsPerSlice;
      await this.#relieve();
    }
  }

  /** Takes back what raise() has done, all of it or a part. */
  async undo(): Promise<void> {
    for (const first of this.#slices()) {
      if (first >= this.#raised) break;
      await this.#state.change(() => this.#changeSlice(first, -1));
    }
    this.#raised = 0;
  }

  /** Lowers the counts: what nothing refers to any more is free then, its space given back to the file system. */
  async lower(): Promise<void> {
    for (const first of this.#slices()) {
      await this.#state.change(async () => {
        await this.#giveBack(first);
        await this.#changeSlice(first, -1);
      });
      await this.#relieve();
    }
  }

  /** First clusters of the slices of refcounts in which something changes. */
  *#slices(): Generator<number> {
    const { refcountsPerSlice } = this.#state.parts.geometry;
    for (let first = 0; first < this.#counts.limit; first += refcountsPerSlice) {
      if (this.#counts.anyIn(first, first + refcountsPerSlice)) yield first;
    }
  }

  #spans(first: number) {
    return this.#counts.spans(first, first + this.#state.parts.geometry.refcountsPerSlice);
  }

  /** Holds the slice of refcounts that begins with a cluster's; undefined where there is no block: all are 0 there. */
  async #withSlice<T>(first: number, act: (bytes: Uint8Array | undefined, slice: number) => T): Promise<T> {
    const { refcounts, slices } = this.#state.parts;
    const slice = await refcounts.ready(first);
    if (slice < 0) return act(undefined, slice);
    await slices.hold(slice, 'refcount');
    try {
      return act(slices.peek(slice), slice);
    } finally {
      slices.unhold(slice);
    }
  }

  async #changeSlice(first: number, sign: 1 | -1): Promise<void> {
    const { refcountOrder } = this.#state.parts.geometry;
    await this.#withSlice(first, (held, slice) => {
      if (held === undefined) throw this.#wrong(first);
      // Looked at whole before any is changed: what does not fit leaves the slice as it was.
      for (const span of this.#spans(first)) {
        const below = sign < 0 ? misfit(held, refcountOrder, span, first, Number.POSITIVE_INFINITY) : 0;
        if (below < 0) throw this.#wrong(first - below - 1);
      }
      const bytes = this.#state.parts.slices.modify(slice);
      const freed: number[] = [];
      for (const span of this.#spans(first)) addTo(bytes, refcountOrder, span, first, sign, freed);
      for (const cluster of freed) this.#freed(first + cluster);
    });
  }

  #freed(cluster: number): void {
    const { geometry, slices, metadata, allocator } = this.#state.parts;
    allocator.freed(cluster);
    if (!metadata.has(cluster)) return;
    metadata.remove(cluster * geometry.clusterSize, geometry.clusterSize);
    slices.forget(cluster * geometry.slicesPerCluster, geometry.slicesPerCluster);
  }

  /** Punches out of the file what is about to become free, while nobody can have it yet. */
  async #giveBack(first: number): Promise<void> {
    const { geometry, storage } = this.#state.parts;
    const { refcountOrder, clusterSize } = geometry;
    const runs: { first: number; count: number }[] = [];
    await this.#withSlice(first, (bytes) => {
      if (bytes === undefined) return;
      for (const span of this.#spans(first)) collectLast(bytes, refcountOrder, span, first, runs);
    });
    for (const run of runs) {
      await storage.discard(run.first * clusterSize, run.count * clusterSize).catch(() => false);
    }
  }

  async #relieve(): Promise<void> {
    if (this.#state.parts.cache.pinnedFull) await this.#flush();
  }

  #wrong(cluster: number): ImageError {
    return new ImageError('CORRUPT', 'a cluster that was in use has a refcount of 0', this.#placeOf(cluster));
  }

  #tooFew(cluster: number): ImageError {
    return new ImageError('CORRUPT', 'a cluster has more references than its refcount says', this.#placeOf(cluster));
  }

  #tooMany(cluster: number): ImageError {
    const { refcountBits } = this.#state.parts.geometry;
    return new ImageError('TOO_LARGE', `refcounts of ${refcountBits} bits cannot count another snapshot's references`, {
      ...this.#placeOf(cluster),
      help: 'Make an image with wider refcounts (refcount_bits).',
    });
  }

  #placeOf(cluster: number) {
    const { storage, geometry } = this.#state.parts;
    return { path: storage.path, field: 'refcount', offset: cluster * geometry.clusterSize };
  }
}

/**
 * Looks whether refcounts are what references need, and can take them once more up to `max`.
 *
 * @returns 0 when all can; -1 - i for one that is too low, 1 + i for one that cannot, i its index in the slice
 */
function misfit(bytes: Uint8Array | undefined, order: number, span: CountSpan, first: number, max: number): number {
  const { cluster, counts, from, to } = span;
  const base = cluster - first - from;
  for (let i = from; i < to; i++) {
    const references = counts[i] as number;
    if (references === 0) continue;
    const value = bytes === undefined ? 0 : getRefcount(bytes, order, base + i);
    if (value < references) return -1 - base - i;
    if (value + references > max) return 1 + base + i;
  }
  return 0;
}

/** Adds references to refcounts, or takes them off. @param freed gets the indexes of those that are 0 then */
function addTo(bytes: Uint8Array, order: number, span: CountSpan, first: number, sign: 1 | -1, freed: number[]): void {
  const { cluster, counts, from, to } = span;
  const base = cluster - first - from;
  for (let i = from; i < to; i++) {
    const references = counts[i] as number;
    if (references === 0) continue;
    const value = getRefcount(bytes, order, base + i);
    if (value === Number.POSITIVE_INFINITY) continue;
    const changed = value + sign * references;
    setRefcount(bytes, order, base + i, changed);
    if (changed === 0) freed.push(base + i);
  }
}

/** Collects runs of clusters that have no other references than these. */
function collectLast(
  bytes: Uint8Array,
  order: number,
  span: CountSpan,
  first: number,
  runs: { first: number; count: number }[],
): void {
  const { cluster, counts, from, to } = span;
  const base = cluster - first - from;
  for (let i = from; i < to; i++) {
    const references = counts[i] as number;
    if (references === 0 || getRefcount(bytes, order, base + i) !== references) continue;
    const last = runs[runs.length - 1];
    if (last !== undefined && last.first + last.count === first + base + i) last.count++;
    else runs.push({ first: first + base + i, count: 1 });
  }
}
