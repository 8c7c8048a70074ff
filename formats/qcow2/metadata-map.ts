import { alignDown } from '../core/units.ts';

/** Small pages: tables are far apart in most images. */
const PAGE_CLUSTERS = 1024;

/**
 * Which clusters of the file hold metadata that is in use: a bit each, in pages that exist where there is any. No data write and no
 * allocation may touch one of them.
 */
export class MetadataMap {
  readonly #pages: (Uint32Array | undefined)[] = [];
  readonly #clusterSize: number;

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
  }

  has(cluster: number): boolean {
    const index = Math.floor(cluster * (1 / PAGE_CLUSTERS));
    const page = this.#pages[index];
    if (page === undefined) return false;
    const bit = cluster - index * PAGE_CLUSTERS; // % on doubles is a call
    return (((page[bit >>> 5] as number) >>> (bit & 31)) & 1) !== 0;
  }

  /** The first cluster of [from, to) that holds metadata; `to` when none does. */
  firstIn(from: number, to: number): number {
    for (let cluster = from; cluster < to; cluster++) {
      if (this.#pages[Math.floor(cluster / PAGE_CLUSTERS)] === undefined) {
        cluster = alignDown(cluster, PAGE_CLUSTERS) + PAGE_CLUSTERS - 1; // none in all of the page
      } else if (this.has(cluster)) return cluster;
    }
    return to;
  }

  /** Marks the clusters of a range of the file. */
  add(offset: number, length: number): void {
    this.#change(offset, length, true);
  }

  remove(offset: number, length: number): void {
    this.#change(offset, length, false);
  }

  #change(offset: number, length: number, value: boolean): void {
    if (length <= 0) return;
    const first = Math.floor(offset / this.#clusterSize);
    const last = Math.floor((offset + length - 1) / this.#clusterSize);
    for (let cluster = first; cluster <= last; cluster++) {
      const index = Math.floor(cluster / PAGE_CLUSTERS);
      let page = this.#pages[index];
      if (page === undefined) {
        if (!value) continue;
        page = new Uint32Array(PAGE_CLUSTERS / 32);
        this.#pages[index] = page;
      }
      const bit = cluster % PAGE_CLUSTERS;
      const mask = 1 << (bit & 31);
      page[bit >>> 5] = value ? (page[bit >>> 5] as number) | mask : (page[bit >>> 5] as number) & ~mask;
    }
  }
}
