/**
 * Random numbers that can be had again: seeded from LUNETTE_SEED, or anew in each run. A test prints the seed by
 * passing `t` (node:test shows diagnostics of the test), so that `LUNETTE_SEED=N` repeats a failure.
 */

import type { TestContext } from 'node:test';

/** The seed of this run: LUNETTE_SEED, or one drawn now. An integer in 0..2^32-1. */
export function seedOfRun(): number {
  const given = process.env.LUNETTE_SEED;
  if (given === undefined || given === '') return Math.floor(Math.random() * 2 ** 32);
  const seed = Number(given);
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32)
    throw new Error(`LUNETTE_SEED=${given} is not in 0..2^32-1`);
  return seed;
}

/** A seeded generator of 32 bits (splitmix32): fast, repeatable, not for secrets. */
export class Random {
  readonly seed: number;
  #state: number;

  constructor(seed: number) {
    this.seed = seed >>> 0;
    this.#state = this.seed;
  }

  /** An integer in 0..2^32-1. */
  next(): number {
    this.#state = (this.#state + 0x9e3779b9) | 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  }

  /** A number in [0, 1) with 53 random bits. */
  fraction(): number {
    return ((this.next() >>> 5) * 2 ** 26 + (this.next() >>> 6)) / 2 ** 53;
  }

  /** An integer in [0, below); `below` may exceed 2^32. */
  below(below: number): number {
    return Math.floor(this.fraction() * below);
  }

  /** An integer in [from, to], both included. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  /** True with this probability. */
  chance(probability: number): boolean {
    return this.fraction() < probability;
  }

  /** One of the items. */
  pick<T>(items: readonly T[]): T {
    if (items.length === 0) throw new Error('pick from nothing');
    return items[this.below(items.length)] as T;
  }

  /** Fills the bytes and gives them back. */
  fill<T extends Uint8Array>(bytes: T): T {
    let at = 0;
    for (; at + 4 <= bytes.length; at += 4) {
      const word = this.next();
      bytes[at] = word;
      bytes[at + 1] = word >>> 8;
      bytes[at + 2] = word >>> 16;
      bytes[at + 3] = word >>> 24;
    }
    if (at < bytes.length) {
      for (let word = this.next(); at < bytes.length; at++, word >>>= 8) bytes[at] = word;
    }
    return bytes;
  }

  /** That many random bytes. */
  bytes(length: number): Uint8Array {
    return this.fill(new Uint8Array(length));
  }

  /** Shuffles in place and gives the array back. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const swapped = items[i] as T;
      items[i] = items[j] as T;
      items[j] = swapped;
    }
    return items;
  }
}

/** The generator for one test; says how to repeat it in the test's output. */
export function randomFor(t: Pick<TestContext, 'diagnostic'>, seed = seedOfRun()): Random {
  t.diagnostic(`LUNETTE_SEED=${seed} repeats this test`);
  return new Random(seed);
}
