import { SharedBlockCache } from './cache/block-cache.ts';
import type { BlockCache } from './cache/cache.ts';
import { ImageError, LunetteError } from './core/errors.ts';
import { MiB } from './core/units.ts';
import type { LayerContext } from './driver.ts';
import { type CheckOptions, type CheckResult, emptyCheckResult } from './image/check.ts';
import { DirectoryGate, type OpenGate } from './image/gate.ts';
import { checkQcow2 } from './qcow2/check.ts';
import { DRIVERS, driverOf, probe } from './registry.ts';
import { openFileStorage } from './storage/file.ts';
import type { Storage, StorageOpener } from './storage/storage.ts';
import { checkVdi } from './vdi/check.ts';
import { checkVmdk } from './vmdk/check.ts';

export interface CheckImageOptions extends CheckOptions {
  /** Trust no probing. */
  readonly format?: string | undefined;
  /** Also what takes long, as decompressing every cluster; as far as the format has such. */
  readonly deep?: boolean | undefined;
  /** `shared` (force-share) looks at it whatever others do meanwhile: what it finds may be gone then. Only without repair. */
  readonly lock?: 'default' | 'shared' | undefined;
  /** How files are opened. Default: plain Node. */
  readonly openStorage?: StorageOpener | undefined;
  /** Judges files that the image names. Default: its own directory and below. */
  readonly gate?: OpenGate | undefined;
  readonly cache?: BlockCache | undefined;
  readonly warn?: ((message: string, path: string) => void) | undefined;
}

export interface ImageCheck extends CheckResult {
  readonly format: string;
  /** False for formats without metadata that could be wrong: nothing was checked. */
  readonly supported: boolean;
}

/**
 * Checks one image file, of whatever format it is; what stands below it is not looked at.
 *
 * @throws {LunetteError} NOT_FOUND, ACCESS, LOCKED, BAD_HEADER and others: the check could not be done
 */
export async function checkImage(path: string, options: CheckImageOptions = {}): Promise<ImageCheck> {
  const { repair = 'none', openStorage = openFileStorage, lock } = options;
  const readOnly = repair === 'none';
  if (lock === 'shared' && !readOnly)
    throw new LunetteError('INVALID', 'a repair cannot share the image with other programs', { path });
  const mode = lock === 'shared' ? 'shared' : readOnly ? 'read' : 'write';
  const open = async (file: string): Promise<Storage> => {
    const storage = await openStorage(file, { readOnly });
    try {
      await storage.lock(mode);
      return storage;
    } catch (error) {
      await storage.close().catch(() => undefined);
      throw error;
    }
  };
  const storage = await open(path);
  let result: ImageCheck;
  try {
    const driver =
      options.format === undefined ? await probe(storage, DRIVERS) : driverOf(options.format, DRIVERS, storage.path);
    const context = contextOf(options, open);
    result = await checkStorage(storage, driver.name, options, context);
    if (!readOnly) await storage.sync();
  } catch (error) {
    await storage.close().catch(() => undefined);
    if (error instanceof LunetteError) error.path ??= path;
    throw error;
  }
  await storage.close();
  return result;
}

async function checkStorage(
  storage: Storage,
  format: string,
  options: CheckImageOptions,
  context: LayerContext,
): Promise<ImageCheck> {
  const { repair, deep } = options;
  switch (format) {
    case 'qcow2':
      return { ...(await checkQcow2(storage, { repair, deep })), format, supported: true };
    case 'vdi':
      return { ...(await checkVdi(storage, { repair, cache: context.cache })), format, supported: true };
    case 'vmdk':
      return { ...(await checkVmdk(storage, { repair, context })), format, supported: true };
    default:
      return { ...emptyCheckResult(), format, supported: false };
  }
}

function contextOf(options: CheckImageOptions, open: (path: string) => Promise<Storage>): LayerContext {
  const gate = options.gate ?? new DirectoryGate({ ownDirectory: true });
  return {
    cache: options.cache ?? new SharedBlockCache(16 * MiB),
    openReferenced: async (reference, from, kind) => {
      if (/^[^/]*:/.test(reference))
        throw new ImageError('UNSUPPORTED', `its ${kind} is ${reference}: no file`, { path: from.path });
      const file = from.resolve(reference);
      gate.admit(file, from.path, kind);
      return open(file);
    },
    warn: (message, from) => options.warn?.(message, from.path),
  };
}
