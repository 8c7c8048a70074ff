import type { BlockCache } from '../cache/cache.ts';
import { codeOf, ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp } from '../core/units.ts';
import type { CompressedReservation, ParentName, Reservation, ResizeOptions } from '../image/layer.ts';
import type { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import { Allocator } from './allocator.ts';
import { BitmapEditor } from './bitmap-editor.ts';
import type { CompressedClusters } from './compressed.ts';
import { makeCompressedReservation } from './compressed-reservation.ts';
import { type ZeroMode, zeroSlice } from './discard-zero.ts';
import { CRYPT_NONE } from './encryption.ts';
import { expandZeros } from './expand-zeros.ts';
import { EXTENSION, MAX_BACKING_FORMAT } from './extensions.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from './features.ts';
import { Flusher } from './flush.ts';
import { HEADER_V3, type Qcow2Header } from './header.ts';
import { rewriteHeader, withExtension } from './header-rewrite.ts';
import { HeaderSector } from './header-sector.ts';
import type { Mapping } from './mapping.ts';
import type { MetadataMap } from './metadata-map.ts';
import { markMetadata } from './metadata-marks.ts';
import { Mutex } from './mutex.ts';
import type { PointerTable } from './pointer-table.ts';
import { type Preallocation, preallocate } from './preallocate.ts';
import { Refcounts } from './refcount.ts';
import { repairRefcounts } from './repair-refcounts.ts';
import { makeReservation } from './reservation.ts';
import { dropAll, resizeDisk } from './resize.ts';
import type { SliceCache } from './slices.ts';
import type { SnapshotTable } from './snapshot.ts';
import { SnapshotEditor } from './snapshot-editor.ts';
import { Unlinked } from './unlinked.ts';
import { WriteState } from './write-state.ts';

/** Runs of dropped clusters after which a long discard flushes: what bounds its memory. */
const MAX_UNLINKED = 64 * 1024;

export interface Qcow2WriterParts {
  readonly storage: Storage;
  /** Where data clusters are: `storage`, or an external data file. */
  readonly dataStorage: Storage;
  /** Writes data clusters: where they are, or what encrypts them. */
  readonly payload: Storage;
  readonly header: Qcow2Header;
  readonly snapshotTable: SnapshotTable;
  readonly l1: PointerTable;
  readonly slices: SliceCache;
  readonly leases: LeaseBook;
  readonly cache: BlockCache;
  readonly warn: (message: string) => void;
  /** Discards keep clusters in their place, which keeps the file from being scattered. Default false. */
  readonly discardNoUnref?: boolean | undefined;
}

/** Everything that changes a qcow2 file: the write half of a layer. */
export class Qcow2Writer {
  readonly metadata: MetadataMap;
  readonly snapshots: SnapshotEditor;
  readonly bitmaps: BitmapEditor;
  readonly #header: Qcow2Header;
  readonly #state: WriteState;
  readonly #flusher: Flusher;
  readonly #warn: (message: string) => void;
  /** What is discarded keeps its host cluster. */
  readonly #keepsClusters: boolean;
  /** Something may have been changed. */
  #begun = false;
  /** Refcounts may wait in memory until the image is closed. */
  readonly #lazy: boolean;
  /** The dirty bit is set, so that they may. */
  #marked = false;
  #marking: Promise<void> | undefined;
  /** A change failed and could not be taken back whole: the dirty bit stays for who opens the image next. */
  #unmended = false;
  /** Everything is written, and somebody else has changed the file since. */
  #retired = false;

  private constructor(header: Qcow2Header, state: WriteState, parts: Qcow2WriterParts) {
    this.#header = header;
    this.#lazy = header.geometry.version > 2 && (header.compatibleFeatures.low & COMPATIBLE.LAZY_REFCOUNTS) !== 0;
    this.#warn = parts.warn;
    this.#keepsClusters = parts.discardNoUnref ?? false;
    this.#state = state;
    this.metadata = state.parts.metadata;
    this.#flusher = new Flusher(state, () => this.#marked);
    this.snapshots = new SnapshotEditor(this.#host(), parts.snapshotTable);
    this.bitmaps = new BitmapEditor(this.#host());
  }

  /**
   * Loads what writing needs. An image whose refcounts may be wrong (dirty bit) has them rebuilt first.
   *
   * @throws {ImageError} CORRUPT when the refcount structures cannot be used
   */
  static async open(parts: Qcow2WriterParts): Promise<Qcow2Writer> {
    const { storage, header, slices, l1 } = parts;
    const { geometry } = header;
    const table = await Refcounts.loadTable(storage, header);
    const { metadata, brokenTables } = await markMetadata({ ...parts, refcountTable: table });
    const refcounts = new Refcounts({ storage, slices, geometry, metadata, table });
    const encrypted = header.cryptMethod !== CRYPT_NONE;
    const allocator = new Allocator({ storage, slices, geometry, metadata, refcounts, encrypted });
    const state = new WriteState({
      storage,
      dataStorage: parts.dataStorage,
      rawData: (header.autoclearFeatures.low & AUTOCLEAR.DATA_FILE_RAW) !== 0,
      payload: parts.payload,
      geometry,
      cache: parts.cache,
      slices,
      l1,
      brokenTables,
      metadata,
      refcounts,
      allocator,
      header: await HeaderSector.load(storage),
      leases: parts.leases,
      mutex: new Mutex(),
      hasParent: header.backingFile !== undefined,
    });
    refcounts.onUnlinked = (first, count) => state.unlinked.add(first, count, false);
    const writer = new Qcow2Writer(header, state, parts);
    await writer.bitmaps.load();
    if (header.dirty) await repairRefcounts({ ...parts, state, flush: () => writer.flush() });
    return writer;
  }

  attach(mapping: Mapping, compressed: CompressedClusters): void {
    this.#state.mapping = mapping;
    this.#state.compressed = compressed;
  }

  /**
   * Clears the autoclear bits, durably, that vouch for something that a write makes untrue. Those that we keep true stay: bitmaps that take
   * note of writes, a raw data file.
   */
  async beginWrite(): Promise<void> {
    this.#state.check();
    this.#begun = true;
    const { high, low } = this.#header.autoclearFeatures;
    if (high === 0 && low === 0) return;
    const bitmaps = (await this.bitmaps.begin()) ? AUTOCLEAR.BITMAPS : 0;
    const kept = low & (bitmaps | AUTOCLEAR.DATA_FILE_RAW);
    if (high !== 0 || low !== kept) {
      await this.#state.parts.header.update((view) => {
        HEADER_V3.write(view, { autoclearFeatures: { high: 0, low: kept } });
      });
    }
    await this.#state.parts.storage.sync();
  }

  /** @param diskSize bytes */
  async reserve(offset: number, length: number, diskSize: number): Promise<Reservation> {
    await this.#relieve();
    return this.#retried(() => makeReservation(this.#state, offset, length, diskSize));
  }

  /** As Layer.reserveCompressed. */
  async reserveCompressed(offset: number, lengths: readonly number[]): Promise<CompressedReservation> {
    await this.#relieve();
    return this.#retried(() => makeCompressedReservation(this.#state, offset, lengths));
  }

  /** As Layer.zero: false where version 2 cannot, and for a part of a compressed cluster. */
  async zero(offset: number, length: number, unmap: boolean): Promise<boolean> {
    const { rawData, dataStorage } = this.#state.parts;
    this.#state.check();
    // Only there: a zero flag that a power cut brings back would hide what was written to the data file since.
    if (rawData) return dataStorage.writeZeroes(offset, length, unmap);
    if (this.#header.geometry.version === 2) return unmap && this.release(offset, length);
    if (unmap && this.#keepsClusters) return this.#zeroInPlace(offset, length);
    return this.#zeroRange(offset, length, unmap ? 'unmap' : 'keep');
  }

  /** As Layer.release: false where version 2 has a backing file, which would show again. */
  async release(offset: number, length: number): Promise<boolean> {
    const { rawData, hasParent } = this.#state.parts;
    if (rawData) return this.zero(offset, length, true);
    if (this.#header.geometry.version > 2) return this.zero(offset, length, true);
    return !hasParent && this.#zeroRange(offset, length, 'deallocate');
  }

  /** As Layer.condemn: sets the corrupt bit and stops writing. */
  condemn(error: ImageError): Promise<void> {
    return this.#state.markCorrupt(error);
  }

  /** As Layer.resize. @param switched called when the disk has its new size */
  async resize(from: number, to: number, options: ResizeOptions, switched: () => void): Promise<void> {
    this.bitmaps.admitResize(to);
    const hasSnapshots = this.snapshots.table.snapshots.length > 0;
    await resizeDisk(this.#host(), { from, to, hasSnapshots, options, switched });
  }

  /** Maps guest clusters that have no place yet: see preallocate.ts. Nothing else may be going on. */
  preallocate(from: number, to: number, mode: Preallocation): Promise<void> {
    this.#begun = true;
    return preallocate(this.#state, from, to, mode, () => this.#relieve());
  }

  /**
   * Writes everything back, then lets `change` alter the file; nothing is written through this writer afterwards.
   *
   * @param version that the image gets: entries that it cannot have are replaced first
   */
  async amend(version: 2 | 3, diskSize: number, change: () => Promise<void>): Promise<void> {
    const { geometry } = this.#header;
    if (this.#unmended) {
      throw new ImageError('CORRUPT', 'a change of its snapshots failed half way', {
        path: this.#state.parts.storage.path,
        help: 'Open the image again, which puts that right.',
      });
    }
    if (version === 3 && geometry.version === 2) await this.snapshots.complete(diskSize);
    if (version === 2 && geometry.version > 2) {
      const reserve = (offset: number, length: number) => this.reserve(offset, length, diskSize);
      await expandZeros(this.#state, diskSize, reserve, () => this.#relieve());
      await this.snapshots.expandZeros();
    }
    await this.bitmaps.end();
    await this.#quiet();
    if (this.#marked) await this.#markDirty(false);
    this.#retired = true;
    this.#state.stop(
      new LunetteError('CLOSED', 'options of the image were amended: it takes no writes until it is opened again', {
        path: this.#state.parts.storage.path,
      }),
    );
    await change();
  }

  /** As Layer.empty. */
  async empty(): Promise<void> {
    await dropAll(this.#host());
    await this.#quiet();
  }

  /** As Layer.setParent. */
  async setParent(parent: ParentName | undefined): Promise<void> {
    const { storage, rawData } = this.#state.parts;
    if (rawData && parent !== undefined) {
      const why = 'its data file is the disk as a raw image: it cannot have a backing file';
      throw new ImageError('UNSUPPORTED', why, { path: storage.path });
    }
    const format = parent?.format === undefined ? undefined : new TextEncoder().encode(parent.format);
    if (format !== undefined && format.length > MAX_BACKING_FORMAT) {
      throw new ImageError('TOO_LARGE', `a format name of ${format.length} bytes is too long`, { path: storage.path });
    }
    await this.#quiet();
    await rewriteHeader(this.#host(), {
      backingFile: parent?.path ?? null,
      extensions: (list) => withExtension(list, EXTENSION.BACKING_FORMAT, format),
    });
  }

  flush(): Promise<void> {
    if (this.#retired) return Promise.resolve();
    return this.#flusher.flush(true);
  }

  /** As Layer.publish. Refcounts that wait in memory for the dirty bit's sake are no ground for it. */
  publish(): Promise<void> {
    return this.#lazy || this.#retired ? this.flush() : this.#flusher.publish();
  }

  /** Writes everything back, and waits for space in quarantine: what is left behind has no leaks. */
  async close(): Promise<void> {
    if (this.#state.stopped !== undefined) return;
    const { allocator } = this.#state.parts;
    // Clusters of it that cannot be given back are leaked, which does no harm.
    const stock = await this.#state.change(() => allocator.clearStock()).catch(() => undefined);
    if (this.#begun) {
      await this.bitmaps.end();
      await this.#completeLastCluster();
    }
    await this.#flusher.flush();
    await this.#flusher.settled();
    // Refcounts that were lowered at the end of that flush.
    if (this.#state.stopped === undefined && this.#state.parts.slices.hasDirty('refcount')) await this.#flusher.flush();
    if (stock !== undefined) await this.#trim(stock);
    if (this.#state.stopped === undefined && this.#marked) await this.#markDirty(false);
  }

  /**
   * Lets the file end with a cluster. The zeros at the end of the last one may be there only because the file ends before them: copied to a
   * device, whatever was there would show in their place.
   */
  async #completeLastCluster(): Promise<void> {
    const { storage, geometry } = this.#state.parts;
    const end = alignUp(storage.size, geometry.clusterSize);
    if (!storage.growsZeroed || storage.size === end) return;
    await storage.resize(end).catch(() => undefined); // the image is whole without it
  }

  #host() {
    const writer = this;
    return {
      state: this.#state,
      header: this.#header,
      storage: this.#state.parts.storage,
      clusterSize: this.#header.geometry.clusterSize,
      warn: this.#warn,
      get snapshotList() {
        return writer.snapshots.table.snapshots;
      },
      flush: () => this.#flusher.flush(),
      sync: () => this.#flusher.sync(),
      quiet: () => this.#quiet(),
      switchHeader: (change: (view: DataView) => void) => this.#switch(() => this.#state.parts.header.update(change)),
      switchSector: (offset: number, bytes: Uint8Array) =>
        this.#switch(() => this.#state.parts.storage.writev(offset, IoVec.of(bytes))),
      markDirty: (dirty: boolean) => this.#markDirty(dirty),
      keepDirty: () => {
        this.#unmended = true;
      },
      switchSize: (size: number, change: (view: DataView) => void) => this.bitmaps.resize(size, change),
      preallocate: (from: number, to: number, mode: Preallocation) => this.preallocate(from, to, mode),
      zeroRange: async (offset: number, length: number, mode: ZeroMode) => {
        await this.#zeroRange(offset, length, mode);
      },
    };
  }

  /** Flushes until nothing is dirty and nothing waits to be freed. No writer may be active. */
  async #quiet(): Promise<void> {
    const { slices, l1, allocator } = this.#state.parts;
    const stock = await this.#state.change(() => allocator.clearStock());
    this.#state.packed.leaveAll(); // what comes may lower counts around the flush
    do {
      await this.#flusher.flush();
      await this.#flusher.settled();
    } while (!this.#state.unlinked.empty || l1.dirty || slices.hasDirty('refcount') || slices.hasDirty('mapping'));
    await this.#trim(stock);
  }

  /** What cannot be cut off is space that nobody uses, which does no harm. */
  async #trim(stock: { first: number; end: number }): Promise<void> {
    await this.#state.change(() => this.#state.parts.allocator.trim(stock)).catch(() => undefined);
  }

  /** Changes a sector of the header, durably. After a failure other than a full disk nobody knows what is there: writing stops. */
  async #switch(write: () => Promise<void>): Promise<void> {
    this.#state.check();
    try {
      await write();
    } catch (error) {
      if (codeOf(error) === 'NO_SPACE') throw error; // nothing was written
      const why = 'writing the header failed: nothing more is written until the image is opened again';
      const failure = new LunetteError('IO', why, { path: this.#state.parts.storage.path, cause: error });
      this.#state.stop(failure);
      throw failure;
    }
    await this.#flusher.sync();
  }

  async #markDirty(dirty: boolean): Promise<void> {
    if (this.#header.geometry.version < 3 || (this.#unmended && !dirty)) return;
    this.#marked = false;
    await this.#switch(() =>
      this.#state.parts.header.update((view) => {
        const { high, low } = HEADER_V3.fields.incompatibleFeatures.read(view, 72, false);
        const bits = dirty ? low | INCOMPATIBLE.DIRTY : low & ~INCOMPATIBLE.DIRTY;
        HEADER_V3.write(view, { incompatibleFeatures: { high, low: bits >>> 0 } });
      }),
    );
  }

  /** Before refcounts change that may be postponed. */
  async #beLazy(): Promise<void> {
    this.#marking ??= this.#markDirty(true)
      .then(() => {
        this.#marked = true;
      })
      .finally(() => {
        this.#marking = undefined;
      });
    await this.#marking;
  }

  /** @returns false when that cannot be said of part of a compressed cluster: nothing has changed there */
  async #zeroRange(offset: number, length: number, mode: ZeroMode, kept?: Unlinked): Promise<boolean> {
    const end = alignUp(offset + length, this.#header.geometry.subclusterSize);
    for (let at = offset; at < end; ) {
      await this.#relieve();
      const start = at;
      at = await this.#retried(() => zeroSlice(this.#state, { start, end, mode, kept }));
      if (at < 0) return false;
    }
    // Nobody else can get the space of an external data file: it is given back now, before anything new is written there. As zeros, which
    // is what a power cut may show through the entries of before.
    if (this.#state.external && mode === 'unmap') await this.#punch(offset, length);
    return true;
  }

  /** Zeroes a range whose clusters keep their place in the file, but not the space. */
  async #zeroInPlace(offset: number, length: number): Promise<boolean> {
    const kept = new Unlinked();
    const done = await this.#zeroRange(offset, length, 'keep', kept);
    const { clusterSize } = this.#header.geometry;
    for (const { first, count } of kept.sorted()) await this.#punch(first * clusterSize, count * clusterSize);
    return done;
  }

  /** Gives back the space of clusters that read as zeros, as zeros. Where data is encrypted zeros would be noise until that is durable. */
  async #punch(offset: number, length: number): Promise<void> {
    const { dataStorage, payload } = this.#state.parts;
    if (payload === dataStorage) await dataStorage.writeZeroes(offset, length, true).catch(() => false);
  }

  /** Before more becomes dirty: writes back when there is too much already. */
  async #relieve(): Promise<void> {
    this.#state.check();
    if (this.#state.parts.cache.pinnedFull || this.#state.unlinked.length > MAX_UNLINKED) await this.flush();
    if (this.#lazy && !this.#marked) await this.#beLazy();
  }

  /** Runs a change; when there is no space, once more after freeing what waits to be freed. */
  async #retried<T>(act: () => Promise<T>): Promise<T> {
    try {
      return await this.#state.change(act);
    } catch (error) {
      if (codeOf(error) !== 'NO_SPACE' || !this.#flusher.holdsSpace) throw error;
      await this.flush();
      await this.#flusher.settled();
      return this.#state.change(act);
    }
  }
}
