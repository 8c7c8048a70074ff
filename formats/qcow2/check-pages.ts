import { PAGE_CLUSTERS as PAGE, PassPages } from './pass-pages.ts';
import { getRefcount } from './refcount-codec.ts';

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

  /** As add(), for clusters [from, to) of the page. */
  addRun(from: number, to: number, references: number): number {
    const counters = this.#references;
    const top = 255 - references; // wider counters take it as well
    let i = from;
    for (; i < to && (counters[i] as number) <= top; i++) counters[i] = (counters[i] as number) + references;
    let grown = 0;
    for (; i < to; i++) grown += this.add(i, references);
    return grown;
  }

  /** Whether the refcounts of clusters [from, to) are one. @returns the first of which that is not so, `to` when it is so of all */
  notAlone(from: number, to: number): number {
    const counters = this.#refcounts;
    let i = from;
    while (i < to && counters[i] === 1) i++;
    return i;
  }

  /** Whether the refcounts of clusters [from, to) are other than one. @returns as notAlone() */
  alone(from: number, to: number): number {
    const counters = this.#refcounts;
    let i = from;
    while (i < to && counters[i] !== 1) i++;
    return i;
  }

  /** Sets refcounts of clusters [from, to) from a block, where the first of these has the index `at`. @returns bytes that the page has grown by */
  setRefcounts(from: number, to: number, block: Uint8Array, order: number, at: number): number {
    const counters = this.#refcounts;
    let i = from;
    for (; i < to; i++) {
      const refcount = getRefcount(block, order, at + i - from);
      if (refcount > 255) break;
      counters[i] = refcount;
    }
    let grown = 0;
    for (; i < to; i++) grown += this.setRefcount(i, getRefcount(block, order, at + i - from));
    return grown;
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

/** Whether one of the refcounts [from, to) of a block is not 0. */
function hasAny(block: Uint8Array, order: number, from: number, to: number): boolean {
  for (let i = from; i < to; i++) if (getRefcount(block, order, i) !== 0) return true;
  return false;
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

  /** Counts references to clusters that follow each other. */
  addRun(first: number, count: number, references: number): void {
    for (let cluster = first; cluster < first + count; ) {
      const page = this.page(cluster);
      const from = cluster % PAGE;
      const to = Math.min(PAGE, from + first + count - cluster);
      if (page !== undefined) this.grew(page.addRun(from, to, references));
      cluster += to - from;
    }
  }

  /** Takes refcounts from a block that begins with those of cluster `first`: `count` of them. Where all are 0 no page is made. */
  setRefcounts(first: number, count: number, block: Uint8Array, order: number): void {
    for (let at = 0; at < count; ) {
      const from = (first + at) % PAGE;
      const to = Math.min(PAGE, from + count - at);
      if (hasAny(block, order, at, at + to - from)) {
        const page = this.page(first + at);
        if (page !== undefined) this.grew(page.setRefcounts(from, to, block, order, at));
      }
      at += to - from;
    }
  }

  /** References to a cluster; undefined when it is not of this pass. */
  references(cluster: number): number | undefined {
    const page = this.page(cluster);
    return page?.references(cluster - page.first);
  }
}
