import { isWebAddress } from '../../formats/image/gate.ts';
import type { Storage, StorageOpener } from '../../formats/storage/storage.ts';
import { openStorage as openLocal } from '../io/open-storage.ts';

/**
 * Opens what images are made of: files and devices, and what is on web servers.
 *
 * @param signal ends what a web server has not answered
 */
export function storageOpener(warn?: (message: string, path: string) => void, signal?: AbortSignal): StorageOpener {
  return async (path, options) => {
    if (isWebAddress(path)) return openAddress(path, warn, signal);
    const storage: Storage & { readonly lockNotice?: string | undefined } = await openLocal(path, options);
    if (warn !== undefined) {
      const lock = storage.lock.bind(storage);
      storage.lock = async (mode) => {
        await lock(mode);
        // A lock for writing may not keep other programs out.
        if (mode === 'write' && storage.lockNotice !== undefined) warn(storage.lockNotice, path);
      };
    }
    return storage;
  };
}

async function openAddress(
  url: string,
  warn: ((message: string, path: string) => void) | undefined,
  signal: AbortSignal | undefined,
): Promise<Storage> {
  const { HttpStorage } = await import('../http/storage.ts');
  const storage = await HttpStorage.open(url, { signal });
  if (storage.version === undefined) {
    warn?.(
      'the server does not say which version of the file it gives: that it changes is noticed by its size only',
      url,
    );
  }
  return storage;
}
