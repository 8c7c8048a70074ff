import { StorageError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import type { LockMode, Storage } from './storage.ts';

/**
 * A part of another storage as a storage of its own: an image inside an archive, a partition. Of fixed size; closing it closes
 * the storage below only when it was told to own it.
 */
export class WindowStorage implements Storage {
  readonly id: string;
  readonly path: string;
  readonly size: number;
  readonly readOnly: boolean;
  readonly align: number;
  /** Offsets of the file below are not ours: no native transfer. */
  readonly fd = null;
  readonly growsZeroed = false;
  readonly discards: boolean;
  readonly #below: Storage;
  readonly #start: number;
  readonly #owns: boolean;

  constructor(
    below: Storage,
    range: { start: number; length: number },
    options: { readOnly?: boolean; owns?: boolean } = {},
  ) {
    this.#below = below;
    this.#start = range.start;
    this.#owns = options.owns ?? false;
    this.id = `${below.id}+${range.start}:${range.length}`;
    this.path = below.path;
    this.size = range.length;
    this.discards = below.discards;
    this.readOnly = below.readOnly || (options.readOnly ?? false);
    this.align = range.start % below.align === 0 ? below.align : 1;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    const inside = this.#inside(offset, iov.byteLength);
    if (inside === iov.byteLength) return this.#below.tryReadv(this.#start + offset, iov);
    if (inside > 0 && !this.#below.tryReadv(this.#start + offset, iov.slice(0, inside))) return false;
    iov.fill(inside, iov.byteLength - inside);
    return true;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    const inside = this.#inside(offset, iov.byteLength);
    if (inside > 0)
      await this.#below.readv(this.#start + offset, inside === iov.byteLength ? iov : iov.slice(0, inside));
    iov.fill(inside, iov.byteLength - inside);
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    this.#checkWrite(offset, iov.byteLength);
    return this.#below.tryWritev(this.#start + offset, iov);
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    this.#checkWrite(offset, iov.byteLength);
    await this.#below.writev(this.#start + offset, iov);
  }

  async writeZeroes(offset: number, length: number, unmap: boolean): Promise<boolean> {
    this.#checkWrite(offset, length);
    return this.#below.writeZeroes(this.#start + offset, length, unmap);
  }

  async discard(offset: number, length: number): Promise<boolean> {
    this.#checkWrite(offset, length);
    return this.#below.discard(this.#start + offset, length);
  }

  copyFrom(source: Storage, sourceOffset: number, offset: number, length: number): Promise<number> {
    this.#checkWrite(offset, length);
    return this.#below.copyFrom(source, sourceOffset, this.#start + offset, length);
  }

  async nextData(offset: number): Promise<number> {
    return Math.min(Math.max((await this.#below.nextData(this.#start + offset)) - this.#start, offset), this.size);
  }

  async nextHole(offset: number): Promise<number> {
    return Math.min(Math.max((await this.#below.nextHole(this.#start + offset)) - this.#start, offset), this.size);
  }

  async resize(size: number): Promise<void> {
    throw new StorageError('UNSUPPORTED', 'a part of a file cannot change its size', { path: this.path, offset: size });
  }

  sync(): Promise<void> {
    return this.#below.sync();
  }

  lock(mode: LockMode): Promise<void> {
    return this.#below.lock(mode);
  }

  resolve(reference: string): string {
    return this.#below.resolve(reference);
  }

  async close(): Promise<void> {
    if (this.#owns) await this.#below.close();
  }

  /** How many of `length` bytes at `offset` are inside the window. */
  #inside(offset: number, length: number): number {
    return Math.max(0, Math.min(length, this.size - offset));
  }

  #checkWrite(offset: number, length: number): void {
    if (this.readOnly) throw new StorageError('READ_ONLY', 'the storage is read-only', { path: this.path, offset });
    if (offset + length > this.size)
      throw new StorageError('OUT_OF_RANGE', 'a write past the end of this part of the file', {
        path: this.path,
        offset,
      });
  }
}
