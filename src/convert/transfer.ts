import { MiB } from '../../formats/core/units.ts';
import type { Image, Storage } from '../../formats/index.ts';
import type { DataRun } from './runs.ts';

/** Bytes of one native call: long enough that what JavaScript does for each does not count, short enough to be interrupted. */
const PIECE = 8 * MiB;
/** Shorter runs are gathered into larger writes instead. */
export const SHORTEST_TRANSFER = 512 * 1024;

export interface TransferOptions {
  /** Zeros are told apart in units of so many bytes; 0: not at all. */
  readonly unit: number;
  /** Zeros need not be written. */
  readonly targetIsZero: boolean;
  /** Called before each piece: throws to end it. */
  readonly check: () => void;
  /** Called behind each piece. */
  readonly done: (offset: number) => void;
}

/** A part of a piece, from its start on. */
interface Part {
  readonly at: number;
  readonly length: number;
  readonly zero: boolean;
}

/**
 * Copies a run between files within native code, so that its bytes stay on one core and are nobody's garbage. While one piece is written, the
 * next is looked through for zeros.
 *
 * @returns bytes from the run's start that are done; the rest cannot be done like this
 */
export async function transferRun(
  { offset, length, storage, storageOffset }: DataRun & { readonly storage: Storage },
  target: Image,
  options: TransferOptions,
): Promise<number> {
  const { unit, targetIsZero } = options;
  const leavesOut = unit !== 0 && targetIsZero && target.limits.allocationUnit === 1;
  const look = async (at: number): Promise<readonly Part[] | undefined> => {
    const take = Math.min(PIECE, length - at);
    if (unit === 0 || leavesOut) return [{ at: 0, length: take, zero: false }];
    return zeroPartsOf(storage, storageOffset + at, take, unit);
  };
  let ahead = look(0);
  try {
    for (let at = 0; at < length; at += PIECE) {
      const parts = await ahead;
      if (parts === undefined) return at;
      options.check();
      if (at + PIECE < length) {
        ahead = look(at + PIECE);
        ahead.catch(() => undefined); // the next turn hears of it
      }
      for (const part of parts) {
        const start = at + part.at;
        if (!part.zero) {
          const leaveOut = leavesOut ? unit : 0;
          const from = { source: storage, sourceOffset: storageOffset + start, leaveOut };
          const done = await target.copyFrom?.(offset + start, part.length, from);
          if (done !== part.length) return start + (done ?? 0);
        } else if (!targetIsZero) {
          await target.writeZeroes(offset + start, part.length, true);
        }
      }
      options.done(offset + Math.min(length, at + PIECE));
    }
  } finally {
    await ahead.catch(() => undefined);
  }
  return length;
}

/** @returns undefined when the storage cannot tell */
async function zeroPartsOf(
  storage: Storage,
  offset: number,
  length: number,
  unit: number,
): Promise<readonly Part[] | undefined> {
  const zeros = new Uint8Array(Math.ceil(length / unit));
  if ((await storage.zeroUnits?.(offset, length, unit, zeros)) !== true) return undefined;
  const parts: Part[] = [];
  for (let i = 0; i < zeros.length; ) {
    let end = i + 1;
    while (end < zeros.length && zeros[end] === zeros[i]) end++;
    const at = i * unit;
    parts.push({ at, length: Math.min(length, end * unit) - at, zero: zeros[i] === 1 });
    i = end;
  }
  return parts;
}
