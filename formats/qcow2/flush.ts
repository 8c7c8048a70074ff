import { ImageError, LunetteError } from '../core/errors.ts';
import { Turns } from '../core/turns.ts';
import { settle } from '../image/chain-read.ts';
import { type TableWrite, writeTable } from './pointer-table.ts';
import type { RefcountTableJob } from './refcount.ts';
import type { SliceBatch } from './slices.ts';
import { Unlinked } from './unlinked.ts';
import type { WriteState } from './write-state.ts';

/** Clusters that are freed before others get their turn at the tables. */
const MAX_FREED = 4096;

/** All that was dirty at one moment. */
interface Job {
  readonly refcounts: SliceBatch;
  /** The stock whose refcounts are among them, or were written before. */
  readonly stock: number | undefined;
  readonly table: RefcountTableJob;
  readonly mappings: SliceBatch;
  readonly l1: readonly TableWrite[];
  readonly unlinked: Unlinked;
}

/**
 * Writes metadata back in the order that survives a power cut:
 *
 * A. refcounts, new refcount blocks and tables; sync, an external data file too. Everything that was written before is durable now:
 *    data, new L2 tables.
 *    (A'. what points to new refcount structures; sync.)
 * B. L2 entries, as they were when A began; sync.
 * C. L1 entries, as they were then; sync.
 * D. what those entries referred to before is free: refcounts are lowered in memory, space is given back.
 *
 * Steps without anything to write are left out. After an error that is no failed sync everything is dirty again, and nothing was freed.
 */
export class Flusher {
  readonly #state: WriteState;
  readonly #turns = new Turns((whole) => (whole ? this.#flush(true) : this.#publish()));
  /** Lists of dropped clusters that wait for readers or for the file system. */
  readonly #quarantine = new Set<Promise<void>>();
  readonly #mayPostpone: () => boolean;
  /** Somebody wants refcounts written also where they may wait. */
  #whole = false;

  /** @param mayPostpone whether the file says now that its refcounts may be wrong (the dirty bit): L2 entries need not wait for them then */
  constructor(state: WriteState, mayPostpone: () => boolean) {
    this.#state = state;
    this.#mayPostpone = mayPostpone;
  }

  /** True while space waits to be freed that a flush, or waiting, would free. */
  get holdsSpace(): boolean {
    return this.#quarantine.size > 0 || !this.#state.unlinked.empty;
  }

  /**
   * Flushes; callers that come while a flush runs share the next one.
   *
   * @param postpone leave refcounts in memory where the dirty bit says, when it begins, that they may be (lazy refcounts)
   */
  flush(postpone = false): Promise<void> {
    if (!postpone) this.#whole = true;
    return this.#turns.ask(true);
  }

  /**
   * Writes L2 entries without waiting for the disk, where they may come to it at any time: see Stock. Others are written behind a sync of what
   * they point to, as in a flush, but nobody waits until the disk has them. Either way, all that had changed is in the file, and outlives
   * this process.
   */
  publish(): Promise<void> {
    // Data in a file of its own takes none of it.
    if (!this.#state.external) this.#state.parts.allocator.stock();
    return this.#turns.ask(false);
  }

  /** Resolves when nothing is in quarantine any more. */
  async settled(): Promise<void> {
    while (this.#quarantine.size > 0) await Promise.all(this.#quarantine);
  }

  async #publish(): Promise<void> {
    this.#state.check();
    const { slices, l1, refcounts } = this.#state.parts;
    // Nobody is in the middle of a change of such slices: each is made in one tick.
    const batch = l1.dirty || refcounts.tableChanged ? undefined : slices.takeFree();
    if (batch === undefined) return this.#flush(false);
    try {
      await slices.writeBatch(batch);
      slices.finishBatch(batch);
    } catch (error) {
      slices.returnBatch(batch);
      throw error;
    }
  }

  /** @param durable the last that is written as well; else the next sync covers it, which every flush begins with */
  async #flush(durable: boolean): Promise<void> {
    this.#state.check();
    // The mutex: nobody is in the middle of a change when the dirty slices are taken.
    const job = await this.#state.parts.mutex.run(() => this.#take());
    try {
      // What is referred to no more is free once the disk knows, and not to be kept for long.
      await this.#write(job, durable || !job.unlinked.empty);
    } catch (error) {
      this.#return(job);
      throw error;
    }
    if (job.stock !== undefined) this.#state.parts.allocator.settled(job.stock);
    if (!job.unlinked.empty) await this.#release(job.unlinked);
  }

