/** What a disk may show at any moment, by sector: the last acknowledged write, or one that was under way beside it or since. */

export const SECTOR = 512;
const WORDS = SECTOR / 4;
/** Of a sector that is neither zeros nor what was written there. */
const FOREIGN = -1;

interface Change {
  /** Tells it from other changes; 0 for zeros. */
  readonly stamp: number;
  readonly issuedAt: number;
  /** Acknowledged, or failed. */
  endedAt: number;
}

export class SectorModel {
  /** By sector: the changes whose result it may hold. */
  readonly #sectors: Change[][];
  #now = 0;
  #stamps: number;

  /** @param initial stamps of all sectors */
  constructor(initial: readonly number[]) {
    this.#sectors = initial.map((stamp) => [{ stamp, issuedAt: -2, endedAt: -1 }]);
    this.#stamps = Math.max(0, ...initial);
  }

  /** A stamp that no change has yet. */
  newStamp(): number {
    return ++this.#stamps;
  }

  /**
   * Notes a change that begins now and is over when `done` has settled. One that fails may have happened or not, in each sector.
   *
   * @param stamp what is written, as stamped() makes it
   */
  async change(first: number, count: number, stamp: number, done: () => Promise<void>): Promise<void> {
    const change: Change = { stamp, issuedAt: this.#now++, endedAt: Number.POSITIVE_INFINITY };
    for (let i = first; i < first + count; i++) this.#sectors[i]?.push(change);
    try {
      await done();
    } finally {
      change.endedAt = this.#now++;
    }
    // It was acknowledged: what had ended before it began can be there no more. Others beside it may have come first or last.
    for (let i = first; i < first + count; i++) {
      this.#sectors[i] = (this.#sectors[i] ?? []).filter(({ endedAt }) => endedAt >= change.issuedAt);
    }
  }

  /** By sector: the stamps that it may have now. */
  allowed(): number[][] {
    return this.#sectors.map((changes) => changes.map(({ stamp }) => stamp));
  }
}

/** Sectors that tell which change wrote them, and where. @param stamp 0 for zeros */
export function stamped(stamp: number, first: number, count: number): Uint8Array {
  const words = new Uint32Array(count * WORDS);
  for (let i = 0; stamp !== 0 && i < words.length; i += 2) {
    words[i] = stamp;
    words[i + 1] = first + Math.floor(i / WORDS);
  }
  return new Uint8Array(words.buffer);
}

/** Compares a disk with the stamps that its sectors may have. @returns what is wrong, or undefined */
export function wrongSector(disk: Uint8Array, allowed: readonly (readonly number[])[]): string | undefined {
  if (disk.length !== allowed.length * SECTOR) return `${disk.length} bytes instead of ${allowed.length * SECTOR}`;
  const words = new Uint32Array(disk.buffer, disk.byteOffset, disk.length / 4);
  for (const [sector, stamps] of allowed.entries()) {
    const found = stampOf(words, sector);
    if (stamps.includes(found)) continue;
    return `sector ${sector} has stamp ${found === FOREIGN ? 'of none' : found}, not one of ${stamps.join(', ')}`;
  }
  return undefined;
}

function stampOf(words: Uint32Array, sector: number): number {
  const from = sector * WORDS;
  const stamp = words[from] as number;
  const place = stamp === 0 ? 0 : sector;
  for (let i = from; i < from + WORDS; i += 2) {
    if (words[i] !== stamp || words[i + 1] !== place) return FOREIGN;
  }
  return stamp;
}
