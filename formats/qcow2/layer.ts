import type { BlockCache, BlockSpace } from '../cache/cache.ts';
import { ImageError, LunetteError } from '../core/errors.ts';
import type { Inflate } from '../core/inflate.ts';
import type { IoVec } from '../core/iov.ts';
import { alignUp, divideUp } from '../core/units.ts';
import type { Unpack } from '../core/unpack.ts';
import type { BitmapStore, ChangeRecorder } from '../image/bitmaps.ts';
import { ENCRYPTED, type ExtentBuffer } from '../image/extent.ts';
import type {
  CompressedReservation,
  Compression,
  Layer,
  LayerInfo,
  LayerLimits,
  NewSnapshotOptions,
  ParentName,
  ParentReference,
  Reservation,
  ResizeOptions,
  SnapshotReference,
} from '../image/layer.ts';
import type { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import { ReadOnlyBitmaps } from './bitmap-reader.ts';
import { encodeCluster, PACKING } from './cluster-codec.ts';
import { CompressedClusters } from './compressed.ts';
import { describeQcow2 } from './describe.ts';
import type { Payload } from './encryption.ts';
import { GuestSectors } from './guest-sectors.ts';
import type { Qcow2Header } from './header.ts';
import { COMPRESSED_BIT, compressedLength, compressedOffset, getU32 } from './l2.ts';
import { Mapping } from './mapping.ts';
import { PackedReads } from './packed-reads.ts';
import { PointerTable } from './pointer-table.ts';
import type { Renewal } from './renewal.ts';
import type { SliceCache } from './slices.ts';
import { checkSnapshotL1, type Qcow2Snapshot } from './snapshot.ts';
import { type SnapshotEditor, selectSnapshot } from './snapshot-editor.ts';
import type { Qcow2Writer } from './writer.ts';

export interface Qcow2LayerParts {
  readonly storage: Storage;
  /** Where guest data is: `storage`, or the external data file. */
  readonly dataStorage: Storage;
  readonly payload: Payload;
  readonly header: Qcow2Header;
  readonly snapshots: readonly Qcow2Snapshot[];
  /** Guest size: the header's, or that of the snapshot that was opened. */
  readonly size: number;
  readonly cache: BlockCache;
  readonly inflate?: Inflate | undefined;
  readonly unpack?: Unpack | undefined;
  /** The disk is read from start to end. */
  readonly readsOnce?: boolean | undefined;
  /** Undefined when the image was opened only to be described. */
  readonly tables: { readonly l1: PointerTable; readonly slices: SliceCache } | undefined;
  /** Undefined when the layer is read-only. */
  readonly writer: Qcow2Writer | undefined;
  readonly leases: LeaseBook;
  /** The live disk, no snapshot. */
  readonly live: boolean;
  /** Others may write to the file: nothing that is read may be kept. */
  readonly shared?: boolean;
  readonly renewal?: Renewal | undefined;
  /** For a view of another layer's file: gives back what it shares, in place of closing it. */
  readonly giveBack?: () => Promise<void>;
}

/** The cache of a file that others write to. */
const KEEPS_NOTHING: BlockSpace = {
  count: 0,
  get: () => undefined,
  set: () => undefined,
  delete: () => undefined,
  release: () => undefined,
};

/** A qcow2 image, or one of its internal snapshots: mapping and compressed clusters here, everything that changes the file in the writer. */
export class Qcow2Layer implements Layer {
  readonly format = 'qcow2';
  readonly storage: Storage;
  readonly readOnly: boolean;
  readonly limits: LayerLimits;
  readonly parent: ParentReference | undefined;
  readonly leases: LeaseBook;
  readonly header: Qcow2Header;
  readonly endUnit: number;
  readonly cutsEnd: boolean;
  readonly compression: Compression | undefined;
  readonly readOpaqueRun: Layer['readOpaqueRun'];
  readonly recorder: ChangeRecorder | undefined;
  readonly bitmaps: BitmapStore | undefined;
  readonly #snapshots: readonly Qcow2Snapshot[];
  #size: number;
  readonly #cache: BlockCache;
  readonly #unpacking: Pick<Qcow2LayerParts, 'inflate' | 'unpack' | 'readsOnce'>;
  readonly #dataStorage: Storage;
  readonly #payload: Payload;
  readonly #guestSectors: GuestSectors | undefined;
  readonly #mapping: Mapping | undefined;
  readonly #slices: SliceCache | undefined;
  readonly #compressed: CompressedClusters | undefined;
  readonly #writer: Qcow2Writer | undefined;
  readonly #giveBack: (() => Promise<void>) | undefined;
  readonly #renewal: Renewal | undefined;
  #closing: Promise<void> | undefined;
  /** This layer and views of its snapshots: the last to close closes the file. */
  #users = 1;
  /** Open views by the offset of their L1 table. */
  readonly #views = new Map<number, number>();
  /** L1 table of the snapshot that is being deleted. */
  #deleting: number | undefined;

  constructor(parts: Qcow2LayerParts) {
    const { storage, header, tables, writer } = parts;
    const { clusterSize, version, compressedOffsetBits } = header.geometry;
    this.storage = storage;
    this.header = header;
    this.endUnit = clusterSize;
    this.cutsEnd = parts.dataStorage !== storage;
    this.#snapshots = parts.snapshots;
    this.#cache = parts.cache;
    const { inflate, unpack, readsOnce } = parts;
    this.#unpacking = { inflate, unpack, readsOnce };
    this.#size = parts.size;
    this.#dataStorage = parts.dataStorage;
    this.#payload = parts.payload;
    const { guestCipher } = parts.payload;
    this.#guestSectors = guestCipher === undefined ? undefined : new GuestSectors(parts.dataStorage, guestCipher);
    this.#writer = writer;
    this.#giveBack = parts.giveBack;
    this.#renewal = parts.renewal;
    this.readOnly = writer === undefined;
    this.recorder = writer?.bitmaps;
    // Bitmaps are of the live disk, not of its snapshots.
    this.bitmaps = writer?.bitmaps ?? (parts.live ? new ReadOnlyBitmaps(storage, header) : undefined);
    this.leases = parts.leases;
    this.parent =
      header.backingFile === undefined ? undefined : { path: header.backingFile, format: header.backingFormat };
    this.limits = {
      allocationUnit: clusterSize,
      zeroUnit: header.geometry.subclusterSize,
      // Version 2 cannot say "zeros here": a cluster that is given up shows the backing file again.
      discardUnit: version === 2 && this.parent !== undefined ? 0 : clusterSize,
    };
    // Compressed clusters are neither encrypted nor in an external data file.
    if (writer !== undefined && header.cryptMethod === 0 && parts.dataStorage === storage) {
      const { compressionType: type } = header;
      this.compression = {
        type,
        packing: PACKING[type],
        unit: clusterSize,
        encode: (bytes) => encodeCluster(type, bytes, clusterSize),
      };
    }
    if (tables === undefined) return;
    const mapping = new Mapping({
      geometry: header.geometry,
      l1: tables.l1,
      slices: tables.slices,
      storage,
      dataStorage: parts.dataStorage,
      payload: parts.payload.storage,
      opaque: guestCipher !== undefined,
      metadata: writer?.metadata ?? null,
    });
    this.#mapping = mapping;
    this.#slices = tables.slices;
    const reading = {
      storage,
      type: header.compressionType,
      clusterSize,
      inflate,
      unpack,
      lengthOf: (guestOffset: number, hostOffset: number) => {
        const slice = mapping.sliceOf(guestOffset);
        const bytes = slice < 0 ? undefined : tables.slices.peek(slice);
        if (bytes === undefined) return undefined;
        const at = mapping.entryAt(guestOffset);
        const high = getU32(bytes, at);
        const low = getU32(bytes, at + 4);
        const same = (high & COMPRESSED_BIT) !== 0 && compressedOffset(high, low, compressedOffsetBits) === hostOffset;
        return same ? compressedLength(high, low, compressedOffsetBits) : undefined;
      },
    };
    const cache = parts.shared === true ? KEEPS_NOTHING : parts.cache.space(divideUp(parts.size, clusterSize));
    this.#compressed = new CompressedClusters({ ...reading, cache });
    // Sectors of encrypted images are read one extent at a time.
    if (readsOnce === true && guestCipher === undefined) {
      const reads = new PackedReads(reading, this.#compressed);
      this.readOpaqueRun = (extents, first, end, offset, iov) => reads.read(extents, first, end, offset, iov);
    }
    writer?.attach(mapping, this.#compressed);
  }

  get size(): number {
    return this.#size;
  }

  get snapshots(): readonly Qcow2Snapshot[] {
    return this.#writer?.snapshots.table.snapshots ?? this.#snapshots;
  }

  tryMap(offset: number, length: number, out: ExtentBuffer): number {
    return this.#mapping === undefined ? -1 : this.#mapping.tryMap(offset, length, out);
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    return this.#mapped().map(offset, length, out);
  }

  tryReadOpaque(extents: ExtentBuffer, index: number, offset: number, iov: IoVec): boolean {
    if (((extents.flags[index] as number) & ENCRYPTED) !== 0) return false;
    return this.#compressed?.tryRead(offset, iov) ?? false;
  }

  async readOpaque(extents: ExtentBuffer, index: number, offset: number, iov: IoVec): Promise<void> {
    if (((extents.flags[index] as number) & ENCRYPTED) !== 0) {
      await this.#guestSectors?.read(extents, index, offset, iov);
      return;
    }
    const hostOffset = extents.storageOffsets[index] as number;
    await this.#compressed?.read(offset, hostOffset, iov);
  }

  async renew(offset: number, length: number): Promise<void> {
    await this.#renewal?.renew(offset, length);
    if (this.#dataStorage !== this.storage && this.#renewal !== undefined) await this.#dataStorage.lock('shared');
  }

  async beginWrite(): Promise<void> {
    await this.#writing().beginWrite();
  }

  reserve(offset: number, length: number): Promise<Reservation> {
    return this.#writing().reserve(offset, length, this.#size);
  }

  reserveCompressed(offset: number, lengths: readonly number[]): Promise<CompressedReservation> {
    return this.#writing().reserveCompressed(offset, lengths);
  }

  zero(offset: number, length: number, unmap: boolean): Promise<boolean> {
    return this.#writing().zero(offset, this.#withTail(offset, length), unmap);
  }

  release(offset: number, length: number): Promise<boolean> {
    return this.#writing().release(offset, this.#withTail(offset, length));
  }

  /** The length of a range that goes to the end of its last cluster where that is the disk's: the rest is nobody else's. */
  #withTail(offset: number, length: number): number {
    if (offset + length < this.#size || this.#dataStorage !== this.storage) return length;
    return alignUp(this.#size, this.header.geometry.clusterSize) - offset;
  }

  async condemn(error: ImageError): Promise<void> {
    await this.#writer?.condemn(error);
  }

  async resize(size: number, options: ResizeOptions): Promise<void> {
    await this.#writing().resize(this.#size, size, options, () => this.#resized(size));
  }

  async empty(): Promise<void> {
    await this.#writing().empty();
    this.#resized(this.#size);
  }

  setParent(parent: ParentName | undefined): Promise<void> {
    return this.#writing().setParent(parent);
  }

  async createSnapshot(name: string, options: NewSnapshotOptions): Promise<Qcow2Snapshot> {
    return this.#snapshotEditor().create(name, this.#size, options);
  }

  async applySnapshot(reference: SnapshotReference): Promise<void> {
    const snapshots = this.#snapshotEditor();
    const snapshot = selectSnapshot(snapshots.table.snapshots, reference);
    const size = snapshot.diskSize ?? this.#size;
    if (!Number.isSafeInteger(size) || size % 512 !== 0) {
      throw new ImageError('UNSUPPORTED', `the disk of the snapshot has ${size} bytes`, { path: this.storage.path });
    }
    const { bitmaps } = this.#writing();
    if (size !== this.#size) bitmaps.admitResize(size);
    await bitmaps.recordAll(); // any part of the disk may be another then
    await snapshots.apply(snapshot, size, () => {
      this.#resized(size);
      bitmaps.tryRecord(0, size); // what the disk grew by as well: there is room for it by now
    });
  }

  /** As Qcow2Writer.amend. */
  amend(version: 2 | 3, change: () => Promise<void>): Promise<void> {
    return this.#writing().amend(version, this.#size, change);
  }

  async deleteSnapshot(reference: SnapshotReference): Promise<void> {
    const snapshots = this.#snapshotEditor();
    const snapshot = selectSnapshot(snapshots.table.snapshots, reference);
    if (this.#views.has(snapshot.l1TableOffset)) {
      throw new ImageError('LOCKED', `snapshot ${snapshot.id} is open`, { path: this.storage.path });
    }
    this.#deleting = snapshot.l1TableOffset;
    try {
      await snapshots.delete(snapshot);
    } finally {
      this.#deleting = undefined;
    }
  }

  async openSnapshot(reference: SnapshotReference): Promise<Qcow2Layer> {
    const snapshot = selectSnapshot(this.snapshots, reference);
    const size = this.#diskSizeOf(snapshot);
    return this.#view(snapshot, size - (size % 512));
  }

  async openVmState(reference: SnapshotReference): Promise<{ layer: Qcow2Layer; offset: number; size: number }> {
    const snapshot = selectSnapshot(this.snapshots, reference);
    const { id, vmStateSize: size, l1Size, at } = snapshot;
    const { l2Coverage } = this.header.geometry;
    // Behind the disk, from the first L1 entry on that maps nothing of it.
    const offset = alignUp(this.#diskSizeOf(snapshot), l2Coverage);
    if (offset + size > l1Size * l2Coverage && size > 0) {
      throw new ImageError('CORRUPT', `the L1 table of snapshot ${id} ends before its VM state`, {
        path: this.storage.path,
        field: 'l1Size',
        offset: at + 8,
      });
    }
    return { layer: await this.#view(snapshot, offset + size), offset, size };
  }

  /** Bytes of the disk of a snapshot; those that do not say have the live disk's. */
  #diskSizeOf(snapshot: Qcow2Snapshot): number {
    const size = snapshot.diskSize ?? this.#size;
    if (Number.isSafeInteger(size)) return size;
    throw new ImageError('TOO_LARGE', 'the disk of the snapshot is larger than 8 PiB', { path: this.storage.path });
  }

  /** What a snapshot's L1 table maps, `size` bytes of it. */
  async #view(snapshot: Qcow2Snapshot, size: number): Promise<Qcow2Layer> {
    const { storage, header } = this;
    const slices = this.#slices;
    const { l1TableOffset, l1Size, id } = snapshot;
    checkSnapshotL1(snapshot, header.geometry.clusterSize);
    if (slices === undefined || this.#users === 0) throw new LunetteError('CLOSED', 'the image is closed');
    if (this.#deleting === l1TableOffset) {
      throw new ImageError('LOCKED', `snapshot ${id} is being deleted`, { path: storage.path });
    }
    this.#users++;
    this.#views.set(l1TableOffset, (this.#views.get(l1TableOffset) ?? 0) + 1);
    const giveBack = async () => {
      const left = (this.#views.get(l1TableOffset) as number) - 1;
      if (left > 0) this.#views.set(l1TableOffset, left);
      else this.#views.delete(l1TableOffset);
      await this.#leave();
    };
    try {
      const { clusterSize } = header.geometry;
      const options = { name: 'L1 table', offset: l1TableOffset, entries: l1Size, clusterSize };
      return new Qcow2Layer({
        storage,
        dataStorage: this.#dataStorage,
        payload: this.#payload,
        header,
        snapshots: this.snapshots,
        size,
        cache: this.#cache,
        ...this.#unpacking,
        tables: { l1: await PointerTable.load(storage, options), slices },
        writer: undefined,
        leases: this.leases,
        live: false,
        giveBack,
      });
    } catch (error) {
      await giveBack();
      throw error;
    }
  }

  /** The disk has another size, perhaps another content. */
  #resized(size: number): void {
    this.#size = size;
    this.#compressed?.renew(this.#cache.space(divideUp(size, this.header.geometry.clusterSize)));
  }

  async flush(): Promise<void> {
    await this.#writer?.flush();
  }

  async publish(): Promise<void> {
    await this.#writer?.publish();
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    try {
      await this.#writer?.close();
    } finally {
      this.#compressed?.release();
      await this.#leave();
    }
  }

  async #leave(): Promise<void> {
    this.#users--;
    if (this.#users > 0) return;
    if (this.#giveBack !== undefined) return this.#giveBack();
    this.#slices?.release();
    try {
      if (this.#dataStorage !== this.storage) await this.#dataStorage.close();
    } finally {
      await this.storage.close();
    }
  }

  describe(): Promise<LayerInfo> {
    return describeQcow2({ storage: this.storage, header: this.header, size: this.#size, snapshots: this.snapshots });
  }

  #mapped(): Mapping {
    if (this.#mapping !== undefined) return this.#mapping;
    throw new LunetteError('INVALID', 'the image was opened only to be described', { path: this.storage.path });
  }

  #snapshotEditor(): SnapshotEditor {
    const { snapshots } = this.#writing();
    if (this.#dataStorage === this.storage) return snapshots;
    throw new ImageError('UNSUPPORTED', 'an image with an external data file has no internal snapshots', {
      path: this.storage.path,
    });
  }

  #writing(): Qcow2Writer {
    if (this.#writer !== undefined) return this.#writer;
    throw new ImageError('READ_ONLY', 'the image is open read-only', { path: this.storage.path });
  }
}
