import type { ClusterRun } from './allocator.ts';

/** Bytes that a stock holds, within the bounds below: what is leaked when the process is killed. */
const STOCK_BYTES = 16 * 1024 * 1024;
const MAX_CLUSTERS = 256;
const MIN_CLUSTERS = 4;

/**
 * Clusters that nobody has yet although they count as used: at the end of the file, never written, within its size.
 *
 * Once their counts and the file's size are durable, an L2 entry may point to one of them at any moment: whatever a power cut leaves of that
 * write, the entry is counted, and shows what was written or the zeros of before. That is what publishing without a sync needs.
 */
export class Stock {
  /** How many there are to be at first. */
  readonly most: number;
  #first = 0;
  #end = 0;
  #settled = false;
  /** Counts the stocks laid in. */
  #generation = 0;

  constructor(clusterSize: number) {
    this.most = Math.max(MIN_CLUSTERS, Math.min(MAX_CLUSTERS, Math.floor(STOCK_BYTES / clusterSize)));
  }

  get empty(): boolean {
    return this.#first === this.#end;
  }

  /** The first cluster, and the one behind the last. */
  get range(): { first: number; end: number } {
    return { first: this.#first, end: this.#end };
  }

  /** Replaces an empty stock. */
  lay(first: number, end: number): void {
    this.#first = first;
    this.#end = end;
    this.#settled = false;
    this.#generation++;
  }

  /** @returns undefined when it is empty */
  take(most: number): ClusterRun | undefined {
    if (this.empty) return undefined;
    const first = this.#first;
    const count = Math.min(most, this.#end - first);
    this.#first += count;
    return { first, count, fresh: true, settled: this.#settled };
  }

  /** To be handed to settle() when everything that is in memory now is durable. */
  get generation(): number {
    return this.#generation;
  }

  settle(generation: number): void {
    if (generation === this.#generation) this.#settled = true;
  }
}
