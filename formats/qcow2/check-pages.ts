import { PAGE_CLUSTERS as PAGE, PassPages } from './pass-pages.ts';

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
 * Counters of references and refcounts of the clusters that one pass over an image looks at: of 24 Mi clusters, 1.5 TiB of clusters of
 * 64 KiB, unless many have more than 255 references.
 */
export class CheckPages extends PassPages<CheckPage> {
  constructor(budget?: number) {
    super((first) => new CheckPage(first), budget);
  }

  /** Counts references to a cluster. */
  add(cluster: number, references: number): void {
    const page = this.page(cluster);
    if (page === undefined) return;
    const grown = page.add(cluster - page.first, references);
    if (grown > 0) this.grew(grown);
  }

  setRefcount(cluster: number, refcount: number): void {
    const page = this.page(cluster);
    if (page === undefined) return;
    const grown = page.setRefcount(cluster - page.first, refcount);
    if (grown > 0) this.grew(grown);
  }

  /** References to a cluster; undefined when it is not of this pass. */
  references(cluster: number): number | undefined {
    const page = this.page(cluster);
    return page?.references(cluster - page.first);
  }
}
