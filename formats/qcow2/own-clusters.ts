import type { Storage } from '../storage/storage.ts';
import { readHeader } from './driver.ts';
import { COMPRESSED_BIT, COPIED, getU32, ZERO_BIT } from './l2.ts';
import { PointerTable } from './pointer-table.ts';
import { readBytes } from './refcount.ts';

/**
 * Finds the data clusters that only the live disk has, by the COPIED flags of its tables: what is not told is shared with a snapshot, compressed,
 * or no data.
 *
 * @param visit takes guest ranges in order
 * @throws {ImageError} CORRUPT
 */
export async function visitOwnClusters(
  storage: Storage,
  visit: (start: number, length: number) => void,
): Promise<void> {
  const header = await readHeader(storage);
  const { clusterSize, entrySize, l2Coverage, extendedL2 } = header.geometry;
  const place = { name: 'L1 table', offset: header.l1TableOffset, entries: header.l1Size, clusterSize };
  const l1 = await PointerTable.load(storage, place);
  let [start, length] = [0, 0];
  for (let i = 0; i * l2Coverage < header.size; i++) {
    const target = l1.checkedTarget(i);
    if (target === 0 || !l1.copied(i)) continue;
    const bytes = await readBytes(storage, target, clusterSize);
    for (let at = 0; at < clusterSize; at += entrySize) {
      const high = getU32(bytes, at);
      if ((high & COPIED) === 0 || (high & COMPRESSED_BIT) !== 0) continue;
      if (!extendedL2 && (getU32(bytes, at + 4) & ZERO_BIT) !== 0) continue;
      const offset = i * l2Coverage + (at / entrySize) * clusterSize;
      if (offset >= header.size) break;
      if (start + length !== offset) {
        if (length > 0) visit(start, length);
        [start, length] = [offset, 0];
      }
      length += Math.min(clusterSize, header.size - offset);
    }
  }
  if (length > 0) visit(start, length);
}
