/** Makes and opens qcow2 images in memory for tests. */

import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import type { BlockCache } from '../../formats/cache/cache.ts';
import { ImageError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { LayerContext } from '../../formats/driver.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import type { Layer } from '../../formats/image/layer.ts';
import { type CreateQcow2Options, createQcow2 } from '../../formats/qcow2/create.ts';
import { qcow2 } from '../../formats/qcow2/driver.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';

export interface OpenOptions {
  readonly readOnly?: boolean;
  readonly snapshot?: string;
  readonly metadataOnly?: boolean;
  readonly strict?: boolean;
  readonly cache?: BlockCache;
  readonly discardNoUnref?: boolean;
  readonly warnings?: string[];
  /** The external data file, whatever name the image has for it. It outlives the image. */
  readonly dataFile?: Storage | undefined;
  /** Passphrase of an encrypted image. */
  readonly secret?: Uint8Array | undefined;
  /** Layers below, top first. */
  readonly parents?: readonly Layer[];
}

export function contextFor(options: OpenOptions = {}): LayerContext {
  return {
    cache: options.cache ?? new SharedBlockCache(8 * 1024 * 1024),
    openReferenced: async (reference) => {
      if (options.dataFile !== undefined) return keptOpen(options.dataFile);
      throw new ImageError('DENIED', `a test image names the file ${reference}`);
    },
    warn: (message) => {
      options.warnings?.push(message);
    },
  };
}

export function openLayer(storage: Storage, options: OpenOptions = {}): Promise<Layer> {
  return qcow2.open(storage, {
    readOnly: options.readOnly ?? false,
    snapshot: options.snapshot,
    metadataOnly: options.metadataOnly,
    strict: options.strict,
    discardNoUnref: options.discardNoUnref,
    secrets: async () => (options.secret === undefined ? [] : [options.secret]),
    context: contextFor(options),
  });
}

/** Opens an image whose storage outlives it, so that it can be opened again. */
export async function openImage(storage: Storage, options: OpenOptions = {}): Promise<ChainImage> {
  const layer = await openLayer(keptOpen(storage), options);
  return new ChainImage([layer, ...(options.parents ?? [])]);
}

/** The same storage, but closing it does nothing. */
export function keptOpen(storage: Storage): Storage {
  return new Proxy(storage, {
    get(target, key) {
      if (key === 'close') return async () => undefined;
      const value = Reflect.get(target, key, target) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

export async function createImage(options: CreateQcow2Options): Promise<MemoryStorage> {
  const storage = new MemoryStorage();
  await createQcow2(storage, options);
  return storage;
}

/** Reads all of an image. */
export async function readAll(image: {
  readonly size: number;
  readv(offset: number, iov: IoVec): Promise<void>;
}): Promise<Uint8Array> {
  const bytes = new Uint8Array(image.size);
  const step = 1024 * 1024;
  for (let at = 0; at < bytes.length; at += step) {
    await image.readv(at, IoVec.of(bytes, at, Math.min(step, bytes.length - at)));
  }
  return bytes;
}
