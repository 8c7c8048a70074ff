import { createHash, type Hash } from 'node:crypto';
import { MiB } from '../../formats/core/units.ts';

const ZEROS = new Uint8Array(MiB);

/** SHA-256 of a whole disk, from its parts in order; what is left out is zeros. */
export class StreamChecksum {
  readonly #hash: Hash = createHash('sha256');
  #at = 0;

  update(offset: number, bytes: Uint8Array): void {
    this.#zerosTo(offset);
    this.#hash.update(bytes);
    this.#at = offset + bytes.length;
  }

  /** @returns 64 hexadecimal digits */
  finish(size: number): string {
    this.#zerosTo(size);
    return this.#hash.digest('hex');
  }

  #zerosTo(offset: number): void {
    while (this.#at < offset) {
      const take = Math.min(ZEROS.length, offset - this.#at);
      this.#hash.update(take === ZEROS.length ? ZEROS : ZEROS.subarray(0, take));
      this.#at += take;
    }
  }
}
