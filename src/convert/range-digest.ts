import { createHash, type Hash } from 'node:crypto';
import { MiB } from '../../formats/core/units.ts';
import { isZero } from '../io/native.ts';

const BLOCK = 1 * MiB;

/**
 * SHA-256 of what a part of a disk holds, from its pieces in order, however they were cut: of each block of 1 MiB that is not all zeros, its number
 * and its bytes. What is left out counts as zeros, and costs nothing.
 */
export class RangeDigest {
  readonly #hash: Hash = createHash('sha256');
  readonly #number = new DataView(new ArrayBuffer(8));
  /** What is known of a block that came in parts. */
  readonly #part = new Uint8Array(BLOCK);
  /** The number of that block; -1: there is none. */
  #block = -1;

  update(offset: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const block = Math.floor((offset + at) / BLOCK);
      const start = (offset + at) % BLOCK;
      const take = Math.min(BLOCK - start, bytes.length - at);
      const piece = bytes.subarray(at, at + take);
      if (take === BLOCK) {
        this.#endPart();
        this.#add(block, piece);
      } else {
        if (block !== this.#block) this.#endPart();
        this.#block = block;
        this.#part.set(piece, start);
      }
      at += take;
    }
  }

  /** @returns 64 hexadecimal digits. Nothing may be added afterwards */
  finish(): string {
    this.#endPart();
    return this.#hash.digest('hex');
  }

  #endPart(): void {
    if (this.#block < 0) return;
    this.#add(this.#block, this.#part);
    this.#part.fill(0);
    this.#block = -1;
  }

  #add(block: number, bytes: Uint8Array): void {
    if (isZero(bytes, 0, bytes.length)) return;
    this.#number.setBigUint64(0, BigInt(block), true);
    this.#hash.update(new Uint8Array(this.#number.buffer)).update(bytes);
  }
}
