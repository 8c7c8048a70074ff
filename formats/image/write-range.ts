import { alignDown, alignUp } from '../core/units.ts';

/** What a change holds while it runs. */
export interface WriteRange {
  /** What changes. */
  readonly offset: number;
  readonly bytes: number;
  readonly start: number;
  readonly length: number;
  /** May change where bytes are. */
  readonly moves: boolean;
}

/** A change of [offset, offset + length) that may move what is in the units it touches. */
export function roundedRange(offset: number, length: number, unit: number): WriteRange {
  if (unit <= 1) return { offset, bytes: length, start: offset, length, moves: true };
  const start = alignDown(offset, unit);
  return { offset, bytes: length, start, length: alignUp(offset + length, unit) - start, moves: true };
}
