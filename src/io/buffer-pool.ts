import { native } from '../native/binding.ts';
import { registerMemory } from '../native/memory.ts';

/** Buffers start at a multiple of it: what direct I/O and page-wise copies like. Only with the addon, which knows addresses. */
export const BUFFER_ALIGN = 4096;

const MIN_CLASS_BITS = 12;
const MAX_CLASS_BITS = 22;
/** What a buffer costs beyond its size: room to align it in. */
const EXTRA = native === undefined ? 0 : BUFFER_ALIGN;

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
    const buffer = (this.#free[bits] as Uint8Array[]).pop() ?? this.#allocate(bits);
    if (buffer === undefined) return undefined;
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

  /** A new buffer of a class, if the budget allows it, if need be after giving up free ones of other classes. */
  #allocate(bits: number): Uint8Array | undefined {
    const cost = costOf(bits);
    for (let other = MAX_CLASS_BITS; other >= MIN_CLASS_BITS && this.#allocated + cost > this.budget; other--) {
      const free = this.#free[other] as Uint8Array[];
      while (free.length > 0 && this.#allocated + cost > this.budget) {
        free.pop();
        this.#allocated -= costOf(other);
      }
    }
    if (this.#allocated + cost > this.budget) return undefined;
    this.#allocated += cost;
    const buffer = allocateAligned(2 ** bits);
    if (native !== undefined) registerMemory(buffer);
    return buffer;
  }
}

/** Bytes that a buffer of a class takes from the system. */
function costOf(bits: number): number {
  return 2 ** bits + EXTRA;
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
