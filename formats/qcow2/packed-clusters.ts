import { StorageError } from '../core/errors.ts';
import type { WriteState } from './write-state.ts';

/** Where a stream of compressed bytes goes in the file. */
export interface PackedStream {
  readonly offset: number;
  readonly length: number;
}

/**
 * Space for compressed clusters, byte after byte: several share a host cluster, whose refcount counts each of them. Calls hold the
 * writer's mutex.
 */
export class PackedClusters {
  readonly #state: WriteState;
  /** Where the next stream goes, inside the cluster that the last one ended in; 0 when none is begun. */
  #next = 0;

  constructor(state: WriteState) {
    this.#state = state;
  }

  /**
   * Takes space for streams, in their order; the refcounts of the clusters that they touch have been raised.
   *
   * @param lengths bytes of each, less than a cluster
   * @returns places of the first streams; fewer than asked for, but one, where the disk is full
   */
  async allocate(lengths: readonly number[]): Promise<PackedStream[]> {
    const { refcounts, allocator, geometry } = this.#state.parts;
    const { clusterSize, refcountMax } = geometry;
    const placed: PackedStream[] = [];
    let left = lengths.reduce((sum, length) => sum + length, 0);
    /** Clusters that follow the one begun, allocated already and without a stream. */
    let spare = { first: 0, count: 0 };
    let cluster = Math.floor(this.#next / clusterSize);
    let room = this.#next === 0 ? 0 : (cluster + 1) * clusterSize - this.#next;
    let count = room === 0 ? 0 : await refcounts.get(cluster);
    if (count === 0) room = 0;
    /** The count that the file's tables have; `count` is what it becomes. */
    let counted = count;
    const settle = async () => {
      if (count !== counted) await refcounts.set(cluster, count);
      counted = count;
    };
    try {
      for (const length of lengths) {
        if (room === 0 || count >= refcountMax || room < length) {
          if (spare.count === 0) spare = await this.#more(left, room);
          const follows = spare.first === cluster + 1 && room > 0 && count < refcountMax;
          if (follows) count++;
          await settle();
          placed.push({ offset: follows ? this.#next : spare.first * clusterSize, length });
          this.#next = follows ? this.#next + length : spare.first * clusterSize + length;
          cluster = spare.first;
          spare = { first: spare.first + 1, count: spare.count - 1 };
          count = 1;
          counted = 1;
        } else {
          placed.push({ offset: this.#next, length });
          this.#next += length;
          count++;
        }
        room = (cluster + 1) * clusterSize - this.#next;
        left -= length;
      }
      await settle();
      return placed;
    } catch (error) {
      if (placed.length === 0) throw error;
      await settle();
      return placed;
    } finally {
      if (room === 0) this.#next = 0;
      if (spare.count > 0) await allocator.free(spare.first, spare.count);
    }
  }

  /** Gives streams back that nothing refers to. */
  async free(streams: readonly PackedStream[]): Promise<void> {
    const { clusterSize } = this.#state.parts.geometry;
    for (const { offset, length } of streams) {
      const first = Math.floor(offset / clusterSize);
      const count = Math.floor((offset + length - 1) / clusterSize) - first + 1;
      this.leave(first, count);
      await this.#state.parts.allocator.free(first, count);
    }
  }

  /** Clusters lose references, perhaps their last: nothing more is packed into them. */
  leave(first: number, count: number): void {
    const cluster = Math.floor(this.#next / this.#state.parts.geometry.clusterSize);
    if (cluster >= first && cluster < first + count) this.#next = 0;
  }

  /** As leave(), for all clusters. */
  leaveAll(): void {
    this.#next = 0;
  }

  async #more(bytes: number, room: number): Promise<{ first: number; count: number }> {
    const { allocator, geometry, storage } = this.#state.parts;
    const { clusterSize, compressedOffsetBits } = geometry;
    const run = await allocator.allocate(Math.max(1, Math.ceil((bytes - room) / clusterSize)));
    if ((run.first + run.count) * clusterSize <= 2 ** compressedOffsetBits) return run;
    await allocator.free(run.first, run.count);
    throw new StorageError('NO_SPACE', 'compressed clusters cannot lie this far behind in the file', {
      path: storage.path,
    });
  }
}
