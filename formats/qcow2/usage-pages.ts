import { NOBODY } from './owner-sets.ts';
import { PAGE_CLUSTERS, PassPages } from './pass-pages.ts';

/** For 4096 host clusters: who refers to each, and whether its refcount says that somebody does. */
export class UsagePage {
  readonly first: number;
  /** Ids of sets of owners. */
  #sets: Uint16Array | Uint32Array = new Uint16Array(PAGE_CLUSTERS);
  readonly #counted = new Uint8Array(PAGE_CLUSTERS / 8);

  constructor(first: number) {
    this.first = first;
  }

  get byteLength(): number {
    return this.#sets.byteLength + this.#counted.byteLength;
  }

  set(index: number): number {
    return this.#sets[index] as number;
  }

  /** @returns bytes that the page has grown by */
  setTo(index: number, id: number): number {
    let grown = 0;
    if (id > 0xffff && this.#sets instanceof Uint16Array) {
      grown = this.#sets.byteLength;
      this.#sets = new Uint32Array(this.#sets);
    }
    this.#sets[index] = id;
    return grown;
  }

  count(index: number): void {
    this.#counted[index >>> 3] = (this.#counted[index >>> 3] as number) | (1 << (index & 7));
  }

  isCounted(index: number): boolean {
    return ((this.#counted[index >>> 3] as number) & (1 << (index & 7))) !== 0;
  }
}

export class UsagePages extends PassPages<UsagePage> {
  constructor(budget?: number) {
    super((first) => new UsagePage(first), budget);
  }

  /** Who refers to a cluster so far; undefined when it is not of this pass. */
  get(cluster: number): number | undefined {
    const page = this.page(cluster);
    return page === undefined ? undefined : page.set(cluster - page.first);
  }

  set(cluster: number, id: number): void {
    const page = this.page(cluster);
    if (page === undefined || id === NOBODY) return;
    const grown = page.setTo(cluster - page.first, id);
    if (grown > 0) this.grew(grown);
  }

  count(cluster: number): void {
    const page = this.page(cluster);
    page?.count(cluster - page.first);
  }
}
