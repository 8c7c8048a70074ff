import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { Struct, u8, u16, u32, u64 } from '../core/struct.ts';
import { alignUp } from '../core/units.ts';
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

export interface Qcow2Bitmap {
  readonly name: string;
  /** Bytes of the disk per bit. */
  readonly granularity: number;
  /** Names as QEMU's: `in-use`, `auto`. */
  readonly flags: readonly string[];
  readonly tableOffset: number;
  /** Entries of its table. */
  readonly tableSize: number;
}

/** Lists the persistent bitmaps. @throws {ImageError} CORRUPT, TRUNCATED */
export async function readBitmapDirectory(storage: Storage, reference: BitmapsReference): Promise<Qcow2Bitmap[]> {
  const { directoryOffset, directorySize, count } = reference;
  if (!Number.isSafeInteger(directoryOffset) || directoryOffset + directorySize > storage.size) {
    throw new ImageError('TRUNCATED', 'the bitmap directory is outside the file', {
      field: 'bitmaps',
      offset: reference.at,
    });
  }
  const bytes = new Uint8Array(directorySize);
  if (directorySize > 0) await storage.readv(directoryOffset, IoVec.of(bytes));
  const view = new DataView(bytes.buffer);
  const result: Qcow2Bitmap[] = [];
  let at = 0;
  while (at < directorySize) {
    if (at + BITMAP_ENTRY.size > directorySize)
      broken(directoryOffset + at, 'the bitmap directory ends inside an entry');
    const entry = BITMAP_ENTRY.read(view, at);
    const nameAt = at + BITMAP_ENTRY.size + entry.extraDataSize;
    const end = alignUp(nameAt + entry.nameSize, 8);
    if (end > directorySize) broken(directoryOffset + at, 'a bitmap directory entry is longer than the directory');
    const granularity = entry.granularityBits >= 9 && entry.granularityBits <= 31;
    if (entry.type !== 1 || !granularity || entry.nameSize === 0 || entry.nameSize > 1023) {
      broken(directoryOffset + at, 'a bitmap directory entry has values that the format does not allow');
    }
    result.push({
      name: Buffer.from(bytes.subarray(nameAt, nameAt + entry.nameSize)).toString('utf8'),
      granularity: 2 ** entry.granularityBits,
      flags: [
        ...((entry.flags & BITMAP_IN_USE) !== 0 ? ['in-use'] : []),
        ...((entry.flags & BITMAP_AUTO) !== 0 ? ['auto'] : []),
      ],
      tableOffset: entry.tableOffset,
      tableSize: entry.tableSize,
    });
    at = end;
  }
  if (result.length !== count) {
    broken(directoryOffset, `the bitmap directory holds ${result.length} bitmaps, the header says ${count}`);
  }
  return result;
}

function broken(offset: number, why: string): never {
  throw new ImageError('CORRUPT', why, { field: 'bitmaps', offset });
}
