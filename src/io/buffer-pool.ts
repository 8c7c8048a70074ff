import { native } from '../native/binding.ts';
import { registerMemory } from '../native/memory.ts';

/** Buffers start at a multiple of it: what direct I/O and page-wise copies like. Only with the addon, which knows addresses. */
export const BUFFER_ALIGN = 4096;

const MIN_CLASS_BITS = 12;
const MAX_CLASS_BITS = 22;
/** Small buffers are cut from pieces of this size, so that aligning them wastes little. */
const SLAB = 64 * 1024;

/** The largest buffer that a pool gives: 4 MiB. */
export const MAX_BUFFER = 2 ** MAX_CLASS_BITS;

export interface BufferPoolOptions {
  /** Bytes that the pool holds at most, in use and free together. */
  readonly budget: number;
}

/**
 * Memory for requests, used again and again: size classes of powers of two from 4 KiB to 4 MiB, page-aligned, known to native code, within
 * a budget of bytes. What is in a buffer when it is acquired is whatever its last user left there.
 *
 * Who acquires releases, exactly once, when nothing touches the memory any more: no native I/O in flight, no socket write pending.
 */
export class BufferPool {
  readonly budget: number;
  /** Free buffers by class, the last released first: it is the likeliest to be in the CPU's cache. */
  readonly #free: Uint8Array[][] = Array.from({ length: MAX_CLASS_BITS + 1 }, () => []);
  /** Class of every buffer that is out, so that nothing foreign and nothing twice comes back. */
  readonly #out = new Map<Uint8Array, number>();
  #allocated = 0;
  #inUse = 0;

  constructor(options: BufferPoolOptions) {
    this.budget = options.budget;
  }

  /** Bytes that the pool has taken from the system. */
  get allocated(): number {
    return this.#allocated;
  }

  /** Bytes in buffers that are out. */
  get inUse(): number {
    return this.#inUse;
  }

  /**
   * A buffer of at least `length` bytes (its length is the size of its class); undefined when the budget is used up: the caller waits for a
   * release, which is how a slow peer is kept from costing more.
   * @throws {RangeError} for more than MAX_BUFFER bytes
   */
  tryAcquire(length: number): Uint8Array | undefined {
    const bits = classFor(length);
    const free = this.#free[bits] as Uint8Array[];
    if (free.length === 0 && !this.#grow(bits)) return undefined;
    const buffer = free.pop() as Uint8Array;
    this.#out.set(buffer, bits);
    this.#inUse += 2 ** bits;
    return buffer;
  }

  /** Gives a buffer back. @throws {TypeError} when it is not out: freeing twice would give one memory to two requests */
  release(buffer: Uint8Array): void {
    const bits = this.#out.get(buffer);
    if (bits === undefined) throw new TypeError('the buffer is not out of this pool');
    this.#out.delete(buffer);
    this.#inUse -= 2 ** bits;
    (this.#free[bits] as Uint8Array[]).push(buffer);
  }

  /** Makes buffers of a class, if the budget allows it, if need be after giving up free ones of other classes. */
  #grow(bits: number): boolean {
    const size = 2 ** bits;
    // As many as make a slab, or as the budget has room for.
    let count = Math.max(1, SLAB / size);
    if (this.#allocated + count * size > this.budget) {
      this.#trim(bits, count * size);
      count = Math.min(count, Math.floor((this.budget - this.#allocated) / size));
      if (count < 1) return false;
    }
    const memory = allocateAligned(count * size);
    for (let i = 0; i < count; i++) {
      const buffer = memory.subarray(i * size, (i + 1) * size);
      if (native !== undefined) registerMemory(buffer);
      (this.#free[bits] as Uint8Array[]).push(buffer);
    }
    this.#allocated += count * size;
    return true;
  }

  /** Drops free buffers of other classes until `wanted` bytes fit, the largest first. */
  #trim(bits: number, wanted: number): void {
    for (let other = MAX_CLASS_BITS; other >= MIN_CLASS_BITS; other--) {
      if (other === bits) continue;
      const free = this.#free[other] as Uint8Array[];
      while (free.length > 0 && this.#allocated + wanted > this.budget) {
        free.pop();
        this.#allocated -= 2 ** other;
      }
    }
  }
}

/** Memory that starts at a multiple of BUFFER_ALIGN, as far as that can be known. Its content is arbitrary. */
export function allocateAligned(length: number): Uint8Array {
  if (native === undefined) return Buffer.allocUnsafeSlow(length);
  const memory = Buffer.allocUnsafeSlow(length + BUFFER_ALIGN);
  const past = native.addressOf(memory) % BUFFER_ALIGN;
  const skip = past === 0 ? 0 : BUFFER_ALIGN - past;
  return memory.subarray(skip, skip + length);
}

function classFor(length: number): number {
  if (!(length >= 0 && length <= MAX_BUFFER)) {
    throw new RangeError(`a buffer of ${length} bytes: the pool gives 0 to ${MAX_BUFFER}`);
  }
  return Math.max(MIN_CLASS_BITS, 32 - Math.clz32(Math.max(1, length) - 1));
}
