import type { IoVec } from '../core/iov.ts';

/**
 * Bytes at offsets: a file, a block device, memory, an HTTP resource. All offsets and lengths are bytes.
 *
 * What a storage cannot do is a value (false, null), never an exception; what goes wrong is a StorageError with path and offset.
 * Reads past the end give zeros: formats rely on it for tables and clusters that a short file does not hold. Whether that is
 * acceptable for an image is the format's business, `size` tells.
 */
export interface Storage {
  /** Identity for sharing and locking: two opens of one file have the same (`dev:inode` for files); unique for others. */
  readonly id: string;
  /** As the user or an image named it: for messages, and to resolve references against. */
  readonly path: string;
  /** Bytes; grows by writes past the end. For block devices the device's size. */
  readonly size: number;
  readonly readOnly: boolean;
  /** Offsets, lengths and memory of direct I/O must be multiples of it; 1 when anything goes. */
  readonly align: number;
  /** File descriptor for native transfer; null when there is none. */
  readonly fd: number | null;
  /** True when space past the end reads as zeros after growing (regular files, memory; not block devices). */
  readonly growsZeroed: boolean;
  /** False when discard() always says that it cannot. */
  readonly discards: boolean;
  /** What changes when the bytes do, as their server names it. Absent: for files, their times say it. */
  readonly version?: string | undefined;

  /**
   * Reads byteLength(iov) bytes at `offset` now, if that needs no waiting.
   *
   * @returns true when done; false when not: iov may hold anything then, and nothing else has changed
   */
  tryReadv(offset: number, iov: IoVec): boolean;
  readv(offset: number, iov: IoVec): Promise<void>;

  /** Writes now, if that needs no waiting; past the end too, where growing does not wait. @returns false when no byte was written */
  tryWritev(offset: number, iov: IoVec): boolean;
  /** Writes all of iov or throws; after an error the range holds old or new bytes. @throws {StorageError} NO_SPACE, READ_ONLY, IO */
  writev(offset: number, iov: IoVec): Promise<void>;

  /**
   * Makes a range read as zeros without writing them, when the storage can.
   *
   * @param unmap give the space back (punch a hole) rather than keep it allocated
   * @returns false when it cannot: nothing was changed, the caller writes zeros
   */
  writeZeroes(offset: number, length: number, unmap: boolean): Promise<boolean>;
  /** Gives space back; the range then reads as zeros on files. @returns false when the storage cannot */
  discard(offset: number, length: number): Promise<boolean>;
  /**
   * Copies from another storage without the bytes passing through the caller (reflink, copy_file_range, native code).
   *
   * @param leaveOut the range lies inside the file and reads as zeros: zeros of so many bytes, counted from its start, need not be written
   * @returns bytes dealt with from the start of the range: 0 when it cannot
   */
  copyFrom(source: Storage, sourceOffset: number, offset: number, length: number, leaveOut?: number): Promise<number>;
  /** Whether copyFrom() can be expected to copy from a storage. Absent: never. */
  canCopy?(source: Storage): boolean;
  /**
   * Looks for zeros without the bytes passing through the caller. Absent: the caller reads.
   *
   * @param out gets a byte for each unit of the range: 1 where it is zeros, else 0
   * @returns false when it cannot
   */
  zeroUnits?(offset: number, length: number, unit: number, out: Uint8Array): Promise<boolean>;

  /** Whether compareWith() works with another storage, or with zeros (null). Absent: never. */
  canCompare?(other: Storage | null): boolean;
  /**
   * Compares a range with one of another storage, or with zeros (null), without the bytes passing through the caller.
   *
   * @returns bytes from the start of the range that are equal
   */
  compareWith?(other: Storage | null, otherOffset: number, offset: number, length: number): Promise<number>;

  /** Whether ranges of a source can be shared at all: both on one file system that can. Absent: never. */
  canClone?(source: Storage): Promise<boolean>;
  /**
   * Makes a range share the source's space (reflink): nothing is copied. Absent: never possible.
   *
   * @returns false when files, file system or alignment do not allow it: nothing was changed
   */
  cloneFrom?(source: Storage, sourceOffset: number, offset: number, length: number): Promise<boolean>;

  /** Start of the next data at or after `offset`; `size` when only a hole follows; `offset` when the storage cannot tell. */
  nextData(offset: number): Promise<number>;
  /** Start of the next hole at or after `offset`; `size` when there is none or the storage cannot tell. */
  nextHole(offset: number): Promise<number>;

  /** Sets the size; new space reads as zeros on files. */
  resize(size: number): Promise<void>;
  /** Makes completed writes durable (fdatasync). A failure is final for the storage: later calls fail too. */
  sync(): Promise<void>;
  /**
   * Takes the locks that other programs honour, or throws LOCKED naming the holder where that is known. Replaces earlier ones. `size` is
   * read again: the last holder may have changed it since the file was opened.
   */
  lock(mode: LockMode): Promise<void>;
  /** The path of a file that an image in this storage names, relative to the image's directory unless absolute. */
  resolve(reference: string): string;
  close(): Promise<void>;
}

/**
 * What the holder of an image does and lets others do. On files: QEMU's byte-range locks (bytes 100+i held, 200+i not shared).
 *
 * - `write`: reads, writes and resizes; nobody else may write (100, 101, 103, 201, 203)
 * - `read`: reads; nobody else may write (100, 201, 203)
 * - `backing`: reads a file below another image; others may do the same, and write if they insist (100)
 * - `shared`: reads whatever others do (force-share): takes 100 and never fails
 * - `none`: gives all locks back
 */
export type LockMode = 'write' | 'read' | 'backing' | 'shared' | 'none';

export interface StorageOpenOptions {
  readonly readOnly: boolean;
  /** What the storage calls itself, and what names inside it are relative to. Default: its path. */
  readonly name?: string | undefined;
}

/** How to open a storage by path. Injected, so that formats work without the addon. */
export type StorageOpener = (path: string, options: StorageOpenOptions) => Promise<Storage>;
