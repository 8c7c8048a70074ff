/** Bytes of bits that are there or not: 2 GiB of the disk at a granularity of 64 KiB. */
const PAGE = 4096;
const PAGE_BITS = PAGE * 8;
/** What an entry of the map costs beside its bytes, about. */
const ENTRY_BYTES = 64;
/** A page in which all bits are set; never written to. */
const ALL = new Uint8Array(PAGE).fill(0xff);

/**
 * Bits of a dirty bitmap in memory, as far as any are set: a page exists once something in it is dirty. Bit i of byte n stands for
 * granule 8n + i.
 */
export class DirtyBits {
  readonly granularity: number;
  readonly #pages = new Map<number, Uint8Array>();
  /** The page used last: writes come in places near each other. */
  #lastIndex = -1;
  #last: Uint8Array = ALL;
  /** Granules that were set last, first and last: most writes come to where one was before. */
  #from = 0;
  #to = -1;

  constructor(granularity: number) {
    this.granularity = granularity;
  }

  get empty(): boolean {
    return this.#pages.size === 0;
  }

  /** Memory in use, bytes, about. */
  get bytes(): number {
    return this.#pages.size * (PAGE + ENTRY_BYTES);
  }

  /** Sets the bits of a range of the disk, bytes. */
  mark(offset: number, length: number): void {
    if (length <= 0) return;
    const first = Math.floor(offset / this.granularity);
    const last = Math.floor((offset + length - 1) / this.granularity);
    if (first >= this.#from && last <= this.#to) return;
    for (let at = first; at <= last; ) {
      const index = Math.floor(at / PAGE_BITS);
      const start = at - index * PAGE_BITS;
      const end = Math.min(PAGE_BITS, last + 1 - index * PAGE_BITS);
      if (start === 0 && end === PAGE_BITS) {
        this.#pages.set(index, ALL);
        if (index === this.#lastIndex) this.#last = ALL;
      } else {
        const page = this.#pageAt(index);
        if (page !== ALL) setBits(page, start, end);
      }
      at = index * PAGE_BITS + end;
    }
    this.#from = first;
    this.#to = last;
  }

  /** Adds all bits of another set of the same granularity. */
  add(other: DirtyBits): void {
    for (const [index, bytes] of other.#pages) {
      const page = bytes === ALL ? ALL : this.#pageAt(index);
      if (page === ALL) this.#pages.set(index, ALL);
      else for (let i = 0; i < PAGE; i++) page[i] = (page[i] as number) | (bytes[i] as number);
    }
    this.#lastIndex = -1;
  }

  /** Forgets all bits from a size of the disk on. */
  truncate(size: number): void {
    const end = Math.ceil(size / this.granularity);
    for (const [index, bytes] of this.#pages) {
      const keep = end - index * PAGE_BITS;
      if (keep <= 0) this.#pages.delete(index);
      else if (keep < PAGE_BITS) this.#pages.set(index, clearedFrom(bytes, keep));
    }
    this.#lastIndex = -1;
    this.#from = 0;
    this.#to = -1;
  }

  /** True when something is set in [start, start + length) of the bits' bytes. */
  any(start: number, length: number): boolean {
    const first = Math.floor(start / PAGE);
    const last = Math.floor((start + length - 1) / PAGE);
    if (last - first > this.#pages.size) {
      for (const index of this.#pages.keys()) if (index >= first && index <= last) return true;
      return false;
    }
    for (let index = first; index <= last; index++) if (this.#pages.has(index)) return true;
    return false;
  }

  /** Adds the bits to bytes of a bitmap that begin at byte `start` of it. */
  addTo(bytes: Uint8Array, start: number): void {
    const end = start + bytes.length;
    for (let index = Math.floor(start / PAGE); index * PAGE < end; index++) {
      const page = this.#pages.get(index);
      if (page === undefined) continue;
      const from = Math.max(start, index * PAGE);
      const to = Math.min(end, (index + 1) * PAGE);
      for (let at = from; at < to; at++) {
        bytes[at - start] = (bytes[at - start] as number) | (page[at - index * PAGE] as number);
      }
    }
  }

  #pageAt(index: number): Uint8Array {
    if (index === this.#lastIndex) return this.#last;
    let page = this.#pages.get(index);
    if (page === undefined) {
      page = new Uint8Array(PAGE);
      this.#pages.set(index, page);
    }
    this.#lastIndex = index;
    this.#last = page;
    return page;
  }
}

function setBits(bytes: Uint8Array, from: number, to: number): void {
  for (let bit = from; bit < to; ) {
    if ((bit & 7) === 0 && to - bit >= 8) {
      const whole = bit + ((to - bit) & ~7);
      bytes.fill(0xff, bit >>> 3, whole >>> 3);
      bit = whole;
    } else {
      bytes[bit >>> 3] = (bytes[bit >>> 3] as number) | (1 << (bit & 7));
      bit++;
    }
  }
}

/** A copy without the bits from `bit` on. */
export function clearedFrom(bytes: Uint8Array, bit: number): Uint8Array {
  const result = bytes.slice();
  const at = bit >>> 3;
  if (at >= result.length) return result;
  result[at] = (result[at] as number) & ((1 << (bit & 7)) - 1);
  result.fill(0, at + 1);
  return result;
}

/** True when all bytes are the same one. */
export function allBytesAre(bytes: Uint8Array, value: number): boolean {
  for (let i = 0; i < bytes.length; i++) if (bytes[i] !== value) return false;
  return true;
}
