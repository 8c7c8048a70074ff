/** Clusters of a page. */
const PAGE = 4096;
/** Bytes of counters in one pass: 24 Mi clusters, 1.5 TiB of clusters of 64 KiB, unless many have more than 255 references. */
const BUDGET = 48 * 1024 * 1024;
/** Passes after which a file is too spread out to be checked: each counts more than 24 million clusters, or 6000 far from each other. */
export const MAX_PASSES = 1000;

type Counters = Uint8Array | Uint16Array | Uint32Array;
const TOP = 0xffffffff;

/** What is known of 4096 host clusters that follow each other. */
export class CheckPage {
  readonly first: number;
  #references: Counters = new Uint8Array(PAGE);
  #refcounts: Counters = new Uint8Array(PAGE);

  constructor(first: number) {
    this.first = first;
  }

  get length(): number {
    return PAGE;
  }

  get byteLength(): number {
    return this.#references.byteLength + this.#refcounts.byteLength;
  }

  references(index: number): number {
    return this.#references[index] as number;
  }

  refcount(index: number): number {
    return this.#refcounts[index] as number;
  }

  /** @returns bytes that the page has grown by */
  add(index: number, references: number): number {
    const sum = (this.#references[index] as number) + references;
    if (sum <= 255 || sum <= maxOf(this.#references)) {
      this.#references[index] = sum;
      return 0;
    }
    const before = this.#references.byteLength;
    this.#references = widened(this.#references, sum);
    this.#references[index] = Math.min(sum, TOP);
    return this.#references.byteLength - before;
  }

  setRefcount(index: number, refcount: number): number {
    if (refcount <= 255 || refcount <= maxOf(this.#refcounts)) {
      this.#refcounts[index] = refcount;
      return 0;
    }
    const before = this.#refcounts.byteLength;
    this.#refcounts = widened(this.#refcounts, refcount);
    this.#refcounts[index] = Math.min(refcount, TOP);
    return this.#refcounts.byteLength - before;
  }
}

function maxOf(counters: Counters): number {
  return 2 ** (8 * counters.BYTES_PER_ELEMENT) - 1;
}

function widened(counters: Counters, value: number): Counters {
  if (value <= maxOf(counters)) return counters;
  return value <= 0xffff
    ? new Uint16Array(counters)
    : counters instanceof Uint32Array
      ? counters
      : new Uint32Array(counters);
}

/**
 * Counters of references and refcounts of the clusters that one pass over an image looks at.
 *
 * Pages are made where something is counted, until the budget is used up; what then falls elsewhere is left to the next pass. So the memory
 * has a bound, and the work follows what is in the file, not how large it claims to be.
 */
export class CheckPages {
  readonly #budget: number;
  #pages = new Map<number, CheckPage>();
  readonly #done = new Set<number>();
  #bytes = 0;
  #more = false;
  #last: CheckPage | undefined;

  constructor(budget = BUDGET) {
    this.#budget = budget;
  }

  /** The page of a cluster; undefined when this pass does not look at it. */
  page(cluster: number): CheckPage | undefined {
    const last = this.#last;
    if (last !== undefined && cluster >= last.first && cluster < last.first + PAGE) return last;
    const index = Math.floor(cluster / PAGE);
    const page = this.#pages.get(index) ?? this.#make(index);
    if (page !== undefined) this.#last = page;
    return page;
  }

  #make(index: number): CheckPage | undefined {
    if (this.#done.has(index)) return undefined;
    if (this.#bytes >= this.#budget) {
      this.#more = true;
      return undefined;
    }
    const page = new CheckPage(index * PAGE);
    this.#pages.set(index, page);
    this.#bytes += page.byteLength;
    return page;
  }

  /** Counts references to a cluster. */
  add(cluster: number, references: number): void {
    const page = this.page(cluster);
    if (page !== undefined) this.#bytes += page.add(cluster - page.first, references);
  }

  setRefcount(cluster: number, refcount: number): void {
    const page = this.page(cluster);
    if (page !== undefined) this.#bytes += page.setRefcount(cluster - page.first, refcount);
  }

  /** References to a cluster; undefined when it is not of this pass. */
  references(cluster: number): number | undefined {
    const page = this.page(cluster);
    return page?.references(cluster - page.first);
  }

  /** Pages of this pass, in order. */
  all(): CheckPage[] {
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
