import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { Struct, u8, u16, u32, u64 } from '../core/struct.ts';
import { alignUp, divideUp } from '../core/units.ts';
import type { BitmapInfo } from '../image/bitmaps.ts';
import type { Storage } from '../storage/storage.ts';
import type { BitmapsReference } from './extensions.ts';

/** The fixed part of a bitmap directory entry. Specification: "Bitmap directory". */
export const BITMAP_ENTRY = new Struct(
  'bitmap directory entry',
  { size: 24, endian: 'big' },
  {
    tableOffset: u64(0),
    tableSize: u32(8),
    flags: u32(12),
    type: u8(16),
    granularityBits: u8(17),
    nameSize: u16(18),
    extraDataSize: u32(20),
  },
);

export const BITMAP_IN_USE = 1;
export const BITMAP_AUTO = 2;
/** Extra data that is not known does not keep a bitmap from being used. */
const EXTRA_DATA_COMPATIBLE = 4;
const KNOWN_FLAGS = BITMAP_IN_USE | BITMAP_AUTO | EXTRA_DATA_COMPATIBLE;

export const MIN_GRANULARITY_BITS = 9;
export const MAX_GRANULARITY_BITS = 31;
export const MAX_BITMAP_NAME = 1023;
/** Bytes of the largest bitmap that is taken. */
export const MAX_BITMAP_BYTES = 512 * 1024 * 1024;
const DIRTY_TRACKING = 1;

export interface Qcow2Bitmap {
  readonly name: string;
  /** Bytes of the disk per bit. */
  readonly granularity: number;
  /** Names as QEMU's: `in-use`, `auto`. */
  readonly flags: readonly string[];
  readonly flagBits: number;
  readonly tableOffset: number;
  /** Entries of its table. */
  readonly tableSize: number;
  /** The entry as it is in the directory, padded: extra data and the name's bytes are kept as they are. */
  readonly entry: Uint8Array;
  /** What keeps a program that does not know it from using this bitmap, and from writing to the image; undefined for all ours. */
  readonly unknown: string | undefined;
}

/** A bitmap in the words of image/bitmaps.ts. */
export function bitmapInfo({ name, granularity, flagBits }: Qcow2Bitmap): BitmapInfo {
  const inconsistent = (flagBits & BITMAP_IN_USE) !== 0;
  return { name, granularity, enabled: (flagBits & BITMAP_AUTO) !== 0, inconsistent };
}

/** Entries of the table of a bitmap for a disk: one for each cluster of bits. */
export function bitmapTableSize(diskSize: number, granularity: number, clusterSize: number): number {
  return divideUp(divideUp(divideUp(diskSize, granularity), 8), clusterSize);
}

/**
 * Lists the persistent bitmaps.
 *
 * @throws {ImageError} CORRUPT, TRUNCATED with the entry's offset
 */
export async function readBitmapDirectory(
  storage: Storage,
  reference: BitmapsReference,
  clusterSize: number,
): Promise<Qcow2Bitmap[]> {
  const { directoryOffset, directorySize, count } = reference;
  if (!Number.isSafeInteger(directoryOffset) || directoryOffset + directorySize > storage.size) {
    throw new ImageError('TRUNCATED', 'the bitmap directory is outside the file', {
      field: 'bitmaps',
      offset: reference.at,
    });
  }
  if (directoryOffset % clusterSize !== 0) broken(reference.at, 'the bitmap directory is not at a cluster boundary');
  const bytes = new Uint8Array(directorySize);
  if (directorySize > 0) await storage.readv(directoryOffset, IoVec.of(bytes));
  return parseBitmapDirectory(bytes, { directoryOffset, count, clusterSize });
}

