import type { Storage } from '../storage/storage.ts';
import { ExtentBuffer, isWritable } from './extent.ts';
import type { Layer, Region } from './layer.ts';

/**
 * Makes a range of a layer share the space of bytes in another storage. The range is locked, and aligned to the layer's allocation unit.
 *
 * @returns false when something is in the way: what was shared until then stays
 */
export async function cloneRange(
  top: Layer,
  offset: number,
  length: number,
  source: Storage,
  sourceOffset: number,
): Promise<boolean> {
  // Asked before any space is taken: not every format can give it back without a trace.
  if (!(await top.storage.canClone?.(source))) return false;
  const end = offset + length;
  const extents = new ExtentBuffer();
  const into = async (storage: Storage, storageOffset: number, guest: number, size: number): Promise<boolean> =>
    (await storage.cloneFrom?.(source, sourceOffset + guest - offset, storageOffset, size)) ?? false;
  for (let at = offset; at < end; ) {
    if (top.tryMap(at, end - at, extents) < 0) await top.map(at, end - at, extents);
    if (isWritable(extents, 0)) {
      const size = extents.lengths[0] as number;
      const storage = extents.storages[0] as Storage;
      if (!(await into(storage, extents.storageOffsets[0] as number, at, size))) return false;
      at += size;
      continue;
    }
    let stop = at;
    for (let i = 0; i < extents.count && !isWritable(extents, i); i++) stop += extents.lengths[i] as number;
    const reservation = await top.reserve(at, stop - at);
    const covered = Math.min(reservation.end, stop);
    let done = false;
    try {
      done = await fillByCloning(reservation.regions, at, covered, into);
    } finally {
      if (!done) await reservation.abort();
    }
    if (!done) return false;
    await reservation.commit();
    at = covered;
  }
  return true;
}

async function fillByCloning(
  regions: readonly Region[],
  start: number,
  end: number,
  into: (storage: Storage, storageOffset: number, guest: number, size: number) => Promise<boolean>,
): Promise<boolean> {
  for (let i = 0; i < regions.length; ) {
    const { storage, storageOffset, guestOffset } = regions[i] as Region;
    let size = 0;
    for (let next = regions[i]; next !== undefined; next = regions[i]) {
      if (next.storage !== storage || next.storageOffset !== storageOffset + size) break;
      // What the write does not cover would have to be filled in.
      if (next.guestOffset < start || next.guestOffset + next.length > end) return false;
      size += next.length;
      i++;
    }
    if (!(await into(storage, storageOffset, guestOffset, size))) return false;
  }
  return true;
}
