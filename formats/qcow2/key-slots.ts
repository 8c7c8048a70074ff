import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { Secrets } from '../driver.ts';
import { amendKeySlots, type KeySlotChange } from '../luks/amend.ts';
import type { Storage } from '../storage/storage.ts';
import { readHeader } from './driver.ts';
import { CRYPT_LUKS, materialReader, readLuksHeader } from './encryption.ts';

/**
 * Adds a passphrase to an encrypted image, or takes one away. The data stays as it is: all passphrases open the same key.
 *
 * @param storage of the image, which is not open otherwise; locked for writing by the caller
 * @returns numbers of the key slots that changed
 * @throws {LunetteError} UNSUPPORTED for an image without LUKS encryption, and as amendKeySlots
 */
export async function amendQcow2KeySlots(
  storage: Storage,
  change: KeySlotChange,
  secrets?: Secrets,
): Promise<number[]> {
  const header = await readHeader(storage);
  if (header.cryptMethod !== CRYPT_LUKS) {
    throw new ImageError('UNSUPPORTED', 'only images with LUKS encryption have key slots', {
      path: storage.path,
      field: 'cryptMethod',
      offset: 32,
    });
  }
  if (header.corrupt)
    throw new ImageError('CORRUPT', 'the image is marked corrupt: repair it first', { path: storage.path });
  const luks = await readLuksHeader(storage, header);
  const start = header.extensions.crypto?.offset ?? 0;
  const place = {
    read: materialReader(storage, header),
    write: (offset: number, bytes: Uint8Array) => storage.writev(start + offset, IoVec.of(bytes)),
    sync: () => storage.sync(),
  };
  return amendKeySlots(place, luks, (await secrets?.()) ?? [], change);
}
