/** Clusters of a page. */
export const PAGE_CLUSTERS = 4096;
/** Bytes of counters in one pass. */
const BUDGET = 48 * 1024 * 1024;

/** What is known of PAGE_CLUSTERS host clusters that follow each other. */
export interface Page {
  readonly first: number;
  readonly byteLength: number;
}

/**
 * Pages of counters for the host clusters that one pass over an image looks at.
 *
 * Pages are made where something is counted, until the budget is used up; what then falls elsewhere is left to the next pass. So the memory
 * has a bound, and the work follows what is in the file, not how large it claims to be.
 */
export class PassPages<P extends Page> {
  readonly #budget: number;
  readonly #make: (first: number) => P;
  #pages = new Map<number, P>();
  readonly #done = new Set<number>();
  #bytes = 0;
  #more = false;
  #last: P | undefined;

  constructor(make: (first: number) => P, budget = BUDGET) {
    this.#make = make;
    this.#budget = budget;
  }

  /** The page of a cluster; undefined when this pass does not look at it. */
  page(cluster: number): P | undefined {
    const last = this.#last;
    if (last !== undefined && cluster >= last.first && cluster < last.first + PAGE_CLUSTERS) return last;
    const index = Math.floor(cluster / PAGE_CLUSTERS);
    const page = this.#pages.get(index) ?? this.#add(index);
    if (page !== undefined) this.#last = page;
    return page;
  }

  #add(index: number): P | undefined {
    if (this.#done.has(index)) return undefined;
    if (this.#bytes >= this.#budget) {
      this.#more = true;
      return undefined;
    }
    const page = this.#make(index * PAGE_CLUSTERS);
    this.#pages.set(index, page);
    this.#bytes += page.byteLength;
    return page;
  }

  /** A page has become larger. */
  grew(bytes: number): void {
    this.#bytes += bytes;
  }

  /** Pages of this pass, in order. */
  all(): P[] {
    return [...this.#pages.values()].sort((a, b) => a.first - b.first);
  }

  /** Ends a pass. @returns true when another one is needed */
  next(): boolean {
    const more = this.#more;
    for (const index of this.#pages.keys()) this.#done.add(index);
    this.#pages = new Map();
    this.#last = undefined;
    this.#bytes = 0;
    this.#more = false;
    return more;
  }
}
