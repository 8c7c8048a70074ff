import { ImageError } from '../core/errors.ts';
import {
  COMPRESSED_BIT,
  COPIED,
  compressedLength,
  compressedOffset,
  getU32,
  hostOffset,
  OFFSET_LOW,
  ZERO_BIT,
} from './l2.ts';
import type { WriteState } from './write-state.ts';

/** What an L2 entry says, for the write path. Reused: no object per entry. */
export class EntryView {
  compressed = false;
  zero = false;
  copied = false;
  /** Host offset of the cluster, 0 when there is none; of the compressed bytes when compressed. */
  offset = 0;
  /** Bytes from `offset` when compressed. */
  length = 0;

  /**
   * Reads an entry.
   *
   * @param tableOffset where the table slice is in the file: for errors
   * @throws {ImageError} CORRUPT for an entry that nothing may be changed by
   */
  read(state: WriteState, bytes: Uint8Array, at: number, tableOffset: number): void {
    const { geometry, metadata } = state.parts;
    const high = getU32(bytes, at);
    const low = getU32(bytes, at + 4);
    this.compressed = (high & COMPRESSED_BIT) !== 0;
    this.copied = (high & COPIED) !== 0;
    this.zero = false;
    this.length = 0;
    if (this.compressed) {
      this.offset = compressedOffset(high, low, geometry.compressedOffsetBits);
      this.length = compressedLength(high, low, geometry.compressedOffsetBits);
      if (this.offset + this.length > Number.MAX_SAFE_INTEGER || this.copied) broken(state, tableOffset + at);
      this.#refuseMetadata(state, tableOffset + at);
      return;
    }
    this.zero = (low & ZERO_BIT) !== 0;
    this.offset = hostOffset(high, low);
    if (this.zero && geometry.version < 3) broken(state, tableOffset + at);
    if (this.offset === 0) return;
    if ((low & OFFSET_LOW & (geometry.clusterSize - 1)) !== 0) broken(state, tableOffset + at);
    if (!Number.isSafeInteger(this.offset + geometry.clusterSize)) broken(state, tableOffset + at);
    if (metadata.has(this.offset / geometry.clusterSize)) {
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
    } else if (this.offset !== 0) {
      state.unlinked.add(this.offset / clusterSize, 1, punch);
    }
  }
}

function broken(
  state: WriteState,
  offset: number,
  why = 'an L2 entry has a value that the format does not allow',
): never {
  throw new ImageError('CORRUPT', why, { path: state.parts.storage.path, field: 'L2 table', offset });
}
