import { createHash, type Hash } from 'node:crypto';
import { MiB } from '../../formats/core/units.ts';
import { isZero } from '../io/native.ts';

const BLOCK = 1 * MiB;

/** All that was added before an offset, and the digest of it. */
export interface DigestMark {
  readonly done: number;
  digest(): string;
}

/**
 * SHA-256 of what a part of a disk holds, from its pieces in order, however they were cut: of each block of 1 MiB that is not all zeros, its number
 * and its bytes. What is left out counts as zeros, and costs nothing.
 */
export class RangeDigest {
  readonly #hash: Hash = createHash('sha256');
  readonly #number = new DataView(new ArrayBuffer(8));
  /** What is known of a block that came in parts. Many come whole, in each of many digests. */
  #part: Uint8Array | undefined;
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
        this.#part ??= new Uint8Array(BLOCK);
        this.#part.set(piece, start);
      }
      at += take;
    }
  }

  /** @returns 64 hexadecimal digits. What is added afterwards must be of another block */
  finish(): string {
    this.#endPart();
    return this.#hash.copy().digest('hex');
  }

  /**
   * What finish() would say here, or at the begin of the block in which `offset` is, when that came in part: as little is kept as can be.
   *
   * @param offset behind all that was added
   */
  mark(offset: number): DigestMark {
    const block = Math.floor(offset / BLOCK);
    if (block !== this.#block) this.#endPart();
    const hash = this.#hash.copy();
    return { done: this.#block < 0 ? offset : block * BLOCK, digest: () => hash.copy().digest('hex') };
  }

  #endPart(): void {
    if (this.#block < 0 || this.#part === undefined) return;
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
