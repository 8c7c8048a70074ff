import type { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';
import type { ExtentBuffer } from './extent.ts';
import type { Compression, EncodedUnit, ResizeOptions } from './layer.ts';

/**
 * A disk: what SCSI, NBD and convert consume. A chain of layers is one, an NBD client is another. All offsets and lengths are guest bytes.
 *
 * Every call checks its range against `size` and throws OUT_OF_RANGE. Writers that overlap are serialized in the order of their calls.
 */
export interface Image {
  /** Path or URL, as the user named it. */
  readonly path: string;
  /** Format of the top layer. */
  readonly format: string;
  /** Bytes. Changes by resize(). */
  readonly size: number;
  readonly readOnly: boolean;
  readonly limits: ImageLimits;

  /**
   * Reads now, if mapping and data are at hand; nothing is allocated and no promise made.
   *
   * @returns false: iov may hold anything, nothing else changed; call readv
   */
  tryReadv(offset: number, iov: IoVec): boolean;
  readv(offset: number, iov: IoVec): Promise<void>;
  /** Whether a range is known, from memory, to read as zeros. False when it does not, or when that takes looking. Absent: never known. */
  readsZero?(offset: number, length: number): boolean;
  /** Writes now, if that is quick. @returns false when no byte was written: call writev */
  tryWritev(offset: number, iov: IoVec): boolean;
  /** @throws {LunetteError} READ_ONLY, NO_SPACE, IO, CORRUPT: after an error the range holds old or new bytes */
  writev(offset: number, iov: IoVec): Promise<void>;
  /** How units may be stored compressed. Absent: the image has no such, or is read-only. */
  readonly compression?: Compression | undefined;
  /**
   * Stores units as they were encoded (compression.encode, or the same elsewhere): many in one call cost little more than one.
   *
   * @param offset of the first, a multiple of compression.unit; the others follow it
   * @throws as writev; UNSUPPORTED without `compression`
   */
  writeCompressed?(offset: number, units: readonly EncodedUnit[]): Promise<void>;
  /**
   * Makes a range share the space of bytes that lie in another storage, where files and file system can. Absent: never possible.
   *
   * @param offset a multiple of limits.allocationUnit; so is its end, but for the disk's
   * @returns false when that is not possible: the range may hold old or new bytes, write it
   */
  cloneFrom?(offset: number, length: number, source: Storage, sourceOffset: number): Promise<boolean>;
  /**
   * Copies bytes that lie in another storage, without their passing through the caller. Absent: never possible.
   *
   * @returns bytes dealt with, from the start of the range: write the rest
   */
  copyFrom?(offset: number, length: number, from: CopySource): Promise<number>;
  /** Zeros a range. @param unmap give its space back where possible, else keep it allocated where it is */
  writeZeroes(offset: number, length: number, unmap: boolean): Promise<void>;
  /**
   * Gives space back as far as units of the format allow; what was given back reads as zeros. Parts of units keep their data.
   *
   * @returns false when whole units may have kept their data, too: format, storage or file system cannot discard
   */
  discard(offset: number, length: number): Promise<boolean>;
  /**
   * Reads a range, lets `change` alter the bytes, writes them back when it returns true; no other change comes in between.
   */
  readModifyWrite(offset: number, length: number, change: (bytes: Uint8Array) => boolean): Promise<void>;
  /** Makes every change that had completed durable. After a failure the image takes no more writes. */
  flush(): Promise<void>;

  /**
   * Changes so far of where bytes are. What was not flushed since is lost with the process, although the data itself has been handed to
   * the system. Absent: there are none, or nobody knows.
   */
  readonly mappingChanges?: number;
  /**
   * Hands the system what only this process knows of changes that had completed, so that they outlive it; a power cut may still undo
   * them. Much cheaper than flush() where the format can do so, else that. Absent: flush() is what there is.
   */
  publish?(): Promise<void>;

  /**
   * Extents from `offset` on with the layer that decided; ABSENT where no layer holds it (reads as zeros). May end early, see out.end.
   */
  map(offset: number, length: number, out: ExtentBuffer): Promise<number>;
  resize(size: number, options?: Partial<ResizeOptions>): Promise<void>;
  /** Called after the size has changed. @returns a function that ends it */
  onResize(listener: (size: number) => void): () => void;
  /** Flushes and closes. Waits for calls in flight. Safe to call twice. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Bytes in a storage, to be copied by Image.copyFrom(). */
export interface CopySource {
  readonly source: Storage;
  readonly sourceOffset: number;
  /**
   * The range of the target reads as zeros: zeros of so many bytes, counted from its start, need not be written. Only where
   * limits.allocationUnit is 1. 0: all is written.
   */
  readonly leaveOut: number;
}

export interface ImageLimits {
  /** Writes of this size and alignment allocate without copying (cluster size of the top layer; 1 for raw). */
  readonly allocationUnit: number;
  /** Discards below this size and alignment have no effect; 0: discard does nothing at all. */
  readonly discardUnit: number;
  /** writeZeroes of this alignment is metadata only. */
  readonly zeroUnit: number;
}
