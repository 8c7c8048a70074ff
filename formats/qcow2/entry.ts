import { ImageError } from '../core/errors.ts';
import type { Geometry } from './geometry.ts';
import {
  COMPRESSED_BIT,
  COPIED,
  compressedLength,
  compressedOffset,
  getU32,
  hostOffset,
  OFFSET_LOW,
  setEntry,
  setU32,
  ZERO_BIT,
} from './l2.ts';
import type { WriteState } from './write-state.ts';

/** All 32 subclusters of a cluster, a bit each, the first in bit 0. */
export const ALL_SUBCLUSTERS = 0xffffffff;

/**
 * What an L2 entry says, for the write path. Reused: no object per entry. An entry without subclusters is one whose 32 subclusters are
 * all alike.
 */
export class EntryView {
  compressed = false;
  copied = false;
  /** It has a host cluster, whose place `offset` is: 0 is one too, in an external data file. */
  placed = false;
  /** Host offset of the cluster; of the compressed bytes when compressed. */
  offset = 0;
  /** Bytes from `offset` when compressed. */
  length = 0;
  /** Subclusters that hold data in the host cluster. */
  allocated = 0;
  /** Subclusters that read as zeros. What is neither shows the parent. */
  zeros = 0;

  /** Its host cluster may be written in place. */
  get own(): boolean {
    return this.copied && this.placed;
  }

  /**
   * Reads an entry.
   *
   * @param tableOffset where the table slice is in the file: for errors
   * @param guestOffset of the cluster that the entry maps
   * @throws {ImageError} CORRUPT for an entry that nothing may be changed by
   */
  read(state: WriteState, bytes: Uint8Array, at: number, tableOffset: number, guestOffset: number): void {
    const { geometry, metadata } = state.parts;
    const high = getU32(bytes, at);
    const low = getU32(bytes, at + 4);
    this.compressed = (high & COMPRESSED_BIT) !== 0;
    this.copied = (high & COPIED) !== 0;
    this.placed = false;
    this.allocated = 0;
    this.zeros = 0;
    this.length = 0;
    if (this.compressed) {
      this.offset = compressedOffset(high, low, geometry.compressedOffsetBits);
      this.length = compressedLength(high, low, geometry.compressedOffsetBits);
      if (this.offset + this.length > Number.MAX_SAFE_INTEGER || this.copied || state.external) {
        broken(state, tableOffset + at);
      }
      this.#refuseMetadata(state, tableOffset + at);
      return;
    }
    this.offset = hostOffset(high, low);
    this.placed = this.offset !== 0 || (state.external && this.copied);
    if (geometry.extendedL2) {
      this.zeros = getU32(bytes, at + 8);
      this.allocated = getU32(bytes, at + 12);
      if ((this.zeros & this.allocated) !== 0 || (this.allocated !== 0 && !this.placed))
        broken(state, tableOffset + at);
    } else if ((low & ZERO_BIT) !== 0) {
      if (geometry.version < 3) broken(state, tableOffset + at);
      this.zeros = ALL_SUBCLUSTERS;
    } else if (this.placed) {
      this.allocated = ALL_SUBCLUSTERS;
    }
    if (!this.placed) return;
    if ((low & OFFSET_LOW & (geometry.clusterSize - 1)) !== 0) broken(state, tableOffset + at);
    if (!Number.isSafeInteger(this.offset + geometry.clusterSize)) broken(state, tableOffset + at);
    if (state.external) {
      if (this.offset !== guestOffset) broken(state, tableOffset + at);
    } else if (metadata.has(this.offset / geometry.clusterSize)) {
      broken(state, tableOffset + at, 'an L2 entry points to a cluster that holds metadata');
    }
  }

  #refuseMetadata(state: WriteState, entryOffset: number): void {
    const { geometry, metadata } = state.parts;
    const last = Math.floor((this.offset + this.length - 1) / geometry.clusterSize);
    for (let cluster = Math.floor(this.offset / geometry.clusterSize); cluster <= last; cluster++) {
      if (metadata.has(cluster)) broken(state, entryOffset, 'a compressed cluster lies on metadata');
    }
  }

  /** Notes that the entry's references are dropped. @param punch give the space back to the file system as well */
  unlink(state: WriteState, guestOffset: number, punch: boolean): void {
    const { clusterSize } = state.parts.geometry;
    if (this.compressed) {
      const first = Math.floor(this.offset / clusterSize);
      const last = Math.floor((this.offset + this.length - 1) / clusterSize);
      state.unlinked.add(first, last - first + 1, punch);
      state.compressed?.forget(guestOffset);
    } else if (this.placed && !state.external) {
      state.unlinked.add(this.offset / clusterSize, 1, punch);
    }
  }
}

/** Writes a standard entry. Without subclusters those of `zeros` are all or none, and `allocated` is the rest. */
export function putEntry(
  geometry: Geometry,
  bytes: Uint8Array,
  at: number,
  entry: { readonly offset: number; readonly copied: boolean; readonly allocated: number; readonly zeros: number },
): void {
  const { extendedL2 } = geometry;
  setEntry(bytes, at, entry.offset, entry.copied ? COPIED : 0, !extendedL2 && entry.zeros !== 0 ? ZERO_BIT : 0);
  if (!extendedL2) return;
  setU32(bytes, at + 8, entry.zeros);
  setU32(bytes, at + 12, entry.allocated);
}

/** Bits of the subclusters of a cluster that the range [from, to), bytes in the cluster, touches. All of them without subclusters. */
export function touchedSubclusters(geometry: Geometry, from: number, to: number): number {
  if (!geometry.extendedL2 || from >= to) return from >= to ? 0 : ALL_SUBCLUSTERS;
  const first = Math.floor(from / geometry.subclusterSize);
  const last = Math.floor((to - 1) / geometry.subclusterSize);
  return ((ALL_SUBCLUSTERS >>> (31 - last)) & (ALL_SUBCLUSTERS << first)) >>> 0;
}

function broken(
  state: WriteState,
  offset: number,
  why = 'an L2 entry has a value that the format does not allow',
): never {
  throw new ImageError('CORRUPT', why, { path: state.parts.storage.path, field: 'L2 table', offset });
}
