import { allocateAligned } from '../io/buffer-pool.ts';

/** A fixed number of equal buffers; who finds none waits. So a slow target costs time, not memory. */
export class ChunkMemory {
  readonly size: number;
  readonly #most: number;
  #made = 0;
  readonly #free: Uint8Array[] = [];
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];

  /** @param most bytes in all; at least two buffers are made */
  constructor(size: number, most: number) {
    this.size = size;
    this.#most = Math.max(2, Math.floor(most / size));
  }

  acquire(): Uint8Array | Promise<Uint8Array> {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#made < this.#most) {
      this.#made++;
      return allocateAligned(this.size);
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Gives a buffer back, or one of the same size in its place. */
  release(buffer: Uint8Array): void {
    const next = this.#waiting.shift();
    if (next !== undefined) next(buffer);
    else this.#free.push(buffer);
  }
}
