import { ImageError, LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { MiB } from '../../formats/core/units.ts';
import { DirectoryGate, OPEN_GATE, type OpenGate } from '../../formats/image/gate.ts';
import { ImageHost, SharedBlockCache } from '../../formats/index.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { nativeInflate } from '../io/native-inflate.ts';
import { nativeUnpack, unpackOnAllCores } from '../io/native-unpack.ts';
import { formatOfHead, HEAD } from './foreign.ts';
import { storageOpener } from './open-storage.ts';
import { secretsOf } from './secrets.ts';

/** What a process says about how it opens images. */
export interface HostOptions {
  /** Budget of the block cache, bytes. Default 64 MiB. */
  readonly cacheBytes?: number | undefined;
  /** Directories that files named inside an image may come from, beside the image's own. */
  readonly allow?: readonly string[] | undefined;
  /** Files named inside an image may be anywhere. */
  readonly allowAny?: boolean | undefined;
  /** Files that hold a passphrase each: all are tried on each encrypted image. */
  readonly secretFile?: readonly string[] | undefined;
  /** Something about an image is odd but not fatal. */
  readonly warn?: ((message: string, path: string) => void) | undefined;
  /** Disks are read once, from start to end: compressed clusters are unpacked many at a time, on all cores, and not kept. */
  readonly readsOnce?: boolean | undefined;
  /** Who waits for a web server waits no longer: ABORTED. */
  readonly signal?: AbortSignal | undefined;
}

export const DEFAULT_CACHE_BYTES = 64 * MiB;

/** The place where a process opens its images: files through the addon where it is built, one cache for all. */
export function createHost(options: HostOptions = {}): ImageHost {
  if (options.readsOnce === true) unpackOnAllCores();
  return new ImageHost({
    cache: new SharedBlockCache(options.cacheBytes ?? DEFAULT_CACHE_BYTES),
    inflate: nativeInflate,
    unpack: nativeUnpack,
    readsOnce: options.readsOnce,
    openStorage: storageOpener(options.warn, options.signal),
    gate: createGate(options),
    workingDirectory: process.cwd(),
    secrets: secretsOf(options.secretFile),
    ...(options.warn === undefined ? {} : { warn: options.warn }),
  });
}

/** The judge of files that images name. */
export function createGate(options: HostOptions): OpenGate {
  if (options.allowAny === true) return OPEN_GATE;
  return new DirectoryGate({ directories: options.allow ?? [], ownDirectory: true });
}

/**
 * Refuses a file that was taken for raw because it is of a format that is not known here: its bytes are no disk.
 *
 * @throws {ImageError} UNSUPPORTED naming the format
 */
export async function refuseForeign(storage: Storage): Promise<void> {
  const head = new Uint8Array(Math.min(HEAD, storage.size));
  if (head.length > 0) await storage.readv(0, IoVec.of(head));
  const format = formatOfHead(head);
  if (format === undefined) return;
  throw new ImageError('UNSUPPORTED', `is a ${format} image, which lunette does not read itself`, {
    path: storage.path,
    help: `Let QEMU open it: qemu:${format}:${storage.path}; or take its bytes as they are with -f raw.`,
  });
}

/** Says what to do when a file is not of the format that the user named. Changes other errors in nothing. */
export function explainFormat(error: unknown, format: string | undefined): unknown {
  if (error instanceof LunetteError && error.code === 'BAD_MAGIC' && format !== undefined) {
    // qemu-img's words at the end of a line: that is what programs look for.
    error.help = `Leave -f ${format} out to have the format found. Image is not in ${format} format`;
  }
  return error;
}
