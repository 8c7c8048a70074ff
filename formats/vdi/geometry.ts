import type { VdiHeader } from './header.ts';

/** Where blocks are in the file. Block numbers count guest blocks, indexes count places in the file. */
export class Geometry {
  readonly blockSize: number;
  /** From one place to the next. */
  readonly stride: number;
  readonly #start: number;
  readonly #extra: number;
  readonly #size: number;

  constructor(header: VdiHeader) {
    this.blockSize = header.cbBlock;
    this.stride = header.cbBlock + header.cbBlockExtra;
    this.#start = header.offData;
    this.#extra = header.cbBlockExtra;
    this.#size = header.size;
  }

  /** Byte offset of a place, with the extra bytes that precede the data. */
  startOf(index: number): number {
    return this.#start + index * this.stride;
  }

  /** Byte offset of the data of a place. */
  placeOf(index: number): number {
    return this.#start + index * this.stride + this.#extra;
  }

  /** Where the data of `count` places end. */
  endOf(count: number): number {
    return this.#start + count * this.stride;
  }

  /** Whether a file of that size holds all guest bytes of a block at a place: the last block of a disk may be cut short. */
  isInside(block: number, index: number, fileSize: number): boolean {
    return this.placeOf(index) + this.guestBytesOf(block) <= fileSize;
  }

  guestBytesOf(block: number): number {
    return Math.max(0, Math.min(this.blockSize, this.#size - block * this.blockSize));
  }
}
