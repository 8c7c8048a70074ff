import type { ImageError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import type { Packing } from '../core/pack.ts';
import type { Storage } from '../storage/storage.ts';
import type { BitmapStore, ChangeRecorder } from './bitmaps.ts';
import type { ExtentBuffer } from './extent.ts';
import type { LeaseBook } from './lease.ts';

/**
 * One image file without its parents: what raw, qcow2, vmdk and vdi implement. A layer says where bytes are and makes room for
 * new ones; moving plain data, bounds, zero fill, copy-on-write and the chain are the mover's (chain.ts).
 *
 * The mover calls with ranges inside [0, size), and never runs reserve/zero/release concurrently over overlapping ranges (rounded to
 * limits.allocationUnit); over disjoint ranges it does.
 */
export interface Layer {
  /** Driver name: `raw`, `qcow2`, … */
  readonly format: string;
  /** Guest size, bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  /** The file that the layer was opened from; further ones are named by its extents. */
  readonly storage: Storage;
  readonly limits: LayerLimits;
  /** What this layer says its parent is; undefined for a base. */
  readonly parent: ParentReference | undefined;
  /** What children know this image by, named as in ParentReference.expected. */
  readonly ids?: Readonly<Record<string, string>>;
  /** Readers in flight on this layer's space (shared with snapshot views of the same file). */
  readonly leases: LeaseBook;

  /**
   * Fills `out` with the extents from `offset` on, up to `length` bytes or the buffer's capacity, from memory.
   *
   * @returns the number of extents; -1 when that needs I/O (out is undefined then)
   */
  tryMap(offset: number, length: number, out: ExtentBuffer): number;
  /** As tryMap, reading tables as needed. @throws {ImageError} CORRUPT, UNSUPPORTED */
  map(offset: number, length: number, out: ExtentBuffer): Promise<number>;

  /** Reads from an OPAQUE extent when its bytes are at hand (in the cache). Arguments as readOpaque. */
  tryReadOpaque(extents: ExtentBuffer, index: number, offset: number, iov: IoVec): boolean;
  /**
   * Reads bytes of an OPAQUE extent.
   *
   * @param extents a mapping from this layer, @param index the extent in it
   * @param offset guest offset inside the extent; byteLength(iov) bytes that do not leave it
   */
  readOpaque(extents: ExtentBuffer, index: number, offset: number, iov: IoVec): Promise<void>;
  /**
   * As readOpaque, for extents [first, end) of a mapping that follow each other and are read as a whole. Takes what it needs of `extents` before it
   * first waits. Absent: one at a time.
   */
  readonly readOpaqueRun?:
    | ((extents: ExtentBuffer, first: number, end: number, offset: number, iov: IoVec) => Promise<void>)
    | undefined;

  /**
   * Before the first change of a session: whatever the format wants on disk by then (autoclear bits, dirty flags, CID). The mover calls
   * it once, and again after it failed; no WRITABLE flag matters before.
   */
  beginWrite(): Promise<void>;
  /**
   * Allocates space for a write where the mapping is not WRITABLE.
   *
   * @param offset start of a run of extents that cannot be written in place; `length` may be cut short: see Reservation.end
   * @throws {StorageError} NO_SPACE and others, with nothing allocated; {ImageError} CORRUPT
   */
  reserve(offset: number, length: number): Promise<Reservation>;
  /** How units may be stored compressed; absent: the layer has no such. */
  readonly compression?: Compression | undefined;
  /**
   * Makes room for compressed units that follow each other.
   *
   * @param offset of the first, a multiple of compression.unit
   * @param lengths bytes of each unit's stream, less than a unit; at least one
   * @throws as reserve
   */
  reserveCompressed?(offset: number, lengths: readonly number[]): Promise<CompressedReservation>;
  /**
   * Makes a range read as zeros by metadata alone. Range aligned to limits.zeroUnit, where the image's end counts as aligned.
   *
   * @param unmap also give its space back
   * @returns false when the format cannot do that with all of it: the mover writes zeros
   */
  zero(offset: number, length: number, unmap: boolean): Promise<boolean>;
  /**
   * Discards a range (aligned to limits.discardUnit, image end counts as aligned): gives its space back; it reads as zeros then.
   *
   * @returns false when the format cannot: the data stays
   */
  release(offset: number, length: number): Promise<boolean>;
  /**
   * A write met metadata that contradicts itself: the format marks the file where it can, and nothing more is written. Absent: the
   * format has no such mark.
   */
  condemn?(error: ImageError): Promise<void>;
  /** Changes the guest size. New space reads as zeros also over a longer parent. */
  resize(size: number, options: ResizeOptions): Promise<void>;
  /** Lets go of all that the file holds of the disk: the parent shows everywhere. Durable. Absent: the format cannot. */
  empty?(): Promise<void>;
  /**
   * Names another parent in the file, or none: in one step, behind everything written before, durably. This layer goes on over the one that it was
   * opened with. Absent: the format cannot.
   */
  setParent?(parent: ParentName | undefined): Promise<void>;
  /**
   * The parent was changed to what shows the same disk under this layer, and has new ids (`ids`): takes them over, durably. Absent: the format
   * does not note its parent's ids.
   */
  followParent?(ids: Readonly<Record<string, string>>): Promise<void>;
  /** Takes note of changes: told by the mover before each of them, snapshots and sizes excepted. */
  readonly recorder?: ChangeRecorder | undefined;
  /** Persistent dirty bitmaps, for formats that have them. */
  readonly bitmaps?: BitmapStore | undefined;
  /** In what units the file holds the disk's end: where it is cut, resizing zeroes up to the next multiple. Absent: nothing is behind it. */
  readonly endUnit?: number;
  /** Shrinking cuts the file that holds the data: nothing of it is left behind the end, and only growing has something to zero. */
  readonly cutsEnd?: boolean;
  /**
   * Internal snapshots, for formats that have them; called while no write is in flight. When one fails, disk and snapshots are as before.
   * Applying changes `size`, in the tick in which the snapshot's content is seen.
   */
  createSnapshot?(name: string, options: NewSnapshotOptions): Promise<SnapshotInfo>;
  applySnapshot?(reference: SnapshotReference): Promise<void>;
  deleteSnapshot?(reference: SnapshotReference): Promise<void>;
  /**
   * An internal snapshot as a read-only layer that shares file, lock, tables and leases with this one, which may be written meanwhile.
   * While it is open the snapshot cannot be deleted; the file stays open until both are closed.
   */
  openSnapshot?(reference: SnapshotReference): Promise<Layer>;
  /**
   * What a snapshot keeps of the machine's memory and devices: a layer as openSnapshot() gives it, in which that is `size` bytes from `offset` on.
   */
  openVmState?(reference: SnapshotReference): Promise<{ layer: Layer; offset: number; size: number }>;
  /**
   * Forgets what is in memory of the tables for a range, and reads it anew: for files that are open while others write to them (force-share).
   * Absent: nothing is kept that could be of before.
   *
   * @throws {LunetteError} LOCKED when what is open is not there any more
   */
  renew?(offset: number, length: number): Promise<void>;
  /**
   * Makes all completed writes and committed reservations durable: data, then metadata in the format's order. Calls never overlap.
   */
  flush(): Promise<void>;
  /**
   * Hands the system what completed changes left in this process alone, so that they outlive it, without making them durable: whatever a
   * power cut brings back must be as sound as before. May run beside flush(). Absent: the format can do no less than flush.
   */
  publish?(): Promise<void>;
  /** Writes what is left, clears flags that say "open for writing", closes storages. No call is in flight. Safe after a failed flush. */
  close(): Promise<void>;

  /** What the image is, for people and for `info`. Never follows references. */
  describe(): Promise<LayerInfo>;
}

export interface ResizeOptions {
  shrink: boolean;
  preallocation: 'off' | 'metadata' | 'falloc' | 'full';
  /** Guest offset up to which parents hold bytes that the new area must not show; the mover knows. */
  shownTo?: number;
}

export interface NewSnapshotOptions {
  /** When it says it was taken, milliseconds since 1970. Default: now. */
  readonly dateMs?: number;
}

/**
 * Which internal snapshot is meant: a string is an id, else a name (the first that fits), as `qemu-img snapshot -a` takes it.
 */
export type SnapshotReference = string | { readonly id: string } | { readonly name: string };

export interface LayerLimits {
  /** Allocation happens in units of this many bytes (cluster, grain, block); 1 when writes never allocate. */
  readonly allocationUnit: number;
  /** zero() takes ranges of this alignment. */
  readonly zeroUnit: number;
  /** release() takes ranges of this alignment; 0 when it always refuses. */
  readonly discardUnit: number;
}

/** A sector: what a file system gives back is its own affair. */
const DISCARD_UNIT = 512;

/** Of disks whose bytes are in their storage as they are. @param discards what the storage says: without it nothing is quicker than writing */
export function plainLimits(discards: boolean): LayerLimits {
  return { allocationUnit: 1, zeroUnit: discards ? 1 : 0, discardUnit: discards ? DISCARD_UNIT : 0 };
}

/** A parent as a file names it: the name relative to the file, or absolute. */
export interface ParentName {
  readonly path: string;
  readonly format?: string | undefined;
}

/** How an image names its parent; a resolver finds it, the gate judges it. */
export interface ParentReference {
  /** Path or URL as written in the image; undefined when only ids are known (VDI). */
  readonly path: string | undefined;
  /** Format as written in the image; undefined: probe, with the dangers that has. */
  readonly format: string | undefined;
  /** Ids that the parent must have (VMDK CID, VDI UUID), by the name of the parent's field. */
  readonly expected?: Readonly<Record<string, string>>;
  /** Ids that it should have: another value is worth a warning, no more. */
  readonly advisory?: Readonly<Record<string, string>>;
}

/** Space for a write, not visible yet. Exactly one of commit and abort is called. */
export interface Reservation {
  /** Guest offset behind what is covered; more than the offset asked for. */
  readonly end: number;
  /**
   * In guest order, covering what is written and whatever around it has to be in place before the mapping can say that the new space
   * holds it: whole allocation units, or the parts of them that the format tells apart. A region never crosses a file. Inside the
   * written range the request's bytes go there, outside it what `fill` says.
   */
  readonly regions: readonly Region[];
  /** All bytes are in place: makes the mapping visible. Durable with the next flush. */
  commit(): Promise<void>;
  /** Gives the space back; the old mapping stays. Never throws. */
  abort(): Promise<void>;
}

/** Units of this size can be stored as streams. The codec depends on nothing but these, so that other threads can do the work. */
export interface Compression {
  /** As the format names it: `zlib`, `zstd`. */
  readonly type: string;
  /** How its streams are made. */
  readonly packing: Packing;
  /** Bytes. The disk's last unit is filled up with zeros. */
  readonly unit: number;
  /** Compresses one unit, or what is left of the last. */
  encode(bytes: Uint8Array): Promise<EncodedUnit>;
}

/** A unit to be stored: a stream that is shorter than it; all its bytes, to be stored plainly; null for zeros. */
export type EncodedUnit = Uint8Array | null;

/** Space for the streams of compressed units. Exactly one of commit and abort is called, as for Reservation. */
export interface CompressedReservation {
  /** How many units got space: the first of those that were asked for, at least one. */
  readonly count: number;
  /** Where the bytes of all these streams go, one after the other. */
  readonly regions: readonly { readonly storage: Storage; readonly storageOffset: number; readonly length: number }[];
  commit(): Promise<void>;
  abort(): Promise<void>;
}

export interface Region {
  readonly storage: Storage;
  readonly storageOffset: number;
  readonly length: number;
  readonly guestOffset: number;
  /** What the part of the region that the request does not write must hold: what the image shows there now, or zeros. */
  readonly fill: 'current' | 'zero';
  /** The space reads as zeros already: zeros need not be written. */
  readonly fresh: boolean;
}

/** Facts about one image file, format-neutral; `specific` as QEMU's format-specific data (names as in its JSON). */
export interface LayerInfo {
  readonly format: string;
  readonly virtualSize: number;
  /** Bytes that the files take on the host, when known. */
  readonly actualSize?: number;
  readonly clusterSize?: number;
  readonly encrypted?: boolean;
  readonly compressed?: boolean;
  readonly dirty: boolean;
  readonly backingFile?: string;
  readonly backingFormat?: string;
  readonly snapshots?: readonly SnapshotInfo[];
  /** `data` of QEMU's format-specific, without `type`. */
  readonly specific?: Readonly<Record<string, unknown>>;
  /** Further files of the image (data files, extents): QEMU's children, name → path. */
  readonly children?: readonly { name: string; path: string }[];
}

export interface SnapshotInfo {
  readonly id: string;
  readonly name: string;
  readonly vmStateSize: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockSeconds: number;
  readonly vmClockNanoseconds: number;
  readonly icount?: number;
  /** Guest disk size when it was taken; undefined: as the image's. */
  readonly diskSize?: number;
}
