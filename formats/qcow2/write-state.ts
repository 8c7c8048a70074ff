import type { BlockCache } from '../cache/cache.ts';
import { ImageError, type LunetteError } from '../core/errors.ts';
import type { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import type { Allocator } from './allocator.ts';
import type { CompressedClusters } from './compressed.ts';
import { INCOMPATIBLE } from './features.ts';
import type { Geometry } from './geometry.ts';
import { HEADER_V3 } from './header.ts';
import type { HeaderSector } from './header-sector.ts';
import type { Mapping } from './mapping.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { Mutex } from './mutex.ts';
import { PackedClusters } from './packed-clusters.ts';
import type { PointerTable } from './pointer-table.ts';
import type { Refcounts } from './refcount.ts';
import type { SliceCache } from './slices.ts';
import { Unlinked } from './unlinked.ts';

export interface WriteStateParts {
  readonly storage: Storage;
  /** Where data clusters are: `storage`, or an external data file. */
  readonly dataStorage: Storage;
  /** The external data file is the disk as a raw image: zeros are written into it, and no mapping hides what it holds. */
  readonly rawData: boolean;
  /** Writes data clusters: where they are, or what encrypts them. */
  readonly payload: Storage;
  readonly geometry: Geometry;
  readonly cache: BlockCache;
  readonly slices: SliceCache;
  readonly l1: PointerTable;
  /** L1 entries whose table lies on other metadata: nothing may be written through them. */
  readonly brokenTables: ReadonlySet<number>;
  readonly metadata: MetadataMap;
  readonly refcounts: Refcounts;
  readonly allocator: Allocator;
  readonly header: HeaderSector;
  readonly leases: LeaseBook;
  readonly mutex: Mutex;
  readonly hasParent: boolean;
}

/** What the parts of the write path share: the tables, and whether writing goes on. */
export class WriteState {
  readonly parts: WriteStateParts;
  /** References that mappings dropped since the last flush began: their refcounts are lowered once that is durable. */
  unlinked = new Unlinked();
  /** Where compressed clusters go. */
  readonly packed = new PackedClusters(this);
  mapping: Mapping | undefined;
  compressed: CompressedClusters | undefined;
  #stopped: LunetteError | undefined;

  constructor(parts: WriteStateParts) {
    this.parts = parts;
  }

  /** Data is in a file of its own, each cluster at its guest offset; nobody counts references to it. */
  get external(): boolean {
    return this.parts.dataStorage !== this.parts.storage;
  }

  /** Why nothing is written any more; undefined while all is well. */
  get stopped(): LunetteError | undefined {
    return this.#stopped;
  }

  /** @throws {LunetteError} why writing has stopped */
  check(): void {
    if (this.#stopped !== undefined) throw this.#stopped;
  }

  /** Stops all writing until the image is opened again. */
  stop(error: LunetteError): void {
    this.#stopped ??= error;
    if (this.mapping !== undefined) this.mapping.writable = false;
  }

  /**
   * The metadata contradicts itself: marks the image corrupt and stops writing. To be thrown by the caller.
   *
   * @param offset of the entry at fault, bytes in the file
   */
  async corrupt(why: string, field: string, offset: number): Promise<ImageError> {
    const error = new ImageError('CORRUPT', why, {
      path: this.parts.storage.path,
      field,
      offset,
      help: 'The image has been marked corrupt: repair it before it is written again.',
    });
    await this.markCorrupt(error);
    return error;
  }

  /** Sets the corrupt bit, where the version has one, and stops writing. Does not throw: the reason is more important. */
  async markCorrupt(error: LunetteError): Promise<void> {
    const first = this.#stopped === undefined;
    this.stop(error);
    if (!first || this.parts.geometry.version < 3) return;
    try {
      await this.parts.header.update((view) => {
        const bits = HEADER_V3.fields.incompatibleFeatures.read(view, 72, false);
        HEADER_V3.write(view, { incompatibleFeatures: { high: bits.high, low: bits.low | INCOMPATIBLE.CORRUPT } });
      });
      await this.parts.storage.sync();
    } catch {
      // The image stays unmarked, but we have stopped.
    }
  }

  /** Runs something that changes tables; finding them contradictory marks the image. */
  async change<T>(act: () => Promise<T>): Promise<T> {
    return this.parts.mutex.run(async () => {
      this.check();
      try {
        return await act();
      } catch (error) {
        if (error instanceof ImageError && error.code === 'CORRUPT') await this.markCorrupt(error);
        throw error;
      }
    });
  }
}
