/** Small pages of counts: there where something is counted. */
const PAGE = 4096;

/** Counts of clusters that follow each other: those from `cluster` on are counts[from] to counts[to - 1]. */
export interface CountSpan {
  readonly cluster: number;
  readonly counts: Uint32Array;
  readonly from: number;
  readonly to: number;
}

/** How often each host cluster is referred to, counted from scratch: for clusters of the file, however large it claims to be. */
export class ReferenceCounts {
  readonly #pages = new Map<number, Uint32Array>();
  /** The page used last: neighbours are asked for one after the other. */
  #lastIndex = -1;
  #last: Uint32Array | undefined;
  /** Clusters up to and without this one may be referred to. */
  readonly limit: number;

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Counts references to clusters that follow each other. @returns false when one of them is outside the limit: nothing was counted */
  add(first: number, count: number, references: number): boolean {
    if (!(first >= 0 && first + count <= this.limit)) return false;
    for (let cluster = first; cluster < first + count; ) {
      const index = Math.floor(cluster / PAGE);
      const page = this.#ensurePage(index);
      const start = cluster - index * PAGE;
      const stop = Math.min(PAGE, start + first + count - cluster);
      for (let i = start; i < stop; i++) page[i] = (page[i] as number) + references;
      cluster += stop - start;
    }
    return true;
  }

  get(cluster: number): number {
    const index = Math.floor(cluster / PAGE);
    const page = index === this.#lastIndex ? this.#last : this.#pageAt(index);
    return page === undefined ? 0 : (page[cluster - index * PAGE] as number);
  }

  set(cluster: number, references: number): void {
    const index = Math.floor(cluster / PAGE);
    this.#ensurePage(index)[cluster - index * PAGE] = references;
  }

  /** The counts of [first, end) that may be other than zero. */
  *spans(first: number, end: number): Generator<CountSpan> {
    for (let cluster = first; cluster < end; ) {
      const index = Math.floor(cluster / PAGE);
      const from = cluster - index * PAGE;
      const to = Math.min(PAGE, end - index * PAGE);
      const counts = index === this.#lastIndex ? this.#last : this.#pageAt(index);
      if (counts !== undefined) yield { cluster, counts, from, to };
      cluster += to - from;
    }
  }

  /** Takes off both what they have in common: what is left is the difference between the two. */
  cancel(other: ReferenceCounts): void {
    for (const [index, page] of this.#pages) {
      const against = other.#pages.get(index);
      if (against === undefined) continue;
      for (let i = 0; i < PAGE; i++) {
        const common = Math.min(page[i] as number, against[i] as number);
        page[i] = (page[i] as number) - common;
        against[i] = (against[i] as number) - common;
      }
    }
  }

  #ensurePage(index: number): Uint32Array {
    let page = index === this.#lastIndex ? this.#last : this.#pageAt(index);
    if (page === undefined) {
      page = new Uint32Array(PAGE);
      this.#pages.set(index, page);
      this.#last = page;
    }
    return page;
  }

  #pageAt(index: number): Uint32Array | undefined {
    this.#lastIndex = index;
    this.#last = this.#pages.get(index);
    return this.#last;
  }

  /** True when a cluster of [first, end) is referred to. Takes time by what was counted, not by how far apart the ends are. */
  anyIn(first: number, end: number): boolean {
    const from = Math.floor(first / PAGE);
    const to = Math.ceil(end / PAGE);
    if (to - from > this.#pages.size) {
      for (const index of this.#pages.keys()) {
        if (index >= from && index < to && this.#anyInPage(index, first, end)) return true;
      }
      return false;
    }
    for (let index = from; index < to; index++) {
      if (this.#anyInPage(index, first, end)) return true;
    }
    return false;
  }

  #anyInPage(index: number, first: number, end: number): boolean {
    const page = this.#pages.get(index);
    if (page === undefined) return false;
    const start = index * PAGE;
    for (let i = Math.max(0, first - start); i < Math.min(PAGE, end - start); i++) {
      if (page[i] !== 0) return true;
    }
    return false;
  }
}
