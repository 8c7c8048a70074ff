/**
 * L2 entries as they are in a table: big-endian 64 bits, read as two halves. L1 and refcount table entries share the offset field.
 *
 * Specification: "Cluster mapping", "Standard Cluster Descriptor", "Compressed Clusters Descriptor".
 */

/** Bit 63 in the upper half: refcount is exactly one, the cluster may be written in place. */
export const COPIED = 0x80000000;
/** Bit 62 in the upper half. */
export const COMPRESSED_BIT = 0x40000000;
/** Bits 32 to 55 of the host offset, in the upper half. */
export const OFFSET_HIGH = 0x00ffffff;
/** Bits 9 to 31 of the host offset, in the lower half. */
export const OFFSET_LOW = 0xfffffe00;
/** Bit 0 of the lower half: reads as zeros. */
export const ZERO_BIT = 1;

const TWO_32 = 0x100000000;
const EMPTY = new Uint8Array(4096);

/** The big-endian 32 bits at byte `at`, unsigned. */
export function getU32(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] as number) << 24) |
      ((bytes[at + 1] as number) << 16) |
      ((bytes[at + 2] as number) << 8) |
      (bytes[at + 3] as number)) >>>
    0
  );
}

export function setU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

/** The host offset in a standard entry (also L1): a multiple of 512 below 2^56. */
export function hostOffset(high: number, low: number): number {
  return (high & OFFSET_HIGH) * TWO_32 + ((low & OFFSET_LOW) >>> 0);
}

/** Writes an entry made of a host offset and flags. */
export function setEntry(bytes: Uint8Array, at: number, offset: number, highFlags: number, lowFlags: number): void {
  setU32(bytes, at, (Math.floor(offset / TWO_32) | highFlags) >>> 0);
  setU32(bytes, at + 4, ((offset % TWO_32) | lowFlags) >>> 0);
}

/** Writes standard entries for guest clusters whose host clusters follow each other, each the only reference to its cluster. */
export function setEntryRun(bytes: Uint8Array, at: number, offset: number, count: number, clusterSize: number): void {
  let high = (Math.floor(offset / TWO_32) | COPIED) >>> 0;
  let low = offset % TWO_32;
  for (let end = at + count * 8; at < end; at += 8) {
    setU32(bytes, at, high);
    setU32(bytes, at + 4, low);
    low += clusterSize;
    if (low < TWO_32) continue;
    low = 0; // a multiple of the cluster size
    high++;
  }
}

/** Whether all of [from, to) is zeros: entries that map nothing, refcounts of free clusters. At most a slice. */
export function isEmpty(bytes: Uint8Array, from: number, to: number): boolean {
  return Buffer.compare(bytes.subarray(from, to), EMPTY.subarray(0, to - from)) === 0;
}

/** Where compressed bytes start in the file. May exceed 2^53 in a damaged entry. */
export function compressedOffset(high: number, low: number, offsetBits: number): number {
  return (high & (2 ** (offsetBits - 32) - 1)) * TWO_32 + low;
}

/** How many bytes a compressed cluster takes at most: to the end of its last sector. */
export function compressedLength(high: number, low: number, offsetBits: number): number {
  const sectors = ((high & ~COPIED & ~COMPRESSED_BIT) >>> (offsetBits - 32)) + 1;
  return sectors * 512 - (low & 511);
}

/** Writes the entry of a compressed cluster: where its stream starts, and how many sectors it reaches into beside the first. */
export function setCompressedEntry(
  bytes: Uint8Array,
  at: number,
  offset: number,
  length: number,
  offsetBits: number,
): void {
  const sectors = Math.floor((offset + length - 1) / 512) - Math.floor(offset / 512);
  const high = COMPRESSED_BIT + sectors * 2 ** (offsetBits - 32) + Math.floor(offset / TWO_32);
  setU32(bytes, at, high);
  setU32(bytes, at + 4, offset % TWO_32);
}

/**
 * How many standard entries of 8 bytes, from byte `at` on, map clusters that follow each other and agree in all else: what most of a table is.
 * At least 1; of the entry at `at` only the halves are looked at.
 */
export function runLength(view: DataView, at: number, high: number, low: number, clusterSize: number): number {
  let end = at + 8;
  const limit = view.byteLength; // asked once: to V8 it is a call
  // Past 2^32 no entry has the expected half: another run begins.
  for (let expected = low + clusterSize; end < limit; expected += clusterSize, end += 8) {
    if (view.getUint32(end + 4) !== expected || view.getUint32(end) !== high) break;
  }
  return (end - at) / 8;
}
