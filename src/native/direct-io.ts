/** Reads and writes on the event loop, for what does not wait: data in the page cache, file systems that are memory. */

import type { IoVec } from '../../formats/core/iov.ts';
import { native } from './binding.ts';
import { EINVAL } from './errno.ts';
import { addressOf } from './memory.ts';

/** preadv2 with RWF_NOWAIT: what is in the page cache. May be short. */
export const READ_CACHED = 0;
/** Plain preadv: for file systems that are memory. Short only at the end of the file. */
export const READ_MEMORY = 1;
/** pwritev2 with RWF_NOWAIT. */
export const WRITE_NO_WAIT = 2;
/** Plain pwritev. */
export const WRITE = 3;
export type TransferMode = typeof READ_CACHED | typeof READ_MEMORY | typeof WRITE_NO_WAIT | typeof WRITE;

const words = native?.transferWords ?? new Float64Array(0);
const MAX_SEGMENTS = Math.max(0, (words.length - 4) >>> 1);

/**
 * Moves all of `iov` from or to `offset` of the file, now.
 *
 * @returns bytes moved, or a negative errno: EOPNOTSUPP when file system or platform has no such mode, EAGAIN when it would wait,
 *   EINVAL also for lists of more segments than one call takes
 */
export function transferNow(mode: TransferMode, fd: number, offset: number, iov: IoVec): number {
  const { count, memory, offsets, lengths } = iov;
  if (count > MAX_SEGMENTS) return EINVAL;
  let at = 4;
  for (let i = 0; i < count; i++) {
    const view = memory[i] as Uint8Array;
    const start = offsets[i] as number;
    const length = lengths[i] as number;
    // Native code takes addresses: what is out of bounds here would be somebody else's memory there.
    if (!(start >= 0 && start + length <= view.length)) throw new RangeError('a segment is not inside its memory');
    words[at++] = addressOf(view) + start;
    words[at++] = length;
  }
  words[0] = mode;
  words[1] = fd;
  words[2] = offset;
  words[3] = count;
  native?.transfer();
  return words[0];
}

/** Microseconds that the last write by transferNow took. */
export function lastWriteUs(): number {
  return words[1] as number;
}
