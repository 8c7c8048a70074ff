import { LRUCache } from 'lru-cache';
import { StorageError } from '../../formats/core/errors.ts';
import type { IoVec } from '../../formats/core/iov.ts';
import { Lifetime } from '../../formats/core/lifetime.ts';
import { divideUp, KiB, MiB } from '../../formats/core/units.ts';
import type { LockMode, Storage } from '../../formats/storage/storage.ts';
import { RangeClient, type RangeClientOptions } from './range-client.ts';

export interface HttpStorageOptions extends RangeClientOptions {
  /** Bytes of the file that are kept. Default 32 MiB. */
  readonly cacheBytes?: number | undefined;
}

/** What is asked for and kept as a whole. */
const BLOCK = 128 * KiB;
/** Blocks of one request at most. */
const LONGEST = 16;
/** Blocks that are asked for ahead of who reads in order. */
const AHEAD = 8;
const CACHE_BYTES = 32 * MiB;

/** A file on a web server, in parts as they are needed. Read-only. */
export class HttpStorage implements Storage {
  readonly id: string;
  readonly path: string;
  readonly size: number;
  readonly version: string | undefined;
  readonly readOnly = true;
  readonly align = 1;
  readonly fd = null;
  readonly growsZeroed = false;
  readonly discards = false;
  readonly #client: RangeClient;
  readonly #lifetime: Lifetime;
  readonly #blocks: LRUCache<number, Uint8Array>;
  /** Blocks that are on their way. */
  readonly #coming = new Map<number, Promise<Uint8Array>>();
  /** The block behind the last read, and how far ahead of it is asked. */
  #next = 0;
  #ahead = 0;
  /** Requests that may begin, and those that wait for their turn. */
  #free: number;
  readonly #waiting: (() => void)[] = [];

  private constructor(url: string, client: RangeClient, head: Uint8Array, options: HttpStorageOptions) {
    const { size, version } = client.file;
    this.path = url;
    this.size = size;
    this.version = version === undefined ? undefined : `${version} ${size}`;
    this.id = `${url} ${this.version ?? ''}`;
    this.#client = client;
    this.#lifetime = new Lifetime(url);
    this.#free = options.connections ?? 8;
    this.#blocks = new LRUCache({ max: Math.max(1, Math.floor((options.cacheBytes ?? CACHE_BYTES) / BLOCK)) });
    if (head.length > 0) this.#blocks.set(0, head);
  }

