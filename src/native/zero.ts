/** Whether memory holds only zeros. */

import { native } from './binding.ts';

/** True when [offset, offset + length) of `memory` is zeros. */
export type IsZero = (memory: Uint8Array, offset: number, length: number) => boolean;

/** Without the addon: compares with zeros that are known, by the fast comparison of Node's buffers. */
export const isZeroPlain: IsZero = (memory, offset, length) => {
  if (!(offset >= 0 && length >= 0 && offset + length <= memory.length)) {
    throw new RangeError('the range is not inside the memory');
  }
  const end = offset + length;
  // Most data that is not zero shows it at once.
  if (length > 0 && (memory[offset] !== 0 || memory[end - 1] !== 0)) return false;
  for (let at = offset; at < end; at += ZEROS.length) {
    const take = Math.min(ZEROS.length, end - at);
    const part = Buffer.from(memory.buffer, memory.byteOffset + at, take);
    if (part.compare(ZEROS, 0, take) !== 0) return false;
  }
  return true;
};

/** The fastest that there is here. */
export const isZero: IsZero = native?.isZero ?? isZeroPlain;

const ZEROS = new Uint8Array(64 * 1024);
