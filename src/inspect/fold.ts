/** What a page shows in full of a list; of a longer one as many from both ends together. */
export const MAX_LISTED = 1000;

/** A list of which the middle is left out where it is long. */
export interface Folded<T> {
  /** The beginning: all of a list that is not long. */
  readonly first: readonly Place<T>[];
  /** What is left out. */
  readonly between: readonly T[];
  readonly last: readonly Place<T>[];
}

export interface Place<T> {
  readonly item: T;
  /** Where it is in the whole list. */
  readonly index: number;
}

export function fold<T>(list: readonly T[], most = MAX_LISTED): Folded<T> {
  const places = (from: number, to: number): Place<T>[] =>
    list.slice(from, to).map((item, i) => ({ item, index: from + i }));
  if (list.length <= most) return { first: places(0, list.length), between: [], last: [] };
  const half = Math.floor(most / 2);
  const rest = list.length - half;
  return { first: places(0, half), between: list.slice(half, rest), last: places(rest, list.length) };
}

/** Both ends of a folded list, one after the other. */
export function shownOf<T>({ first, last }: Folded<T>): Place<T>[] {
  return [...first, ...last];
}
