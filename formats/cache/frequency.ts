/**
 * About how often each key was counted lately: a count-min sketch, two rows of saturating bytes, all halved every now and
 * then. Never too low before the halving; too high when keys collide.
 */
export class FrequencySketch {
  readonly #mask: number;
  readonly #rows: Uint8Array;
  #untilHalving: number;

  /** @param keys about how many keys are of interest at a time */
  constructor(keys: number) {
    const width = 2 ** Math.ceil(Math.log2(Math.min(2 ** 20, Math.max(256, keys))));
    this.#mask = width - 1;
    this.#rows = new Uint8Array(width * 2);
    this.#untilHalving = width * HALVE_AFTER;
  }

  count(key: number): void {
    const first = hash(key, 0x9e3779b1) & this.#mask;
    const second = (hash(key, 0x85ebca77) & this.#mask) + this.#mask + 1;
    const rows = this.#rows;
    if ((rows[first] as number) < 255) rows[first] = (rows[first] as number) + 1;
    if ((rows[second] as number) < 255) rows[second] = (rows[second] as number) + 1;
    if (--this.#untilHalving === 0) this.#halve();
  }

  /** 0..255. */
  estimate(key: number): number {
    const first = this.#rows[hash(key, 0x9e3779b1) & this.#mask] as number;
    const second = this.#rows[(hash(key, 0x85ebca77) & this.#mask) + this.#mask + 1] as number;
    return Math.min(first, second);
  }

  #halve(): void {
    const rows = this.#rows;
    for (let at = 0; at < rows.length; at++) rows[at] = (rows[at] as number) >>> 1;
    this.#untilHalving = (this.#mask + 1) * HALVE_AFTER;
  }
}

/** Counts per key, on average, after which what was before counts half. */
const HALVE_AFTER = 8;

function hash(key: number, multiplier: number): number {
  // Keys above 2^32 are possible; their high part must not be lost.
  let h = Math.imul(key ^ (key / 2 ** 32), multiplier);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  return h ^ (h >>> 13);
}
