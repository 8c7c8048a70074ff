/** Files and block devices through the addon: on the event loop where that does not wait, else on the pool of the I/O queue. */

import { fstatSync } from 'node:fs';
import { fromSystemError, StorageError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { Lifetime } from '../../formats/core/lifetime.ts';
import { alignDown, alignUp, KiB, MiB } from '../../formats/core/units.ts';
import { deviceResizeError } from '../../formats/storage/file.ts';
import { ImageLock } from '../../formats/storage/image-lock.ts';
import {
  closeFile,
  MEMORY_FILE_SYSTEMS,
  type OpenFile,
  openFile,
  resolveBeside,
} from '../../formats/storage/open-file.ts';
import { SharedSync } from '../../formats/storage/shared-sync.ts';
import type { LockMode, Storage, StorageOpenOptions } from '../../formats/storage/storage.ts';
import { requireNative } from '../native/binding.ts';
import {
  lastWriteUs,
  READ_CACHED,
  READ_MEMORY,
  type TransferMode,
  transferNow,
  WRITE,
  WRITE_NO_WAIT,
} from '../native/direct-io.ts';
import { ENXIO, EOPNOTSUPP, EXDEV, isUnsupported, systemError } from '../native/errno.ts';
import { type IoQueue, type OperationClock, sharedIoQueue } from '../native/io-queue.ts';
import { NativeLocker } from './native-locks.ts';

/** Reads from the page cache move about 15 GB/s: this much holds up the event loop for a quarter of a millisecond. */
const MAX_READ_NOW = 4 * MiB;
/** The same for writes to memory, which also take pages. */
const MAX_MEMORY_WRITE_NOW = MiB;
/** Writes to a page cache that may decide to write back first. */
const MAX_WRITE_NOW = 64 * KiB;
/** Whole pages only: a part of one that is not cached would be read first. */
const PAGE = 4 * KiB;
/** One copy_file_range on the pool: it must not keep a thread for long. */
const COPY_CHUNK = 32 * MiB;
/** FICLONERANGE takes whole blocks of the file system; none has larger ones than most machines' pages. */
const CLONE_ALIGN = 4 * KiB;

/** A write of one page-cached piece that takes longer has met writeback or a lock. */
const SLOW_WRITE_US = 1000;
const QUICK_WRITES_NEEDED = 32;

/** Decides whether small writes may run on the event loop: only while the last ones were quick, wherever they ran. */
export class WritePace implements OperationClock {
  #quick = QUICK_WRITES_NEEDED;

  get isQuick(): boolean {
    return this.#quick >= QUICK_WRITES_NEEDED;
  }

  note(elapsedUs: number): void {
    this.#quick = elapsedUs < SLOW_WRITE_US ? Math.min(this.#quick + 1, QUICK_WRITES_NEEDED) : 0;
  }
}

export interface NativeStorageOptions extends StorageOpenOptions {
  /** Default: the process's queue. */
  readonly queue?: IoQueue;
}

/** Opens a file or block device. @throws {StorageError} NOT_FOUND, ACCESS, READ_ONLY, INVALID; {TypeError} without the addon */
export async function openNativeStorage(path: string, options: NativeStorageOptions): Promise<NativeStorage> {
  const queue = options.queue ?? sharedIoQueue();
  return new NativeStorage(await openFile(path, options), queue);
}

export class NativeStorage implements Storage {
  readonly id: string;
  readonly path: string;
  readonly readOnly: boolean;
  readonly align = 1;
  readonly fd: number;
  readonly growsZeroed: boolean;
  readonly discards = true;
  readonly #file: OpenFile;
  readonly #queue: IoQueue;
  readonly #lifetime: Lifetime;
  readonly #lock: ImageLock;
  readonly #sync: SharedSync;
  readonly #pace = new WritePace();
  /** Block devices: offsets and lengths of discard and zeroing are multiples of it. */
  readonly #blockSize: number;
  #size: number;
  /** A server's, or another file system that may wait at any call: it may have a way of its own to copy. */
  readonly #isRemote: boolean;
  /** How to read and write on the event loop; undefined: not at all. */
  #readMode: TransferMode | undefined;
  #writeMode: TransferMode | undefined;
  // What the file system turned out not to have.
  #punches = true;
  #zeroes = true;
  #clones = true;

  constructor(file: OpenFile, queue: IoQueue) {
    this.#file = file;
    this.#queue = queue;
    this.id = file.id;
    this.path = file.path;
    this.readOnly = file.readOnly;
    this.fd = file.fd;
    this.growsZeroed = !file.isDevice;
    this.#size = file.size;
    this.#lifetime = new Lifetime(file.path);
    this.#lock = new ImageLock(file, new NativeLocker(queue));
    this.#sync = new SharedSync(() => this.#dataSync());
    this.#blockSize = file.isDevice ? requireNative().deviceBlockSize(file.fd) : 1;
    if (!file.isDevice && MEMORY_FILE_SYSTEMS.has(requireNative().fileSystemType(file.fd))) {
      this.#readMode = READ_MEMORY;
      this.#writeMode = WRITE;
    } else if (transferNow(READ_CACHED, file.fd, 0, IoVec.of(new Uint8Array(1))) !== EOPNOTSUPP) {
      // A local file system with a page cache. Others (NFS, FUSE, 9p) may wait for a server at any call.
      this.#readMode = READ_CACHED;
      this.#writeMode = WRITE_NO_WAIT;
    }
    this.#isRemote = this.#readMode === undefined;
    if (file.readOnly) this.#writeMode = undefined;
  }

  get size(): number {
    return this.#size;
  }

  /** Why locks do not protect the image fully, for a warning; undefined when they do. */
  get lockNotice(): string | undefined {
    return this.#lock.notice;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    const mode = this.#readMode;
    const length = iov.byteLength;
    if (mode === undefined || length > MAX_READ_NOW) return false;
    const done = transferNow(mode, this.fd, offset, iov);
    if (done === length) return true;
    // Short before the end means that the rest is not cached; errors are met again, and reported, by readv().
    if (done < 0 || offset + done < this.#size) return false;
    iov.fill(done, length - done);
    return true;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    this.#lifetime.enter();
    try {
      const length = iov.byteLength;
      const done = await this.#queue.readv(this.fd, offset, iov);
      if (done < 0) throw this.#failure(done, 'reading', 'preadv', offset);
      if (done < length) iov.fill(done, length - done);
    } finally {
      this.#lifetime.leave();
    }
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    const length = iov.byteLength;
    // Also past the end of a file that grows: a small write there is one into the page cache like any other.
    const inside = offset + length <= this.#size;
    if (!inside && (length > MAX_WRITE_NOW || !this.growsZeroed)) return false;
    this.#sync.wrote();
    if (!this.#tryWrite(offset, iov, length)) return false;
    if (!inside) this.#size = Math.max(this.#size, offset + length);
    return true;
  }

  #tryWrite(offset: number, iov: IoVec, length: number): boolean {
    switch (this.#writeMode) {
      case WRITE_NO_WAIT: {
        if (length > MAX_WRITE_NOW) return false;
        const done = transferNow(WRITE_NO_WAIT, this.fd, offset, iov);
        if (done !== EOPNOTSUPP) return done === length;
        this.#writeMode = WRITE;
        return this.#tryWriteCached(offset, iov);
      }
      case WRITE:
        if (this.#readMode === READ_CACHED) return this.#tryWriteCached(offset, iov);
        if (length > MAX_MEMORY_WRITE_NOW) return false;
        // Less than all is a full file system: the caller writes the same bytes again by writev(), and hears why.
        return transferNow(WRITE, this.fd, offset, iov) === length;
      default:
        return false;
    }
  }

  /** ext4 and others without RWF_NOWAIT on writes: into the page cache, as long as that has been quick. */
  #tryWriteCached(offset: number, iov: IoVec): boolean {
    const length = iov.byteLength;
    if (length > MAX_WRITE_NOW) return false;
    if (offset % PAGE !== 0 || length % PAGE !== 0 || !this.#pace.isQuick) return false;
    const done = transferNow(WRITE, this.fd, offset, iov);
    this.#pace.note(lastWriteUs());
    return done === length;
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    this.#enterWrite(offset);
    try {
      const length = iov.byteLength;
      const clock = length <= MAX_WRITE_NOW ? this.#pace : undefined;
      const done = await this.#queue.writev(this.fd, offset, iov, clock);
      if (done < 0) {
        this.#refreshSize();
        throw this.#failure(done, 'writing', 'pwritev', offset);
      }
      this.#size = Math.max(this.#size, offset + length);
    } finally {
      this.#leaveWrite();
    }
  }

  async writeZeroes(offset: number, length: number, unmap: boolean): Promise<boolean> {
    this.#enterWrite(offset);
    try {
      if (length === 0) return true;
      if (this.#file.isDevice) return await this.#zeroDevice(offset, length, unmap);
      return unmap ? await this.#zeroByPunching(offset, length) : await this.#zeroAllocated(offset, length);
    } finally {
      this.#leaveWrite();
    }
  }

  async discard(offset: number, length: number): Promise<boolean> {
    this.#enterWrite(offset);
    try {
      const { operations } = this.#queue;
      if (!this.#file.isDevice) {
        return await this.#supported('punching a hole in', operations.punchHole, offset, this.#inside(offset, length));
      }
      const start = alignUp(offset, this.#blockSize);
      const end = alignDown(offset + this.#inside(offset, length), this.#blockSize);
      return await this.#supported('discarding in', operations.deviceDiscard, start, end - start);
    } finally {
      this.#leaveWrite();
    }
  }

  canCopy(source: Storage): boolean {
    return source.fd !== null && !this.readOnly && this.#queue.operations.copySparse !== undefined;
  }

  async zeroUnits(offset: number, length: number, unit: number, out: Uint8Array): Promise<boolean> {
    if (this.#queue.operations.findZeros === undefined) return false;
    this.#lifetime.enter();
    try {
      const done = await this.#queue.findZeros(this.fd, offset, length, unit, IoVec.of(out));
      if (done < 0) throw this.#failure(done, 'reading', 'pread', offset);
      return true;
    } finally {
      this.#lifetime.leave();
    }
  }

  canCompare(other: Storage | null): boolean {
    return (other === null || other.fd !== null) && this.#queue.operations.compare !== undefined;
  }

  async compareWith(other: Storage | null, otherOffset: number, offset: number, length: number): Promise<number> {
    this.#lifetime.enter();
    try {
      const fd = other === null ? -1 : other.fd;
      if (fd === null) throw new TypeError('only what has a descriptor is compared');
      const done = await this.#queue.compare(this.fd, offset, fd, otherOffset, length);
      if (done < 0)
        throw this.#failure(done, other === null ? 'reading' : `comparing ${other.path} with`, 'pread', offset);
      return done;
    } finally {
      this.#lifetime.leave();
    }
  }

  async copyFrom(source: Storage, sourceOffset: number, offset: number, length: number, leaveOut = 0): Promise<number> {
    this.#enterWrite(offset);
    try {
      if (source.fd === null) return 0;
      if (leaveOut === 0 && (await this.#clone(source.fd, sourceOffset, offset, length))) return length;
      const { operations } = this.#queue;
      let total = 0;
      while (total < length) {
        const piece = Math.min(length - total, COPY_CHUNK);
        const from = sourceOffset + total;
        const to = offset + total;
        const done = await ((leaveOut === 0 && this.#isRemote) || operations.copySparse === undefined
          ? this.#queue.copy(operations.copyRange, source.fd, from, this.fd, to, piece)
          : this.#queue.copy(operations.copySparse, source.fd, from, this.fd, to, piece, wordOf(leaveOut)));
        if (done < 0) {
          this.#refreshSize();
          throw this.#failure(done, `copying from ${source.path} into`, 'pwrite', to);
        }
        total += done;
        // What was left out does not make a file longer.
        if (leaveOut === 0) this.#size = Math.max(this.#size, offset + total);
        if (done < piece) break;
      }
      return total;
    } finally {
      this.#leaveWrite();
    }
  }

  async canClone(source: Storage): Promise<boolean> {
    if (source.fd === null || this.readOnly || this.#file.isDevice || !this.#clones) return false;
    this.#lifetime.enter();
    try {
      // Nothing, from the source's end on: the kernel looks whether it could, and does nothing.
      const { operations } = this.#queue;
      return (await this.#queue.copy(operations.cloneRange, source.fd, source.size, this.fd, 0, 0)) === 0;
    } finally {
      this.#lifetime.leave();
    }
  }

  async cloneFrom(source: Storage, sourceOffset: number, offset: number, length: number): Promise<boolean> {
    this.#enterWrite(offset);
    try {
      return source.fd !== null && (await this.#clone(source.fd, sourceOffset, offset, length));
    } finally {
      this.#leaveWrite();
    }
  }

  async nextData(offset: number): Promise<number> {
    if (offset >= this.#size) return this.#size;
    const found = await this.#seek(this.#queue.operations.seekData, offset);
    if (found === ENXIO) return this.#size;
    return found < 0 ? offset : Math.min(found, this.#size);
  }

  async nextHole(offset: number): Promise<number> {
    if (offset >= this.#size) return this.#size;
    const found = await this.#seek(this.#queue.operations.seekHole, offset);
    return found < 0 ? this.#size : Math.min(found, this.#size);
  }

  async resize(size: number): Promise<void> {
    this.#enterWrite(size);
    try {
      if (this.#file.isDevice) throw deviceResizeError(this.path);
      const result = await this.#queue.range(this.#queue.operations.truncate, this.fd, 0, size);
      if (result < 0) throw this.#failure(result, 'resizing', 'ftruncate', size);
      this.#size = size;
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
    this.#readMode = undefined;
    this.#writeMode = undefined;
    return this.#lifetime.close(() => closeFile(this.fd));
  }

  async #dataSync(): Promise<void> {
    if (this.#readMode === READ_MEMORY) return; // nothing there outlives the machine
    const result = await this.#queue.range(this.#queue.operations.dataSync, this.fd, 0, 0);
    if (result < 0) throw this.#failure(result, 'syncing', 'fdatasync', undefined);
  }

  async #zeroByPunching(offset: number, length: number): Promise<boolean> {
    if (!this.#punches) return false;
    const end = offset + length;
    if (end > this.#size) {
      // Grown by a byte at its end, not by truncating: that could cut off what somebody else writes further on meanwhile.
      const done = await this.#queue.writev(this.fd, end - 1, IoVec.of(new Uint8Array(1)));
      if (done < 0) throw this.#failure(done, 'writing', 'pwritev', end - 1);
      this.#size = Math.max(this.#size, end);
    }
    this.#punches = await this.#supported('punching a hole in', this.#queue.operations.punchHole, offset, length);
    return this.#punches;
  }

  async #zeroAllocated(offset: number, length: number): Promise<boolean> {
    const { operations } = this.#queue;
    if (this.#zeroes) {
      this.#zeroes = await this.#supported('zeroing', operations.zeroRange, offset, length);
    }
    if (!this.#zeroes) {
      // tmpfs: as a hole, then allocated again.
      const inside = this.#inside(offset, length);
      if (!(await this.#supported('punching a hole in', operations.punchHole, offset, inside))) return false;
      if (!(await this.#supported('allocating', operations.allocate, offset, length))) return false;
    }
    this.#size = Math.max(this.#size, offset + length);
    return true;
  }

  async #zeroDevice(offset: number, length: number, unmap: boolean): Promise<boolean> {
    const { operations } = this.#queue;
    if (offset % this.#blockSize !== 0 || length % this.#blockSize !== 0 || offset + length > this.#size) return false;
    // Not BLKDISCARD: what a discarded block reads as is the device's choice.
    const operation = unmap ? operations.punchHole : operations.deviceZeroRange;
    if (await this.#supported('zeroing', operation, offset, length)) return true;
    return await this.#supported('zeroing', operations.deviceZeroOut, offset, length);
  }

  /** Bytes of a range that are below the end. */
  #inside(offset: number, length: number): number {
    return Math.max(0, Math.min(length, this.#size - offset));
  }

  /** Runs an operation on a range. @returns false when file system or device has no such operation */
  async #supported(doing: string, operation: number, offset: number, length: number): Promise<boolean> {
    if (length <= 0) return true;
    const result = await this.#queue.range(operation, this.fd, offset, length);
    if (result >= 0) return true;
    if (isUnsupported(result)) return false;
    this.#refreshSize();
    throw this.#failure(result, doing, 'fallocate', offset);
  }

  /** Any error is a no: what is in the way of sharing is not in the way of copying. */
  async #clone(source: number, sourceOffset: number, offset: number, length: number): Promise<boolean> {
    if (!this.#clones || this.#file.isDevice || length === 0) return false;
    if ([sourceOffset, offset, length].some((value) => value % CLONE_ALIGN !== 0)) return false;
    const { operations } = this.#queue;
    const done = await this.#queue.copy(operations.cloneRange, source, sourceOffset, this.fd, offset, length);
    if (done > 0) this.#size = Math.max(this.#size, offset + done);
    if (isUnsupported(done) || done === EXDEV) this.#clones = false;
    return done === length;
  }

  async #seek(operation: number, offset: number): Promise<number> {
    this.#lifetime.enter();
    try {
      return await this.#queue.range(operation, this.fd, offset, 0);
    } finally {
      this.#lifetime.leave();
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

  #failure(result: number, doing: string, syscall: string, offset: number | undefined): Error {
    return fromSystemError(systemError(result, syscall), `${doing} ${this.path}`, { path: this.path, offset });
  }
}

/** A number as native code reads it from memory. */
function wordOf(value: number): IoVec {
  return IoVec.of(new Uint8Array(Float64Array.of(value).buffer));
}
