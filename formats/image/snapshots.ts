import { ImageError } from '../core/errors.ts';
import type { ChainImage } from './chain.ts';
import type { Layer, NewSnapshotOptions, SnapshotInfo, SnapshotReference } from './layer.ts';

/**
 * Takes an internal snapshot of an image that is open for writing: everything that completed writes made, durably. Writes wait meanwhile,
 * reads go on.
 *
 * @throws {LunetteError} UNSUPPORTED by the format; TOO_LARGE when the format's counters or tables cannot hold another one; NO_SPACE
 */
export function createSnapshot(
  image: ChainImage,
  name: string,
  options: NewSnapshotOptions = {},
): Promise<SnapshotInfo> {
  return image.restructure((top) => top.createSnapshot?.(name, options) ?? none(top));
}

/** Makes the disk what it was when a snapshot was taken, its size included. @throws {LunetteError} NOT_FOUND and others */
export function applySnapshot(image: ChainImage, reference: SnapshotReference): Promise<void> {
  return image.restructure((top) => top.applySnapshot?.(reference) ?? none(top));
}

/** Deletes a snapshot and frees what only it referred to. @throws {LunetteError} NOT_FOUND; LOCKED while it is open */
export function deleteSnapshot(image: ChainImage, reference: SnapshotReference): Promise<void> {
  return image.restructure((top) => top.deleteSnapshot?.(reference) ?? none(top));
}

async function none(top: Layer): Promise<never> {
  throw new ImageError('UNSUPPORTED', `the format ${top.format} has no internal snapshots`, { path: top.storage.path });
}
