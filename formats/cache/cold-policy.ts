/**
 * Whether compressing the blocks of one space pays, learned from what came of it.
 *
 * Two things can make it a waste: blocks that do not shrink, and blocks that nobody asks for again while they are
 * compressed (a scan). Both are seen from outcomes, so the tier starts on and is judged once there are enough. A
 * space that fails is not given up for good: one block in SAMPLE_EVERY is still tried, and may bring it back.
 */

/** A compressed block is kept when it takes at most this part of the plain one. */
export const KEEP_BELOW = 0.6;
/** In a space where it does not pay, every how many evictions one is tried. */
export const SAMPLE_EVERY = 32;

/** Judged after so many tries while on, and after so many while sampling. */
const TRIES_ON = 32;
const TRIES_SAMPLING = 8;
/** Of the tries, the part that must shrink enough. */
const SHRINKING = 0.25;
/** Judged after so many hits and departures while on, and after so many while sampling. */
const OUTCOMES_ON = 256;
const OUTCOMES_SAMPLING = 16;
/**
 * Hits for each block that leaves the cold tier, at least. Compressing takes 0.75 and decompressing 0.3 of the CPU that inflating
 * again would (measured, lz4-napi against zlib on 64 KiB of system files), so one hit for each compression is about even, and it
 * also spares reading the storage.
 */
const HITS_PER_BLOCK = 1;

export class ColdPolicy {
  #shrinks = true;
  #pays = true;
  #sinceSample = 0;
  #tries = 0;
  #kept = 0;
  #hits = 0;
  #expired = 0;

  /** True while every evicted block is compressed, false while only samples are. */
  get on(): boolean {
    return this.#shrinks && this.#pays;
  }

  /** Asked once for each block that falls out of the warm part: compress this one? */
  wants(): boolean {
    if (this.on) return true;
    if (++this.#sinceSample < SAMPLE_EVERY) return false;
    this.#sinceSample = 0;
    return true;
  }

  /** A block was compressed. @returns whether it shrank enough to be kept */
  tried(plain: number, compressed: number): boolean {
    const keep = compressed <= plain * KEEP_BELOW;
    this.#tries++;
    if (keep) this.#kept++;
    if (this.#tries >= (this.#shrinks ? TRIES_ON : TRIES_SAMPLING)) {
      this.#shrinks = this.#kept >= this.#tries * SHRINKING;
      this.#tries = 0;
      this.#kept = 0;
    }
    return keep;
  }

  /** A compressed block was asked for. */
  hit(): void {
    this.#hits++;
    this.#judge();
  }

  /** A compressed block left the cache unwanted. */
  expired(): void {
    this.#expired++;
    this.#judge();
  }

  #judge(): void {
    const outcomes = this.#hits + this.#expired;
    if (outcomes < (this.#pays ? OUTCOMES_ON : OUTCOMES_SAMPLING)) return;
    this.#pays = this.#hits >= this.#expired * HITS_PER_BLOCK;
    this.#hits = 0;
    this.#expired = 0;
  }
}