  /** @throws {StorageError} what RangeClient.open throws; READ_ONLY */
  static async open(url: string, options: HttpStorageOptions = {}): Promise<HttpStorage> {
    const { client, head } = await RangeClient.open(url, BLOCK, options);
    return new HttpStorage(url, client, head, options);
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    if (this.#lifetime.closed) return false; // readv says so
    const end = Math.min(offset + iov.byteLength, this.size);
    for (let block = Math.floor(offset / BLOCK); block * BLOCK < end; block++) {
      if (!this.#blocks.has(block)) return false;
    }
    for (let block = Math.floor(offset / BLOCK); block * BLOCK < end; block++) {
      this.#copy(block, this.#blocks.get(block) as Uint8Array, offset, iov);
    }
    this.#zeroBehind(offset, iov);
    return true;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    this.#lifetime.enter();
    try {
      const end = Math.min(offset + iov.byteLength, this.size);
      const first = Math.floor(offset / BLOCK);
      const behind = divideUp(end, BLOCK);
      if (first < behind) this.#fetchMissing(first, behind);
      const parts: Promise<void>[] = [];
      for (let block = first; block < behind; block++) {
        const kept = this.#blocks.get(block);
        if (kept !== undefined) this.#copy(block, kept, offset, iov);
        else
          parts.push((this.#coming.get(block) as Promise<Uint8Array>).then((b) => this.#copy(block, b, offset, iov)));
      }
      for (const result of await Promise.allSettled(parts)) if (result.status === 'rejected') throw result.reason;
      this.#zeroBehind(offset, iov);
    } finally {
      this.#lifetime.leave();
    }
  }

  tryWritev(): boolean {
    return false;
  }

  async writev(): Promise<void> {
    throw this.#readOnly();
  }

  async writeZeroes(): Promise<boolean> {
    throw this.#readOnly();
  }

  async discard(): Promise<boolean> {
    return false;
  }

  async copyFrom(): Promise<number> {
    return 0;
  }

  async nextData(offset: number): Promise<number> {
    return offset;
  }

  async nextHole(): Promise<number> {
    return this.size;
  }

  async resize(): Promise<void> {
    throw this.#readOnly();
  }

  async sync(): Promise<void> {}

  /** Nobody locks files on web servers; that they stay the same is watched instead. */
  async lock(mode: LockMode): Promise<void> {
    if (mode === 'write') throw this.#readOnly();
  }

  /** A name beside this file, on the same server. An absolute path is one on this machine, as for QEMU. */
  resolve(reference: string): string {
    if (reference.startsWith('/')) return reference;
    return new URL(reference.split('/').map(encodeURIComponent).join('/'), this.path).href;
  }

  close(): Promise<void> {
    return this.#lifetime.close(() => {
      this.#client.close();
      this.#blocks.clear();
    });
  }

  /** Asks for blocks that are neither here nor on their way; where they are read in order, for some more. */
  #fetchMissing(first: number, behind: number): void {
    const inOrder = first === this.#next || first === this.#next - 1;
    this.#ahead = inOrder ? Math.min(AHEAD, Math.max(1, this.#ahead * 2)) : 0;
    this.#next = behind;
    const last = Math.min(behind + this.#ahead, divideUp(this.size, BLOCK));
    const isThere = (block: number): boolean => this.#blocks.has(block) || this.#coming.has(block);
    for (let block = first; block < last; ) {
      if (isThere(block)) {
        // Not for what is ahead alone: that comes with what is needed.
        if (++block >= behind) return;
        continue;
      }
      let end = block + 1;
      while (end < last && end - block < LONGEST && !isThere(end)) end++;
      this.#fetch(block, end);
      block = end;
    }
  }

  #fetch(first: number, behind: number): void {
    const offset = first * BLOCK;
    const length = Math.min(behind * BLOCK, this.size) - offset;
    const fetching = this.#inTurn(() => this.#client.read(offset, length));
    for (let block = first; block < behind; block++) {
      const at = (block - first) * BLOCK;
      const coming = fetching.then(
        (bytes) => {
          // A copy: a part would keep all of it.
          const own = bytes.slice(at, at + BLOCK);
          this.#coming.delete(block);
          if (!this.#lifetime.closed) this.#blocks.set(block, own);
          return own;
        },
        (error: unknown) => {
          this.#coming.delete(block);
          throw error;
        },
      );
      coming.catch(() => undefined); // whoever reads hears of it; nobody may
      this.#coming.set(block, coming);
    }
  }

  /** Runs as many at the same time as there are connections: others have no memory yet. */
  async #inTurn<T>(act: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await act();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }

  #copy(block: number, bytes: Uint8Array, offset: number, iov: IoVec): void {
    const start = Math.max(offset, block * BLOCK);
    const end = Math.min(offset + iov.byteLength, block * BLOCK + bytes.length);
    if (start < end) iov.copyIn(start - offset, bytes.subarray(start - block * BLOCK, end - block * BLOCK));
  }

  #zeroBehind(offset: number, iov: IoVec): void {
    const inside = Math.max(0, Math.min(iov.byteLength, this.size - offset));
    if (inside < iov.byteLength) iov.fill(inside, iov.byteLength - inside);
  }

  #readOnly(): StorageError {
    return new StorageError('READ_ONLY', 'what is on a web server can only be read', { path: this.path });
  }
}
