/** Data bytes that fit in a chunk beside headers: the longest data segment we send. */
export const CHUNK_DATA = 256 * 1024;
/** Size of a chunk: one longest data segment, or some tens of short ones, with headers, digests and padding. */
export const CHUNK_SIZE = CHUNK_DATA + 4096;

/** A piece of memory shared by the data of several commands: counted, and back in its pool when nobody holds it. */
export class Chunk {
  readonly memory: Uint8Array = Buffer.allocUnsafeSlow(CHUNK_SIZE);
  readonly view: DataView = new DataView(this.memory.buffer, this.memory.byteOffset, CHUNK_SIZE);
  references = 0;
  #share: ChunkShare | undefined;

  /** Out of the pool, on the account of `share`, held once. */
  take(share: ChunkShare): this {
    this.#share = share;
    this.references = 1;
    return this;
  }

  hold(): void {
    this.references++;
  }

  release(): void {
    if (--this.references > 0) return;
    const share = this.#share as ChunkShare;
    this.#share = undefined;
    share.give(this);
  }
}

/** Memory of all sessions of a portal. Keeps a few unused chunks; the most recently used one, still in the processor's cache, goes out first. */
export class ChunkPool {
  /** Bytes that are out. */
  used = 0;
  /** Bytes that sessions share; a session that has nothing under way may go above it with one command. */
  readonly limit: number;
  readonly #free: Chunk[] = [];
  readonly #waiting = new Set<() => void>();
  /** Who waits for how much, in the order in which they came. */
  readonly #line = new Map<ChunkShare, number>();
  readonly #keep: number;
  readonly #made: (memory: Uint8Array) => void;

  /** @param options keep: unused chunks that are kept; made: told of the memory of each new chunk */
  constructor(
    limit: number,
    { keep = 16, made = () => {} }: { keep?: number; made?: (memory: Uint8Array) => void } = {},
  ) {
    this.limit = limit;
    this.#keep = keep;
    this.#made = made;
  }

  take(): Chunk {
    this.used += CHUNK_SIZE;
    const free = this.#free.pop();
    if (free !== undefined) return free;
    const chunk = new Chunk();
    this.#made(chunk.memory);
    return chunk;
  }

  give(chunk: Chunk): void {
    this.used -= CHUNK_SIZE;
    if (this.#free.length < this.#keep) this.#free.push(chunk);
    if (this.#waiting.size > 0) this.#wake();
  }

  /** Calls back once when memory has been given back. */
  whenGiven(callback: () => void): void {
    this.#waiting.add(callback);
  }

  /** Bytes that are kept for whoever is first in line, and not for `share`. */
  reservedFrom(share: ChunkShare): number {
    if (this.#line.size === 0) return 0;
    const [first, bytes] = this.#line.entries().next().value as [ChunkShare, number];
    return first === share ? 0 : bytes;
  }

  /** Stands in line for so many bytes: whatever is given back is kept for the first one until it has as much. */
  queue(share: ChunkShare, bytes: number): void {
    this.#line.set(share, bytes);
  }

  /** Stands in line no more. */
  leave(share: ChunkShare): void {
    if (this.#line.delete(share) && this.#waiting.size > 0) this.#wake();
  }

  #wake(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    // Together, behind whatever else is being given back now.
    setImmediate(() => {
      for (const callback of waiting) callback();
    });
  }
}

/** What one session has out of the pool. */
export class ChunkShare {
  used = 0;
  readonly #pool: ChunkPool;
  readonly #limit: number;

  constructor(pool: ChunkPool, limit: number) {
    this.#pool = pool;
    this.#limit = limit;
  }

  /** True when `bytes` more stay within the limits of this session and of the pool. */
  allows(bytes: number): boolean {
    const { used, limit } = this.#pool;
    return this.used + bytes <= this.#limit && used + bytes + this.#pool.reservedFrom(this) <= limit;
  }

  /**
   * Whether much memory may be taken at once. If not, `again` is called when that can be asked again, and `bytes` are kept for this session in
   * its turn: many sessions that take a little each do not keep it waiting for ever.
   */
  admits(bytes: number, again: () => void): boolean {
    if (this.allows(bytes) || this.#pool.used === 0) {
      this.leave();
      return true;
    }
    // A session that has too much already waits for itself.
    if (this.used + bytes > this.#limit) this.leave();
    else this.#pool.queue(this, bytes);
    this.#pool.whenGiven(again);
    return false;
  }

  /** Nothing is kept for it any more. */
  leave(): void {
    this.#pool.leave(this);
  }

  take(): Chunk {
    this.used += CHUNK_SIZE;
    return this.#pool.take().take(this);
  }

  give(chunk: Chunk): void {
    this.used -= CHUNK_SIZE;
    this.#pool.give(chunk);
  }
}

/** Hands out consecutive pieces of chunks for data that comes in. */
export class Arena {
  readonly #share: ChunkShare;
  #chunk: Chunk | undefined;
  #at = 0;

  constructor(share: ChunkShare) {
    this.#share = share;
  }

  /** Appends memory for `length` bytes to an I/O list, and the chunks it is in (each held once per piece) to `held`. */
  allocate(
    length: number,
    iov: { append(memory: Uint8Array, offset: number, length: number): unknown },
    held: Chunk[],
  ): void {
    for (let left = length; left > 0; ) {
      // Nobody else holds it: start over at its beginning, where the cache is warm.
      if (this.#chunk?.references === 1) this.#at = 0;
      if (this.#chunk === undefined || this.#at === CHUNK_SIZE) {
        this.#chunk?.release();
        this.#chunk = this.#share.take();
        this.#at = 0;
      }
      const take = Math.min(left, CHUNK_SIZE - this.#at);
      iov.append(this.#chunk.memory, this.#at, take);
      this.#chunk.hold();
      held.push(this.#chunk);
      this.#at = Math.min(CHUNK_SIZE, (this.#at + take + 7) & ~7);
      left -= take;
    }
  }

  /** Lets go of the current chunk when no data is in it: an idle session holds no memory. */
  trim(): void {
    if (this.#chunk?.references !== 1) return;
    this.#chunk.release();
    this.#chunk = undefined;
  }

  close(): void {
    this.#chunk?.release();
    this.#chunk = undefined;
  }
}