/** Decodes the bytes of a directory. Arguments and errors as readBitmapDirectory. */
export function parseBitmapDirectory(
  bytes: Uint8Array,
  place: { readonly directoryOffset: number; readonly count: number; readonly clusterSize: number },
): Qcow2Bitmap[] {
  const { directoryOffset, count, clusterSize } = place;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const result: Qcow2Bitmap[] = [];
  const names = new Set<string>();
  for (let at = 0; at < bytes.length; ) {
    const offset = directoryOffset + at;
    if (at + BITMAP_ENTRY.size > bytes.length) broken(offset, 'the bitmap directory ends inside an entry');
    const entry = BITMAP_ENTRY.read(view, at);
    const nameAt = at + BITMAP_ENTRY.size + entry.extraDataSize;
    const end = alignUp(nameAt + entry.nameSize, 8);
    if (end > bytes.length) broken(offset, 'a bitmap directory entry is longer than the directory');
    const granular = entry.granularityBits >= MIN_GRANULARITY_BITS && entry.granularityBits <= MAX_GRANULARITY_BITS;
    if (entry.type !== DIRTY_TRACKING || !granular || entry.nameSize === 0 || entry.nameSize > MAX_BITMAP_NAME) {
      broken(offset, 'a bitmap directory entry has values that the format does not allow');
    }
    if (entry.tableSize === 0 || entry.tableSize * clusterSize > MAX_BITMAP_BYTES) {
      broken(offset, `a bitmap's table of ${entry.tableSize} entries is empty, or above 512 MiB of bits`);
    }
    if (
      entry.tableOffset === 0 ||
      entry.tableOffset % clusterSize !== 0 ||
      !Number.isSafeInteger(entry.tableOffset + entry.tableSize * 8)
    ) {
      broken(offset, "a bitmap's table is not at a cluster boundary");
    }
    const name = Buffer.from(bytes.subarray(nameAt, nameAt + entry.nameSize)).toString('utf8');
    if (names.has(name)) broken(offset, `there are two bitmaps named ${JSON.stringify(name)}`);
    names.add(name);
    result.push({
      name,
      granularity: 2 ** entry.granularityBits,
      flags: [
        ...((entry.flags & BITMAP_IN_USE) !== 0 ? ['in-use'] : []),
        ...((entry.flags & BITMAP_AUTO) !== 0 ? ['auto'] : []),
      ],
      flagBits: entry.flags,
      tableOffset: entry.tableOffset,
      tableSize: entry.tableSize,
      entry: bytes.slice(at, end),
      unknown: unknownParts(entry.flags, entry.extraDataSize),
    });
    at = end;
  }
  if (result.length !== count) {
    broken(directoryOffset, `the bitmap directory holds ${result.length} bitmaps, the header says ${count}`);
  }
  return result;
}

function unknownParts(flags: number, extraDataSize: number): string | undefined {
  if ((flags & ~KNOWN_FLAGS) !== 0) return `flags 0x${(flags >>> 0).toString(16)}`;
  if (extraDataSize > 0 && (flags & EXTRA_DATA_COMPATIBLE) === 0) return `${extraDataSize} bytes of extra data`;
  return undefined;
}

/** The directory entry of a new bitmap, padded; without its table. */
export function encodeBitmapEntry(name: Uint8Array, granularity: number): Uint8Array {
  const entry = new Uint8Array(alignUp(BITMAP_ENTRY.size + name.length, 8));
  BITMAP_ENTRY.write(new DataView(entry.buffer), {
    type: DIRTY_TRACKING,
    granularityBits: Math.log2(granularity),
    nameSize: name.length,
  });
  entry.set(name, BITMAP_ENTRY.size);
  return entry;
}

/** A directory entry with another table, other flags. */
export function changeBitmapEntry(
  entry: Uint8Array,
  change: { readonly tableOffset: number; readonly tableSize: number; readonly flags: number },
): Uint8Array {
  const bytes = entry.slice();
  BITMAP_ENTRY.write(new DataView(bytes.buffer), change);
  return bytes;
}

function broken(offset: number, why: string): never {
  throw new ImageError('CORRUPT', why, { field: 'bitmaps', offset });
}
