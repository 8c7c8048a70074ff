import { IoVec } from '../core/iov.ts';
import { alignDown, alignUp, MiB } from '../core/units.ts';
import type { ExtentBuffer } from '../image/extent.ts';
import { SECTOR } from '../luks/header.ts';
import type { SectorCipher } from '../luks/sector-cipher.ts';
import type { Storage } from '../storage/storage.ts';

/** Reads data clusters that are encrypted by the number of the guest's sector (legacy AES): only a layer knows both offsets. */
export class GuestSectors {
  readonly #storage: Storage;
  readonly #cipher: SectorCipher;

  constructor(storage: Storage, cipher: SectorCipher) {
    this.#storage = storage;
    this.#cipher = cipher;
  }

  /** As Layer.readOpaque. */
  async read(extents: ExtentBuffer, index: number, offset: number, iov: IoVec): Promise<void> {
    const shift = (extents.storageOffsets[index] as number) - (extents.offsets[index] as number);
    const end = offset + iov.byteLength;
    for (let at = offset; at < end; ) {
      const start = alignDown(at, SECTOR);
      const stop = Math.min(end, start + MiB);
      const bytes = new Uint8Array(alignUp(stop, SECTOR) - start);
      await this.#storage.readv(start + shift, IoVec.of(bytes));
      this.#cipher.decrypt(bytes, start / SECTOR);
      iov.copyIn(at - offset, bytes.subarray(at - start, stop - start));
      at = stop;
    }
  }
}