  #take(): Job {
    const { slices, refcounts, l1, allocator } = this.#state.parts;
    // New blocks are never postponed: who counts references after a power cut finds a place for each count.
    const whole = this.#whole || !this.#mayPostpone() || refcounts.tableChanged || this.#state.parts.cache.pinnedFull;
    this.#whole = false;
    const job: Job = {
      refcounts: whole ? slices.takeDirty('refcount') : { slices: [], bytes: [] },
      stock: whole ? allocator.stockGeneration : undefined,
      table: refcounts.takeTable(),
      mappings: slices.takeDirty('mapping'),
      l1: l1.takeDirty(),
      unlinked: this.#state.unlinked,
    };
    this.#state.unlinked = new Unlinked();
    return job;
  }

  async #write(job: Job, durable: boolean): Promise<void> {
    const { storage, slices, refcounts, header } = this.#state.parts;
    await slices.writeBatch(job.refcounts);
    await refcounts.writeMoved(job.table);
    await this.sync(true);
    slices.finishBatch(job.refcounts);
    if (await refcounts.link(job.table, header)) await this.sync();
    if (job.mappings.slices.length > 0) {
      await slices.writeBatch(job.mappings);
      if (durable || job.l1.length > 0) await this.sync();
      slices.finishBatch(job.mappings);
    }
    if (job.l1.length > 0) {
      await writeTable(storage, job.l1);
      if (durable) await this.sync();
    }
  }

  /** A sync that fails may have lost writes that were reported as done: it is never tried again. */
  async sync(dataAsWell = false): Promise<void> {
    const { storage, dataStorage } = this.#state.parts;
    this.#state.check();
    try {
      if (dataAsWell && this.#state.external) await settle([dataStorage.sync(), storage.sync()]);
      else await storage.sync();
    } catch (error) {
      const failure = new LunetteError(
        'IO',
        'making writes durable failed: nothing more is written until it is opened again',
        {
          path: this.#state.parts.storage.path,
          cause: error,
        },
      );
      this.#state.stop(failure);
      throw failure;
    }
  }

  #return(job: Job): void {
    const { slices, refcounts, l1 } = this.#state.parts;
    slices.returnBatch(job.refcounts);
    refcounts.returnTable(job.table);
    slices.returnBatch(job.mappings);
    l1.returned(job.l1);
    this.#state.unlinked.prepend(job.unlinked);
  }

  /** Frees what is referred to no more: now, when nobody is reading, else as soon as those who read are done. */
  async #release(unlinked: Unlinked): Promise<void> {
    const { leases } = this.#state.parts;
    const idle = leases.idle;
    const work = (idle ? this.#free(unlinked) : leases.quiesced().then(() => this.#free(unlinked))).catch(
      async (error: unknown) => {
        // Counts that were not lowered are leaks, which do no harm; a count that was too low already is no accident.
        if (error instanceof ImageError && error.code === 'CORRUPT') await this.#state.markCorrupt(error);
      },
    );
    this.#quarantine.add(work);
    const done = work.finally(() => this.#quarantine.delete(work));
    if (idle) await done;
  }

  async #free(unlinked: Unlinked): Promise<void> {
    const { storage, geometry, refcounts, allocator, metadata, slices, mutex } = this.#state.parts;
    const { clusterSize, slicesPerCluster } = geometry;
    const punched: { first: number; count: number }[] = [];
    const free = async (first: number, count: number): Promise<void> => {
      await refcounts.lower(first, count);
      for (let cluster = first; cluster < first + count; cluster++) {
        if (metadata.has(cluster) && (await refcounts.get(cluster)) === 0) {
          metadata.remove(cluster * clusterSize, clusterSize);
          slices.forget(cluster * slicesPerCluster, slicesPerCluster);
        }
      }
      allocator.freed(first);
    };
    for (const run of unlinked.sorted()) {
      for (let first = run.first; first < run.first + run.count; first += MAX_FREED) {
        const count = Math.min(MAX_FREED, run.first + run.count - first);
        await mutex.run(async () => {
          this.#state.packed.leave(first, count);
          if (!run.punch) return free(first, count);
          // Space of the last reference goes back to the file system while the cluster still counts as used: nobody can have it meanwhile.
          const shared: number[] = [];
          await refcounts.visit(first, count, (cluster, value) => {
            const last = punched[punched.length - 1];
            if (value !== 1) shared.push(cluster);
            else if (last !== undefined && last.first + last.count === cluster) last.count++;
            else punched.push({ first: cluster, count: 1 });
          });
          for (const cluster of shared) await free(cluster, 1);
        });
      }
    }
    for (const { first, count } of punched) {
      await storage.discard(first * clusterSize, count * clusterSize).catch(() => false);
      await mutex.run(() => free(first, count));
    }
  }
}
