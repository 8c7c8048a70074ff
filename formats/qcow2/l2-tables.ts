import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { COMPRESSED_BIT, COPIED, getU32, setU32 } from './l2.ts';
import { readBytes } from './refcount.ts';
import type { WriteState } from './write-state.ts';
import { zeroFill } from './zero-fill.ts';

/**
 * The L2 table of an L1 entry, the active image's alone: made when there is none, copied when a snapshot has it too.
 *
 * A new table's cluster is written here, before anything points to it; the L1 entry follows in memory now and on disk with the next
 * flush, after the slices that changed. A table that nothing is entered into afterwards does no harm. Callers hold the mutex.
 *
 * @returns host offset of the table
 */
export async function ensureL2Table(state: WriteState, l1Index: number): Promise<number> {
  const { l1, brokenTables } = state.parts;
  const old = l1.checkedTarget(l1Index);
  if (brokenTables.has(l1Index)) {
    throw new ImageError('CORRUPT', `L1 entry ${l1Index} points to a table that is used for something else as well`, {
      path: state.parts.storage.path,
      field: 'L1 table',
      offset: l1.offset + l1Index * 8,
    });
  }
  if (old !== 0 && l1.copied(l1Index)) return old;
  const { allocator, geometry, slices, metadata } = state.parts;
  const { clusterSize, sliceSize, slicesPerCluster } = geometry;
  const run = await allocator.allocate(1);
  const offset = run.first * clusterSize;
  try {
    if (old === 0) await zeroFill(state.parts.storage, offset, clusterSize);
    else await copyTable(state, old, offset);
  } catch (error) {
    await allocator.free(run.first, 1);
    throw error;
  }
  slices.forget(offset / sliceSize, slicesPerCluster);
  metadata.add(offset, clusterSize);
  l1.set(l1Index, offset, true);
  if (old !== 0) state.unlinked.add(old / clusterSize, 1, false);
  return offset;
}

async function copyTable(state: WriteState, from: number, to: number): Promise<void> {
  const { storage, geometry, refcounts } = state.parts;
  const { clusterSize, entrySize } = geometry;
  const shared = (await refcounts.get(from / clusterSize)) !== 1;
  const bytes = await readBytes(storage, from, clusterSize);
  if (shared) {
    // What a shared table refers to is shared as well; an entry that claims otherwise would have us write into a snapshot.
    for (let at = 0; at < bytes.length; at += entrySize) {
      const high = getU32(bytes, at);
      if ((high & COPIED) !== 0 && (high & COMPRESSED_BIT) === 0) setU32(bytes, at, (high & ~COPIED) >>> 0);
    }
  }
  await storage.writev(to, IoVec.of(bytes));
}
