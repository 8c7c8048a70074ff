import { getU32, isEmpty, setU32 } from './l2.ts';

/**
 * Refcounts in the bytes of a block, 1 to 64 bits wide: narrower ones than a byte start at its least significant bit, wider ones are big
 * endian. `order` is the logarithm of the width. Values of 2^53 and more read as Infinity.
 *
 * Specification: "Host cluster management".
 */
export function getRefcount(bytes: Uint8Array, order: number, index: number): number {
  switch (order) {
    case 4:
      return ((bytes[index * 2] as number) << 8) | (bytes[index * 2 + 1] as number);
    case 3:
      return bytes[index] as number;
    case 5:
      return getU32(bytes, index * 4);
    case 6: {
      const high = getU32(bytes, index * 8);
      return high >= 0x200000 ? Number.POSITIVE_INFINITY : high * 0x100000000 + getU32(bytes, index * 8 + 4);
    }
    default: {
      const perByte = 8 >> order;
      const width = 1 << order;
      const shift = (index & (perByte - 1)) * width;
      return ((bytes[Math.floor(index / perByte)] as number) >>> shift) & ((1 << width) - 1);
    }
  }
}

export function setRefcount(bytes: Uint8Array, order: number, index: number, value: number): void {
  switch (order) {
    case 4:
      bytes[index * 2] = value >>> 8;
      bytes[index * 2 + 1] = value;
      break;
    case 3:
      bytes[index] = value;
      break;
    case 5:
      setU32(bytes, index * 4, value);
      break;
    case 6:
      setU32(bytes, index * 8, Math.floor(value / 0x100000000));
      setU32(bytes, index * 8 + 4, value % 0x100000000);
      break;
    default: {
      const perByte = 8 >> order;
      const width = 1 << order;
      const shift = (index & (perByte - 1)) * width;
      const at = Math.floor(index / perByte);
      const mask = ((1 << width) - 1) << shift;
      bytes[at] = ((bytes[at] as number) & ~mask) | (value << shift);
    }
  }
}

/** Whether the refcounts of [from, to), some 16 at least and of whole bytes, are all 0. False where looking at each is as well. */
export function areFree(bytes: Uint8Array, order: number, from: number, to: number): boolean {
  if (order < 3 || to - from < 16) return false;
  return isEmpty(bytes, from << (order - 3), to << (order - 3));
}

/** Sets the refcounts of [from, to), which are 0, to 1. */
export function setOnes(bytes: Uint8Array, order: number, from: number, to: number): void {
  if (order < 3) {
    for (let i = from; i < to; i++) setRefcount(bytes, order, i, 1);
    return;
  }
  const width = 1 << (order - 3);
  for (let at = (from + 1) * width - 1; at < to * width; at += width) bytes[at] = 1;
}
