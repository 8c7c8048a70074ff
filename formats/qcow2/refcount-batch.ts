import { ImageError } from '../core/errors.ts';
import { getRefcount, setRefcount } from './refcount-codec.ts';
import type { ReferenceCounts } from './reference-counts.ts';
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
    const { geometry, refcounts, storage } = this.#state.parts;
    for (const first of this.#slices()) {
      await refcounts.visit(first, geometry.refcountsPerSlice, (cluster, value) => {
        const references = this.#counts.get(cluster);
        if (references === 0) return;
        const place = { path: storage.path, field: 'refcount', offset: cluster * geometry.clusterSize };
        if (value < references)
          throw new ImageError('CORRUPT', 'a cluster has more references than its refcount says', place);
        if (raise && value + references > geometry.refcountMax) {
          throw new ImageError(
            'TOO_LARGE',
            `refcounts of ${geometry.refcountBits} bits cannot count another snapshot's references`,
            { ...place, help: 'Make an image with wider refcounts (refcount_bits).' },
          );
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

  async #changeSlice(first: number, sign: 1 | -1): Promise<void> {
    const { geometry, refcounts, slices, metadata, allocator } = this.#state.parts;
    const { refcountsPerSlice, refcountOrder, clusterSize, slicesPerCluster } = geometry;
    const slice = refcounts.sliceOf(first);
    if (slice < 0) throw this.#wrong(first);
    await slices.hold(slice, 'refcount');
    try {
      const bytes = slices.modify(slice);
      for (let i = 0; i < refcountsPerSlice; i++) {
        const references = this.#counts.get(first + i);
        if (references === 0) continue;
        const value = getRefcount(bytes, refcountOrder, i);
        if (value === Number.POSITIVE_INFINITY) continue;
        const changed = value + sign * references;
        if (changed < 0) throw this.#wrong(first + i);
        setRefcount(bytes, refcountOrder, i, changed);
        if (changed > 0) continue;
        allocator.freed(first + i);
        if (!metadata.has(first + i)) continue;
        metadata.remove((first + i) * clusterSize, clusterSize);
        slices.forget((first + i) * slicesPerCluster, slicesPerCluster);
      }
    } finally {
      slices.unhold(slice);
    }
  }

  /** Punches out of the file what is about to become free, while nobody can have it yet. */
  async #giveBack(first: number): Promise<void> {
    const { geometry, refcounts, storage } = this.#state.parts;
    const { refcountsPerSlice, clusterSize } = geometry;
    const runs: { first: number; count: number }[] = [];
    await refcounts.visit(first, refcountsPerSlice, (cluster, value) => {
      const references = this.#counts.get(cluster);
      if (references === 0 || value !== references) return;
      const last = runs[runs.length - 1];
      if (last !== undefined && last.first + last.count === cluster) last.count++;
      else runs.push({ first: cluster, count: 1 });
    });
    for (const run of runs) {
      await storage.discard(run.first * clusterSize, run.count * clusterSize).catch(() => false);
    }
  }

  async #relieve(): Promise<void> {
    if (this.#state.parts.cache.pinnedFull) await this.#flush();
  }

  #wrong(cluster: number): ImageError {
    const { storage, geometry } = this.#state.parts;
    return new ImageError('CORRUPT', 'a cluster that was in use has a refcount of 0', {
      path: storage.path,
      field: 'refcount',
      offset: cluster * geometry.clusterSize,
    });
  }
}
