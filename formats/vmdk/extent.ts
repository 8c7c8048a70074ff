import type { IoVec } from '../core/iov.ts';
import type { ExtentBuffer } from '../image/extent.ts';
import type { Reservation } from '../image/layer.ts';
import type { Storage } from '../storage/storage.ts';

/**
 * One extent of a VMDK disk: a stretch of the disk in one file, or in none. Offsets are bytes from the start of the extent; the
 * layer puts extents one behind the other.
 */
export interface VmdkExtent {
  /** Bytes of the disk. */
  readonly length: number;
  /** Allocation unit, bytes; 1 where writes never allocate. */
  readonly grain: number;
  /** Undefined for zeros. Several extents may share a file. */
  readonly storage: Storage | undefined;
  readonly writable: boolean;
  /** Has something to say in describe(): compressed, dirty. */
  readonly facts: ExtentFacts;

  /** Appends mappings of [offset, offset + length) to `out`, as far as memory and the buffer's room go; maybe none. */
  tryMap(offset: number, length: number, out: ExtentBuffer): void;
  /** As tryMap, with I/O where that is needed: appends at least one. @throws {ImageError} CORRUPT */
  map(offset: number, length: number, out: ExtentBuffer): Promise<void>;
  /** As Layer.renew. Absent: nothing is kept that could be of before. */
  renew?(offset: number, length: number): Promise<void>;
  tryReadOpaque(offset: number, iov: IoVec): boolean;
  readOpaque(offset: number, iov: IoVec): Promise<void>;
  /** Before the first change of a session. */
  beginWrite(): Promise<void>;
  reserve(offset: number, length: number): Promise<Reservation>;
  /** Range in whole grains, where the extent's end counts as one. @returns false: the caller writes zeros to all of it */
  zero(offset: number, length: number, unmap: boolean): Promise<boolean>;
  flush(): Promise<void>;
  /** Everything is flushed: clears what says "open". Does not close the file. */
  finish(): Promise<void>;
  /** Gives memory back. */
  release(): void;
}

export interface ExtentFacts {
  readonly type: string;
  readonly compressed: boolean;
  /** It was not closed properly. */
  readonly dirty: boolean;
  readonly version?: number;
}
