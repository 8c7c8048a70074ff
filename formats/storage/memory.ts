import path from 'node:path';
import { StorageError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import { IoVec as List } from '../core/iov.ts';
import { alignDown } from '../core/units.ts';
import type { LockMode, Storage } from './storage.ts';

const PAGE = 65536;
let nextId = 1;

export interface MemoryStorageOptions {
  bytes?: Uint8Array;
  path?: string;
  readOnly?: boolean;
  /** Writes that would make the storage larger fail with NO_SPACE, as on a full disk. */
  maxSize?: number;
}

/** Bytes in memory, sparse by pages of 64 KiB. For tests, small images and scratch space. */
export class MemoryStorage implements Storage {
  readonly id = `memory:${nextId++}`;
  readonly path: string;
  readonly readOnly: boolean;
  readonly align = 1;
  readonly fd = null;
  readonly growsZeroed = true;
  readonly discards = true;
  /** May be changed at any time: room comes and goes. */
  maxSize: number;
  #size = 0;
  #closed = false;
  /** By page number; absent pages are holes. */
  readonly #pages = new Map<number, Uint8Array>();
  readonly #scratch = new List();

  constructor(options: MemoryStorageOptions = {}) {
    this.path = options.path ?? '/memory/image';
    this.readOnly = options.readOnly ?? false;
    this.maxSize = options.maxSize ?? Number.MAX_SAFE_INTEGER;
    if (options.bytes !== undefined) this.#write(0, List.of(options.bytes));
  }

  get size(): number {
    return this.#size;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    this.#checkOpen();
    const end = offset + iov.byteLength;
    for (let at = offset; at < end; ) {
      const page = Math.floor(at / PAGE);
      const take = Math.min((page + 1) * PAGE, end) - at;
      const bytes = this.#pages.get(page);
      if (bytes === undefined) iov.fill(at - offset, take);
      else iov.copyIn(at - offset, bytes.subarray(at % PAGE, (at % PAGE) + take));
      at += take;
    }
    return true;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    this.tryReadv(offset, iov);
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    this.#checkWritable(offset);
    if (offset + iov.byteLength > Math.min(this.#size, this.maxSize)) return false;
    this.#write(offset, iov);
    return true;
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    this.#checkWritable(offset);
    if (offset + iov.byteLength > this.maxSize) {
      throw new StorageError('NO_SPACE', 'no space left in memory storage', { path: this.path, offset });
    }
    this.#write(offset, iov);
  }

  async writeZeroes(offset: number, length: number, _unmap: boolean): Promise<boolean> {
    this.#checkWritable(offset);
    if (offset + length > this.maxSize) {
      throw new StorageError('NO_SPACE', 'no space left in memory storage', { path: this.path, offset });
    }
    this.#clear(offset, length);
    this.#size = Math.max(this.#size, offset + length);
    return true;
  }

  async discard(offset: number, length: number): Promise<boolean> {
    this.#checkWritable(offset);
    this.#clear(offset, Math.min(length, Math.max(0, this.#size - offset)));
    return true;
  }

  async copyFrom(): Promise<number> {
    return 0;
  }

  async nextData(offset: number): Promise<number> {
    for (let page = Math.floor(offset / PAGE); page * PAGE < this.#size; page++) {
      if (this.#pages.has(page)) return Math.max(offset, page * PAGE);
    }
    return this.#size;
  }

  async nextHole(offset: number): Promise<number> {
    for (let page = Math.floor(offset / PAGE); page * PAGE < this.#size; page++) {
      if (!this.#pages.has(page)) return Math.max(offset, page * PAGE);
    }
    return this.#size;
  }

  async resize(size: number): Promise<void> {
    this.#checkWritable(size);
    if (size > this.maxSize)
      throw new StorageError('NO_SPACE', 'no space left in memory storage', { path: this.path, offset: size });
    if (size < this.#size) this.#clear(size, this.#size - size);
    this.#size = size;
  }

  async sync(): Promise<void> {
    this.#checkOpen();
  }

  async lock(_mode: LockMode): Promise<void> {}

  resolve(reference: string): string {
    return path.isAbsolute(reference) ? reference : path.join(path.dirname(this.path), reference);
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  /** A copy of everything. */
  toBytes(): Uint8Array {
    const all = new Uint8Array(this.#size);
    for (const [page, bytes] of this.#pages) {
      const at = page * PAGE;
      if (at < this.#size) all.set(bytes.subarray(0, Math.min(PAGE, this.#size - at)), at);
    }
    return all;
  }

  #write(offset: number, iov: IoVec): void {
    const end = offset + iov.byteLength;
    for (let at = offset; at < end; ) {
      const page = Math.floor(at / PAGE);
      const take = Math.min((page + 1) * PAGE, end) - at;
      let bytes = this.#pages.get(page);
      if (bytes === undefined) {
        bytes = new Uint8Array(PAGE);
        this.#pages.set(page, bytes);
      }
      this.#scratch.clear().append(bytes, at % PAGE, take);
      this.#scratch.copyFrom(0, iov, at - offset, take);
      at += take;
    }
    this.#scratch.clear();
    this.#size = Math.max(this.#size, end);
  }

  #clear(offset: number, length: number): void {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const start = alignDown(at, PAGE);
      const take = Math.min(start + PAGE, end) - at;
      if (take === PAGE) this.#pages.delete(start / PAGE);
      else this.#pages.get(start / PAGE)?.fill(0, at - start, at - start + take);
      at += take;
    }
  }

  #checkOpen(): void {
    if (this.#closed) throw new StorageError('CLOSED', 'the storage is closed', { path: this.path });
  }

  #checkWritable(offset: number): void {
    this.#checkOpen();
    if (this.readOnly) throw new StorageError('READ_ONLY', 'the storage is read-only', { path: this.path, offset });
  }
}
