import { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';

/** All fields of the header are in the first sector: a change is one write that a disk does whole or not at all. */
const SECTOR = 512;

/** The first sector of an image that is open for writing. */
export class HeaderSector {
  readonly #storage: Storage;
  #bytes: Uint8Array;
  #last: Promise<void> = Promise.resolve();

  private constructor(storage: Storage, bytes: Uint8Array) {
    this.#storage = storage;
    this.#bytes = bytes;
  }

  static async load(storage: Storage): Promise<HeaderSector> {
    const bytes = new Uint8Array(SECTOR);
    await storage.readv(0, IoVec.of(bytes));
    return new HeaderSector(storage, bytes);
  }

  /** Changes fields and writes the sector. Changes follow each other; one that fails has not happened. Not synced. */
  update(change: (view: DataView) => void): Promise<void> {
    const mine = this.#last.then(async () => {
      const bytes = this.#bytes.slice();
      change(new DataView(bytes.buffer));
      await this.#storage.writev(0, IoVec.of(bytes));
      this.#bytes = bytes;
    });
    this.#last = mine.catch(() => undefined);
    return mine;
  }
}
