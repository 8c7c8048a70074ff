import { MiB } from '../../formats/core/units.ts';
import type { Image, Storage } from '../../formats/index.ts';
import type { DataRun } from './runs.ts';

/** Bytes of one native call: long enough that what JavaScript does for each does not count, short enough to be interrupted. */
const PIECE = 32 * MiB;
/** Pieces in flight. A file takes one write at a time: a third thread would wait for the two that read and write. */
const PARALLEL = 2;
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
 * Copies a run between files within native code: each piece is read and written by one thread, so that its bytes stay on one core and are
 * nobody's garbage. Two pieces are in flight, and told of in the order of the disk.
 *
 * @returns bytes from the run's start that are done; the rest cannot be done like this
 * @throws {LunetteError} what copying throws, for the first piece that fails. Nothing is in flight then
 */
export async function transferRun(
  run: DataRun & { readonly storage: Storage },
  target: Image,
  options: TransferOptions,
): Promise<number> {
  const { offset, length } = run;
  const inFlight: Promise<number>[] = [];
  let done = 0;
  try {
    for (let next = 0; done < length; ) {
      for (; next < length && inFlight.length < PARALLEL; next += PIECE) {
        options.check();
        const piece = transferPiece(run, next, Math.min(PIECE, length - next), target, options);
        piece.catch(() => undefined); // its turn comes below
        inFlight.push(piece);
      }
      const take = Math.min(PIECE, length - done);
      const moved = await (inFlight.shift() as Promise<number>);
      if (moved < take) return done + moved;
      done += take;
      options.done(offset + done);
    }
  } finally {
    await Promise.allSettled(inFlight);
  }
  return done;
}

/** @param at from the run's start. @returns bytes from the piece's start that are done */
async function transferPiece(
  { offset, storage, storageOffset }: DataRun & { readonly storage: Storage },
  at: number,
  length: number,
  target: Image,
  { unit, targetIsZero }: TransferOptions,
): Promise<number> {
  const leavesOut = unit !== 0 && targetIsZero && target.limits.allocationUnit === 1;
  const parts =
    unit === 0 || leavesOut
      ? [{ at: 0, length, zero: false }]
      : await zeroPartsOf(storage, storageOffset + at, length, unit);
  if (parts === undefined) return 0;
  for (const part of parts) {
    const start = at + part.at;
    if (!part.zero) {
      const from = { source: storage, sourceOffset: storageOffset + start, leaveOut: leavesOut ? unit : 0 };
      const done = (await target.copyFrom?.(offset + start, part.length, from)) ?? 0;
      if (done !== part.length) return part.at + done;
    } else if (!targetIsZero) {
      await target.writeZeroes(offset + start, part.length, true);
    }
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
