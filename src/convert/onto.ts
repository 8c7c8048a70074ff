import { LunetteError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/index.ts';
import { compareDisks } from './compare.ts';
import { type CopyOptions, copyDisk } from './copy.ts';
import { concatenate, type DiskSource, isShared } from './disk.ts';
import { startEncoder } from './encoder.ts';
import { StreamChecksum } from './stream-checksum.ts';

export interface OntoOptions extends Omit<CopyOptions, 'observe' | 'overBacking' | 'unchanged' | 'encoder'> {
  readonly sources: readonly DiskSource[];
  readonly compress?: boolean | undefined;
  readonly verify?: boolean | undefined;
  readonly checksum?: boolean | undefined;
  /** Flush the target at the end. Default true. */
  readonly sync?: boolean | undefined;
}

/**
 * Writes disks over an image that is there, in place: an error leaves it half written. What is behind the end of the sources stays.
 *
 * @throws {LunetteError} what reading and writing throw; OUT_OF_RANGE for a target that is too small, before anything is written
 */
export async function convertOnto(
  target: Image,
  options: OntoOptions,
): Promise<{ size: number; checksum: string | undefined }> {
  const source = concatenate(options.sources);
  if (target.size < source.size) {
    throw new LunetteError('OUT_OF_RANGE', `it has ${target.size} bytes, and ${source.size} are to be written`, {
      path: target.path,
      help: 'Make it larger first, or write into a new image (without -n).',
    });
  }
  const checksum = options.checksum === true ? new StreamChecksum(options.signal) : undefined;
  const { compression } = target;
  if (options.compress === true && compression === undefined) {
    throw new LunetteError('INVALID', 'this image cannot hold compressed data', { path: target.path });
  }
  const encoder = options.compress === true && compression !== undefined ? startEncoder(compression) : undefined;
  try {
    await copyDisk(source, target, {
      ...options,
      encoder,
      clone: options.clone !== false && checksum === undefined && !options.sources.some(isShared),
      transfer: !options.sources.some(isShared),
      observe: checksum === undefined ? undefined : (offset, bytes) => checksum.update(offset, bytes),
    });
  } finally {
    await encoder?.close();
  }
  if (options.sync !== false) await target.flush();
  if (options.verify === true) {
    const { differsAt } = await compareDisks(source, target, { signal: options.signal });
    if (differsAt !== undefined && differsAt < source.size) {
      throw new LunetteError('IO', `what was written differs from the source at offset ${differsAt}`, {
        path: target.path,
        offset: differsAt,
      });
    }
  }
  return { size: source.size, checksum: await checksum?.finish(source.size) };
}
