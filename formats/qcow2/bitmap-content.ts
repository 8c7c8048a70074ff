import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';
import type { Qcow2Bitmap } from './bitmaps.ts';
import type { DirtyBits } from './dirty-bits.ts';
import { getU32, hostOffset, OFFSET_HIGH, OFFSET_LOW } from './l2.ts';

/** In a table entry without an offset: all bits of its cluster are set. */
export const ALL_DIRTY = 1;

/** The table of a bitmap as it is in the file. Specification: "Bitmap table". */
export class BitmapTable {
  readonly bytes: Uint8Array;
  readonly bitmap: Qcow2Bitmap;
  readonly #storage: Storage;
  readonly #clusterSize: number;

  private constructor(storage: Storage, bitmap: Qcow2Bitmap, clusterSize: number, bytes: Uint8Array) {
    this.#storage = storage;
    this.bitmap = bitmap;
    this.#clusterSize = clusterSize;
    this.bytes = bytes;
  }

  /** @throws {ImageError} CORRUPT for entries that lead nowhere, or all to the same place */
  static async load(storage: Storage, bitmap: Qcow2Bitmap, clusterSize: number): Promise<BitmapTable> {
    const length = bitmap.tableSize * 8;
    if (bitmap.tableOffset + length > storage.size)
      corrupt(bitmap, 'its table is outside the file', bitmap.tableOffset);
    const bytes = new Uint8Array(length);
    await storage.readv(bitmap.tableOffset, IoVec.of(bytes));
    const table = new BitmapTable(storage, bitmap, clusterSize, bytes);
    let clusters = 0;
    for (let i = 0; i < bitmap.tableSize; i++) {
      const high = getU32(bytes, i * 8);
      const low = getU32(bytes, i * 8 + 4);
      const offset = hostOffset(high, low);
      if ((high | low) === 0 || (high === 0 && low === ALL_DIRTY)) continue;
      const reserved = (high & ~OFFSET_HIGH) !== 0 || (low & ~OFFSET_LOW) !== 0;
      if (reserved || offset === 0 || offset % clusterSize !== 0 || offset + clusterSize > storage.size) {
        corrupt(bitmap, `entry ${i} of its table leads nowhere`, bitmap.tableOffset + i * 8);
      }
      clusters++;
    }
    // More than the file has room for: the same clusters many times over.
    if (clusters * clusterSize > storage.size)
      corrupt(bitmap, 'it has more clusters than the file', bitmap.tableOffset);
    return table;
  }

  /** Where a cluster of bits is: an offset, 0 when none is set, ALL_DIRTY when all are. */
  target(index: number): number {
    const low = getU32(this.bytes, index * 8 + 4);
    return (low & ALL_DIRTY) !== 0 ? ALL_DIRTY : hostOffset(getU32(this.bytes, index * 8), low);
  }

  /** Bits of a cluster, into `bytes`. */
  async read(index: number, bytes: Uint8Array): Promise<void> {
    const target = this.target(index);
    if (target <= ALL_DIRTY) bytes.fill(target === 0 ? 0 : 0xff);
    else await this.#storage.readv(target, IoVec.of(bytes, 0, this.#clusterSize));
  }
}

function corrupt({ name }: Qcow2Bitmap, why: string, offset: number): never {
  throw new ImageError('CORRUPT', `bitmap ${JSON.stringify(name)}: ${why}`, {
    field: 'bitmaps',
    offset,
    help: 'The bitmap can only be removed.',
  });
}

/**
 * Runs of dirty and clean granules in a range of the disk.
 *
 * @param added bits that are not in the file yet
 * @returns as BitmapReader.runs
 */
export async function dirtyRuns(
  table: BitmapTable,
  clusterSize: number,
  added: readonly DirtyBits[],
  range: { readonly offset: number; readonly length: number; readonly most: number },
): Promise<number[]> {
  const { granularity } = table.bitmap;
  const end = range.offset + range.length;
  const coverage = clusterSize * 8 * granularity;
  const runs = new Runs(range.most);
  let bytes: Uint8Array | undefined;
  for (let at = range.offset; at < end; ) {
    const index = Math.floor(at / coverage);
    const stop = Math.min(end, (index + 1) * coverage);
    const start = index * clusterSize;
    const target = table.target(index);
    const more = target !== ALL_DIRTY && added.some((bits) => bits.any(start, clusterSize));
    if (target <= ALL_DIRTY && !more) {
      if (!runs.add(stop - at, target === ALL_DIRTY ? 1 : 0)) return runs.list;
      at = stop;
      continue;
    }
    bytes ??= new Uint8Array(clusterSize);
    await table.read(index, bytes);
    for (const bits of added) bits.addTo(bytes, start);
    while (at < stop) {
      const granule = Math.floor((at - index * coverage) / granularity);
      const dirty = bitAt(bytes, granule);
      const runEnd = endOfRun(bytes, granule, dirty);
      const to = Math.min(stop, index * coverage + runEnd * granularity);
      if (!runs.add(to - at, dirty)) return runs.list;
      at = to;
    }
  }
  return runs.list;
}

function bitAt(bytes: Uint8Array, bit: number): 0 | 1 {
  return (((bytes[bit >>> 3] as number) >>> (bit & 7)) & 1) as 0 | 1;
}

/** The first bit from `bit` on that is another, or the number of bits. */
function endOfRun(bytes: Uint8Array, bit: number, value: 0 | 1): number {
  const total = bytes.length * 8;
  const same = value === 1 ? 0xff : 0;
  let at = bit;
  while (at < total) {
    if ((at & 7) === 0) {
      let byte = at >>> 3;
      while (byte < bytes.length && bytes[byte] === same) byte++;
      at = byte * 8;
      if (at >= total) break;
    }
    if (bitAt(bytes, at) !== value) return at;
    at++;
  }
  return total;
}

/** Pairs of length and state in which neighbours differ. */
class Runs {
  readonly list: number[] = [];
  readonly #most: number;

  constructor(most: number) {
    this.#most = most;
  }

  /** @returns false when there is no room for another pair */
  add(length: number, dirty: 0 | 1): boolean {
    const last = this.list.length - 2;
    if (last >= 0 && this.list[last + 1] === dirty) {
      this.list[last] = (this.list[last] as number) + length;
      return true;
    }
    if (this.list.length >= 2 * this.#most) return false;
    this.list.push(length, dirty);
    return true;
  }
}
