import { ImageError } from '../core/errors.ts';

/** Sets of nothing: id 0. */
export const NOBODY = 0;

/** Different sets, and numbers to hold them, before an image counts as hostile. */
const MAX_SETS = 2 ** 20;
const MAX_NUMBERS = 2 ** 23;
const MAX_MEMO = 2 ** 20;

/**
 * Sets of owners as small numbers, so that millions of clusters can each have one. A set is held once, as runs of owners that follow each
 * other: what snapshots of one disk share is shared by neighbours in time, so most sets are one run.
 */
export class OwnerSets {
  /** Pairs of first owner and the one behind the last, ascending. */
  readonly #runs: (readonly number[])[] = [[]];
  readonly #ids = new Map<string, number>([['', NOBODY]]);
  #unions = new Map<number, number>();
  #numbers = 0;

  /** How many sets there are; ids are below. */
  get count(): number {
    return this.#runs.length;
  }

  /** The set of one owner. */
  single(owner: number): number {
    return this.#intern([owner, owner + 1]);
  }

  /** Owners of a set, as pairs of the first of a run and the one behind its last. */
  runs(id: number): readonly number[] {
    return this.#runs[id] as readonly number[];
  }

  /** The only owner of a set; -1 when there are none or several. */
  only(id: number): number {
    const runs = this.runs(id);
    return runs.length === 2 && (runs[1] as number) - (runs[0] as number) === 1 ? (runs[0] as number) : -1;
  }

  union(a: number, b: number): number {
    if (a === b || b === NOBODY) return a;
    if (a === NOBODY) return b;
    const key = a < b ? a * MAX_SETS + b : b * MAX_SETS + a;
    const known = this.#unions.get(key);
    if (known !== undefined) return known;
    const id = this.#intern(merged(this.runs(a), this.runs(b)));
    if (this.#unions.size >= MAX_MEMO) this.#unions = new Map();
    this.#unions.set(key, id);
    return id;
  }

  #intern(runs: readonly number[]): number {
    const key = runs.join(' ');
    const known = this.#ids.get(key);
    if (known !== undefined) return known;
    this.#numbers += runs.length;
    if (this.#runs.length >= MAX_SETS || this.#numbers > MAX_NUMBERS) {
      throw new ImageError('TOO_LARGE', 'its snapshots share space in more ways than can be counted');
    }
    const id = this.#runs.length;
    this.#runs.push(runs);
    this.#ids.set(key, id);
    return id;
  }
}

function merged(a: readonly number[], b: readonly number[]): number[] {
  const result: number[] = [];
  for (let i = 0, k = 0; i < a.length || k < b.length; ) {
    const fromA = k >= b.length || (i < a.length && (a[i] as number) <= (b[k] as number));
    const start = (fromA ? a[i] : b[k]) as number;
    const end = (fromA ? a[i + 1] : b[k + 1]) as number;
    if (fromA) i += 2;
    else k += 2;
    const last = result.length - 1;
    if (last > 0 && start <= (result[last] as number)) result[last] = Math.max(result[last] as number, end);
    else result.push(start, end);
  }
  return result;
}
