/** Layers for tests that do without a host: a driver's open() on storages in memory. */

import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { ImageError } from '../../formats/core/errors.ts';
import type { FormatDriver, LayerContext, LayerOpenOptions } from '../../formats/driver.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import type { Layer } from '../../formats/image/layer.ts';
import type { Storage } from '../../formats/storage/storage.ts';

export interface TestContextOptions {
  /** Files that images may name, by resolved path. */
  readonly files?: ReadonlyMap<string, Storage>;
  /** Bytes of cache. Default 1 MiB. */
  readonly cache?: number;
  readonly warnings?: string[];
}

/** What a layer needs around it, in memory. */
export function testContext(options: TestContextOptions = {}): LayerContext {
  return {
    cache: new SharedBlockCache(options.cache ?? 2 ** 20),
    openReferenced: async (reference, from) => {
      const path = from.resolve(reference);
      const file = options.files?.get(path);
      if (file === undefined) throw new ImageError('NOT_FOUND', `${path} is not there`, { path: from.path });
      return file;
    },
    warn: (message) => void options.warnings?.push(message),
  };
}

export function openLayer(
  driver: FormatDriver,
  storage: Storage,
  options: Partial<LayerOpenOptions> = {},
): Promise<Layer> {
  return driver.open(storage, { readOnly: false, context: testContext(), ...options });
}

/** One file as a disk, without parents. */
export async function openDisk(
  driver: FormatDriver,
  storage: Storage,
  options: Partial<LayerOpenOptions> = {},
): Promise<ChainImage> {
  return new ChainImage([await openLayer(driver, storage, options)]);
}
