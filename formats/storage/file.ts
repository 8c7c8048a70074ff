/** Files and block devices with nothing but Node: slower than native storage and without hole punching, but everywhere. */

import { fdatasync, fstatSync, ftruncate, readSync, readv, statfsSync, writeSync, writev } from 'node:fs';
import { promisify } from 'node:util';
import { fromSystemError, StorageError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import { Lifetime } from '../core/lifetime.ts';
import { FallbackLocker } from './fallback-locks.ts';
import { type ByteLocker, ImageLock } from './image-lock.ts';
import { closeFile, MEMORY_FILE_SYSTEMS, type OpenFile, openFile, resolveBeside } from './open-file.ts';
import { SharedSync } from './shared-sync.ts';
import type { LockMode, Storage, StorageOpenOptions } from './storage.ts';

const readvAsync = promisify(readv) as (
  fd: number,
  buffers: readonly NodeJS.ArrayBufferView[],
  position: number,
) => Promise<{ bytesRead: number }>;
const writevAsync = promisify(writev) as (
  fd: number,
  buffers: readonly NodeJS.ArrayBufferView[],
  position: number,
) => Promise<{ bytesWritten: number }>;
const fdatasyncAsync = promisify(fdatasync);
const ftruncateAsync = promisify(ftruncate);

/** One call of the kernel takes no more (IOV_MAX). */
const MAX_SEGMENTS = 1024;
/** More than this would hold up the event loop, also from memory. */
const MAX_MEMORY_TRANSFER = 1024 * 1024;

export interface FileStorageOptions extends StorageOpenOptions {
  /** Who takes locks. Default: Perl where there is one. */
  readonly locker?: ByteLocker;
}

/** Opens a file or block device without the addon. @throws {StorageError} NOT_FOUND, ACCESS, READ_ONLY, INVALID */
export async function openFileStorage(path: string, options: FileStorageOptions): Promise<FileStorage> {
  return new FileStorage(await openFile(path, options), options.locker);
}

export class FileStorage implements Storage {
  readonly id: string;
  readonly path: string;
  readonly readOnly: boolean;
  readonly align = 1;
  readonly fd: number;
  readonly growsZeroed: boolean;
  readonly discards = false;
  readonly #file: OpenFile;
  readonly #lifetime: Lifetime;
  readonly #lock: ImageLock;
  readonly #sync: SharedSync;
  /** Reading and writing this file never waits, because its file system is memory; false once closed. */
  #inMemory: boolean;
  #size: number;

  constructor(file: OpenFile, locker: ByteLocker = new FallbackLocker()) {
    this.#file = file;
    this.id = file.id;
    this.path = file.path;
    this.readOnly = file.readOnly;
    this.fd = file.fd;
    this.growsZeroed = !file.isDevice;
    this.#size = file.size;
    this.#inMemory = !file.isDevice && isInMemory(file.fd);
    this.#lifetime = new Lifetime(file.path);
    this.#lock = new ImageLock(file, locker);
    this.#sync = new SharedSync(() => this.#dataSync());
  }

  get size(): number {
    return this.#size;
  }

  /** Why locks do not protect the image fully, for a warning; undefined when they do. */
  get lockNotice(): string | undefined {
    return this.#lock.notice;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    if (!this.#inMemory || iov.byteLength > MAX_MEMORY_TRANSFER) return false;
    try {
      let done = 0;
      for (let i = 0; i < iov.count; i++) {
        const length = iov.lengths[i] as number;
        const got = readSync(this.fd, iov.memory[i] as Uint8Array, iov.offsets[i] as number, length, offset + done);
        done += got;
        if (got < length) break;
      }
      if (done < iov.byteLength) {
        if (offset + done < this.#size) return false;
        iov.fill(done, iov.byteLength - done);
      }
      return true;
    } catch {
      return false; // readv() meets the same error and says so.
    }
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    this.#lifetime.enter();
    try {
      const total = iov.byteLength;
      let done = 0;
      while (done < total) {
        const { bytesRead } = await readvAsync(this.fd, views(iov, done), offset + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      if (done < total) iov.fill(done, total - done);
    } catch (error) {
      throw this.#wrap(error, 'reading', offset);
    } finally {
      this.#lifetime.leave();
    }
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    if (!this.#inMemory || this.readOnly) return false;
    if (iov.byteLength > MAX_MEMORY_TRANSFER || offset + iov.byteLength > this.#size) return false;
    this.#sync.wrote();
    try {
      let done = 0;
      for (let i = 0; i < iov.count; i++) {
        const length = iov.lengths[i] as number;
        const put = writeSync(this.fd, iov.memory[i] as Uint8Array, iov.offsets[i] as number, length, offset + done);
        done += put;
        // A file system that is full: the caller writes the same bytes again by writev(), and hears why.
        if (put < length) return false;
      }
      return true;
    } catch {
      return false;
    }
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    this.#enterWrite(offset);
    try {
      const total = iov.byteLength;
      let done = 0;
      while (done < total) {
        const { bytesWritten } = await writevAsync(this.fd, views(iov, done), offset + done);
        done += bytesWritten;
      }
      this.#size = Math.max(this.#size, offset + total);
    } catch (error) {
      this.#refreshSize();
      throw this.#wrap(error, 'writing', offset);
    } finally {
      this.#leaveWrite();
    }
  }

  /** Node has no fallocate. */
  async writeZeroes(offset: number, _length: number, _unmap: boolean): Promise<boolean> {
    this.#enterWrite(offset);
    this.#leaveWrite();
    return false;
  }

  async discard(offset: number, _length: number): Promise<boolean> {
    this.#enterWrite(offset);
    this.#leaveWrite();
    return false;
  }

  async copyFrom(_source: Storage, _sourceOffset: number, offset: number, _length: number): Promise<number> {
    this.#enterWrite(offset);
    this.#leaveWrite();
    return 0;
  }

  async nextData(offset: number): Promise<number> {
    return Math.min(offset, this.#size);
  }

  async nextHole(_offset: number): Promise<number> {
    return this.#size;
  }

  async resize(size: number): Promise<void> {
    this.#enterWrite(size);
    try {
      if (this.#file.isDevice) throw deviceResizeError(this.path);
      await ftruncateAsync(this.fd, size);
      this.#size = size;
    } catch (error) {
      throw this.#wrap(error, 'resizing', size);
    } finally {
      this.#leaveWrite();
    }
  }

  async sync(): Promise<void> {
    this.#lifetime.enter();
    try {
      await this.#sync.run();
    } finally {
      this.#lifetime.leave();
    }
  }

  async lock(mode: LockMode): Promise<void> {
    this.#lifetime.enter();
    try {
      await this.#lock.set(mode);
      // Whoever had it until now may have made it longer since it was opened.
      if (!this.#file.isDevice) this.#size = fstatSync(this.fd).size;
    } finally {
      this.#lifetime.leave();
    }
  }

  resolve(reference: string): string {
    return resolveBeside(this.path, reference);
  }

  /** Waits for what is in flight. Gives locks back. Does not sync. Safe to call twice. */
  close(): Promise<void> {
    this.#inMemory = false;
    return this.#lifetime.close(() => closeFile(this.fd));
  }

  async #dataSync(): Promise<void> {
    try {
      await fdatasyncAsync(this.fd);
    } catch (error) {
      throw this.#wrap(error, 'syncing', undefined);
    }
  }

  #leaveWrite(): void {
    this.#sync.wrote();
    this.#lifetime.leave();
  }

  #enterWrite(offset: number): void {
    this.#lifetime.enter();
    if (!this.readOnly) return;
    this.#lifetime.leave();
    throw new StorageError('READ_ONLY', `${this.path} is open for reading only`, { path: this.path, offset });
  }

  /** After a write that failed half-way. */
  #refreshSize(): void {
    if (!this.#file.isDevice) this.#size = Math.max(this.#size, fstatSync(this.fd).size);
  }

  #wrap(error: unknown, doing: string, offset: number | undefined): Error {
    return fromSystemError(error, `${doing} ${this.path}`, { path: this.path, offset });
  }
}

/** What resize() of a block device throws. */
export function deviceResizeError(path: string): StorageError {
  return new StorageError('INVALID', `${path} is a block device: its size is not ours to change`, { path });
}

/** The list from byte `skip` on, as views for Node's calls. */
function views(iov: IoVec, skip: number): Uint8Array[] {
  const result: Uint8Array[] = [];
  let left = skip;
  for (let i = 0; i < iov.count && result.length < MAX_SEGMENTS; i++) {
    const start = iov.offsets[i] as number;
    const length = iov.lengths[i] as number;
    if (left < length) result.push((iov.memory[i] as Uint8Array).subarray(start + left, start + length));
    left = Math.max(0, left - length);
  }
  return result;
}

function isInMemory(fd: number): boolean {
  if (process.platform !== 'linux') return false;
  try {
    return MEMORY_FILE_SYSTEMS.has(statfsSync(`/proc/self/fd/${fd}`).type);
  } catch {
    return false;
  }
}
