import type { Storage } from '../storage/storage.ts';

/** What an extent of a layer is. Numbers, because they are compared per request. */
export const DATA = 0;
/** Reads as zeros, whatever the parent holds. */
export const ZERO = 1;
/** Only the layer itself can produce the bytes (compressed or encrypted clusters): see Layer.readOpaque. */
export const OPAQUE = 2;
/** The layer does not hold it: the parent decides; zeros where there is none. */
export const ABSENT = 3;

export type ExtentKind = typeof DATA | typeof ZERO | typeof OPAQUE | typeof ABSENT;

/** The bytes may be overwritten in place (the cluster is the layer's alone, and allocated). */
export const WRITABLE = 1;
/** Reads as zeros but keeps space in the file (preallocated zero cluster): `storageOffset` says where. */
export const ALLOCATED = 2;
/** The bytes in the file are compressed. */
export const COMPRESSED = 4;
/** The bytes in the file are encrypted: `storageOffset` means something only to the storage that decrypts them. */
export const ENCRYPTED = 8;
/** Zeros because the parent ends before: no layer says so. The chain's business. */
export const BEHIND_PARENT = 16;

/**
 * Consecutive extents of one mapping, as reused arrays: no object per extent.
 *
 * Filled in guest order without gaps from the offset that was asked for. It has a capacity: a mapping that does not fit ends
 * early, `end` says where; the caller asks again from there. Holds at least one extent after a successful map of length > 0.
 */
export class ExtentBuffer {
  count = 0;
  /** Guest offset behind the last extent. */
  end = 0;
  readonly capacity: number;
  readonly kinds: Uint8Array;
  readonly flags: Uint8Array;
  /** Guest offset of each extent. */
  readonly offsets: Float64Array;
  readonly lengths: Float64Array;
  /** DATA, OPAQUE and ALLOCATED: where the bytes are in `storages[i]`. For OPAQUE the layer may keep a host offset or any token of its own. */
  readonly storageOffsets: Float64Array;
  readonly storages: (Storage | null)[];
  /** Index of the layer that decided, 0 = top: the chain's business, layers leave it 0. */
  readonly depths: Uint16Array;

  constructor(capacity = 64) {
    this.capacity = capacity;
    this.kinds = new Uint8Array(capacity);
    this.flags = new Uint8Array(capacity);
    this.offsets = new Float64Array(capacity);
    this.lengths = new Float64Array(capacity);
    this.storageOffsets = new Float64Array(capacity);
    this.storages = new Array<Storage | null>(capacity).fill(null);
    this.depths = new Uint16Array(capacity);
  }

  /** Empties the buffer; the mapping will start at guest offset `at`. */
  begin(at: number): void {
    this.count = 0;
    this.end = at;
  }

  /**
   * Appends an extent that starts at `end`, or lengthens the last one when this continues it (same kind, flags, storage and, where
   * bytes have a place, adjacent in the storage; OPAQUE extents are never merged).
   *
   * @returns false when the buffer is full and nothing was appended
   */
  append(
    kind: ExtentKind,
    length: number,
    storage: Storage | null = null,
    storageOffset = 0,
    flags = 0,
    depth = 0,
  ): boolean {
    const last = this.count - 1;
    if (
      last >= 0 &&
      this.kinds[last] === kind &&
      kind !== OPAQUE &&
      this.flags[last] === flags &&
      this.storages[last] === storage &&
      this.depths[last] === depth
    ) {
      const placed = kind === DATA || (flags & ALLOCATED) !== 0;
      if (!placed || (this.storageOffsets[last] as number) + (this.lengths[last] as number) === storageOffset) {
        (this.lengths as Float64Array)[last] = (this.lengths[last] as number) + length;
        this.end += length;
        return true;
      }
    }
    const i = this.count;
    if (i === this.capacity) return false;
    this.kinds[i] = kind;
    this.flags[i] = flags;
    this.offsets[i] = this.end;
    this.lengths[i] = length;
    this.storages[i] = storage;
    this.storageOffsets[i] = storageOffset;
    this.depths[i] = depth;
    this.count = i + 1;
    this.end += length;
    return true;
  }
}

/** Whether an extent can be written where it is. */
export function isWritable(extents: ExtentBuffer, index: number): boolean {
  return extents.kinds[index] === DATA && ((extents.flags[index] as number) & WRITABLE) !== 0;
}
