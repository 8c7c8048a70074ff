import { codeOf } from '../core/errors.ts';
import type { Storage } from '../storage/storage.ts';
import { ExtentBuffer, isWritable } from './extent.ts';
import type { CopySource } from './image.ts';
import type { Layer, Region } from './layer.ts';

/** Brings bytes of the source into a storage. @returns how many from the start of the range; fewer: the rest cannot be done so */
type Move = (storage: Storage, storageOffset: number, guestOffset: number, length: number) => Promise<number>;

/**
 * Makes a range of a layer share the space of bytes in another storage. The range is locked, and aligned to the layer's allocation unit.
 *
 * @returns bytes from the start of the range that share it: fewer when something was in the way
 */
export async function cloneRange(
  top: Layer,
  offset: number,
  length: number,
  { source, sourceOffset }: CopySource,
): Promise<number> {
  // Asked before any space is taken: not every format can give it back without a trace.
  if (!(await top.storage.canClone?.(source))) return 0;
  return transferRange(top, offset, length, async (storage, storageOffset, guest, size) =>
    (await storage.cloneFrom?.(source, sourceOffset + guest - offset, storageOffset, size)) ? size : 0,
  );
}

/** Copies bytes of another storage into a range of a layer. The range is locked. @returns bytes dealt with, from its start */
export async function copyRange(
  top: Layer,
  offset: number,
  length: number,
  { source, sourceOffset, leaveOut }: CopySource,
): Promise<number> {
  if (top.storage.canCopy?.(source) !== true) return 0;
  return transferRange(top, offset, length, async (storage, storageOffset, guest, size) =>
    storage.canCopy?.(source) === true
      ? storage.copyFrom(source, sourceOffset + guest - offset, storageOffset, size, leaveOut)
      : 0,
  );
}

/** @returns bytes from the start of the range that are in place: fewer when something was in the way */
async function transferRange(top: Layer, offset: number, length: number, move: Move): Promise<number> {
  const end = offset + length;
  const extents = new ExtentBuffer();
  for (let at = offset; at < end; ) {
    if (top.tryMap(at, end - at, extents) < 0) await top.map(at, end - at, extents);
    if (isWritable(extents, 0)) {
      const size = extents.lengths[0] as number;
      const done = await move(extents.storages[0] as Storage, extents.storageOffsets[0] as number, at, size);
      at += done;
      if (done < size) return at - offset;
      continue;
    }
    let stop = at;
    for (let i = 0; i < extents.count && !isWritable(extents, i); i++) stop += extents.lengths[i] as number;
    // The range is locked: what has no place of its own gets none but here, and need not be mapped again.
    while (at < stop) {
      const covered = await reserveAndFill(top, at, stop, move);
      if (covered === at) return at - offset;
      at = covered;
    }
  }
  return length;
}

/** Takes space for the start of [at, stop), fills it and enters it. @returns the end of what is in place: `at` when something was in the way */
async function reserveAndFill(top: Layer, at: number, stop: number, move: Move): Promise<number> {
  const reservation = await top.reserve(at, stop - at);
  const covered = Math.min(reservation.end, stop);
  let done = false;
  try {
    done = await fill(reservation.regions, at, covered, move);
  } catch (error) {
    // Whoever writes the rest asks for space once more, after what was freed has become usable.
    if (codeOf(error) !== 'NO_SPACE') throw error;
  } finally {
    if (!done) await reservation.abort();
  }
  if (!done) return at;
  await reservation.commit();
  return covered;
}

/** @returns whether all regions are filled */
async function fill(regions: readonly Region[], start: number, end: number, move: Move): Promise<boolean> {
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
    if ((await move(storage, storageOffset, guestOffset, size)) < size) return false;
  }
  return true;
}
