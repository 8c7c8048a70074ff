import type { BlockCache } from '../cache/cache.ts';
import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { LayerContext } from '../driver.ts';
import { ABSENT, DATA, type ExtentBuffer, WRITABLE, ZERO } from '../image/extent.ts';
import type {
  Layer,
  LayerInfo,
  LayerLimits,
  ParentReference,
  Region,
  Reservation,
  ResizeOptions,
} from '../image/layer.ts';
import { LeaseBook } from '../image/lease.ts';
import { actualSize } from '../storage/actual-size.ts';
import type { Storage } from '../storage/storage.ts';
import { BlockMap } from './block-map.ts';
import { noBlocks, type PhysicalBlocks } from './blocks.ts';
import { compact } from './compact.ts';
import { Geometry } from './geometry.ts';
import { ENTRY_FREE, ENTRY_ZERO, HEADER_V1, headerIds, TYPE_FIXED, TYPE_NAMES, type VdiHeader } from './header.ts';
import { inspectBlocks } from './inspect.ts';
import { resizeVdi } from './resize.ts';
import { isNullUuid, parseUuid, randomUuid, uuidText } from './uuid.ts';

/** Blocks in one reservation: the mover comes again for more. */
const MAX_RESERVED = 256;
const ZERO_CHUNK = 1024 * 1024;

/** One VDI file. */
export class VdiLayer implements Layer {
  readonly format = 'vdi';
  readonly storage: Storage;
  readonly readOnly: boolean;
  readonly limits: LayerLimits;
  readonly parent: ParentReference | undefined;
  readonly leases = new LeaseBook();
  readonly #cache: BlockCache;
  #header: VdiHeader;
  #geometry: Geometry;
  #map: BlockMap;
  /** Undefined when it is open for reading only. */
  readonly #blocks: PhysicalBlocks | undefined;
  #uuidModify: Uint8Array;
  #begun = false;
  /** What the header in the file counts. */
  #countOnDisk: number;
  #flushing: Promise<void> = Promise.resolve();
  /** Freed space that waits for readers to go, before it is used again. */
  #reclaiming: Promise<void> = Promise.resolve();
  #failed = false;
  /** The file is being made longer: who writes behind that meanwhile would be cut off. */
  #growing: Promise<void> | undefined;

  private constructor(parts: {
    storage: Storage;
    header: VdiHeader;
    map: BlockMap;
    blocks: PhysicalBlocks | undefined;
    cache: BlockCache;
  }) {
    const { storage, header, map, blocks, cache } = parts;
    this.storage = storage;
    this.readOnly = blocks === undefined;
    this.#header = header;
    this.#geometry = new Geometry(header);
    this.#map = map;
    this.#blocks = blocks;
    this.#cache = cache;
    this.#uuidModify = header.uuidModify;
    this.#countOnDisk = header.cBlocksAllocated;
    const unit = header.cbBlock;
    this.limits = {
      allocationUnit: unit,
      zeroUnit: header.type === TYPE_FIXED && !storage.discards ? 0 : unit,
      discardUnit: header.type === TYPE_FIXED ? 0 : unit,
    };
    this.parent = parentOf(header);
  }

  /** @throws {ImageError} CORRUPT for an image that cannot be written safely; UNSUPPORTED for writing version 0 */
  static async open(
    storage: Storage,
    header: VdiHeader,
    options: { readOnly: boolean; context: LayerContext },
  ): Promise<VdiLayer> {
    const { context } = options;
    if (header.cbDisk !== header.size) {
      context.warn(
        `its size of ${header.cbDisk} bytes is no whole number of sectors: it is read as ${header.size}`,
        storage,
      );
    }
    const map = new BlockMap(storage, { offset: header.offBlocks, count: header.cBlocks }, context.cache);
    try {
      const blocks =
        options.readOnly || storage.readOnly ? undefined : await inspectBlocks(storage, header, map, context);
      return new VdiLayer({ storage, header, map, blocks, cache: context.cache });
    } catch (error) {
      map.release();
      throw error;
    }
  }

  get size(): number {
    return this.#header.size;
  }

  get ids(): Readonly<Record<string, string>> {
    return { uuidCreate: uuidText(this.#header.uuidCreate), uuidModify: uuidText(this.#uuidModify) };
  }

  tryMap(offset: number, length: number, out: ExtentBuffer): number {
    out.begin(offset);
    const { blockSize } = this.#geometry;
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const block = Math.floor(at / blockSize);
      const entry = this.#map.tryGet(block);
      const take = Math.min((block + 1) * blockSize, end) - at;
      let fits: boolean;
      if (entry === ENTRY_FREE) fits = out.append(ABSENT, take);
      else if (entry === ENTRY_ZERO) fits = out.append(ZERO, take);
      else {
        // Not in memory, or not in the file: map() reads it, or says what is wrong.
        if (entry < 0 || !this.#isPlace(block, entry)) return out.count > 0 ? out.count : -1;
        const place = this.#geometry.placeOf(entry) + (at - block * blockSize);
        fits = out.append(DATA, take, this.storage, place, this.readOnly ? 0 : WRITABLE);
      }
      if (!fits) break;
      at += take;
    }
    return out.count;
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    for (;;) {
      const count = this.tryMap(offset, length, out);
      if (count > 0) return count;
      const block = Math.floor(offset / this.#geometry.blockSize);
      const entry = await this.#map.get(block);
      if (entry < ENTRY_ZERO && !this.#isPlace(block, entry)) {
        throw new ImageError('CORRUPT', `block ${block} is at index ${entry}, which is past the end of the file`, {
          path: this.storage.path,
          field: 'block map',
          offset: this.#header.offBlocks + 4 * block,
          help: 'A check with repair takes such entries out',
        });
      }
    }
  }

  /** Of the header nothing counts that changes while an image is in use. */
  async renew(): Promise<void> {
    await this.storage.lock('shared'); // the file may be longer by now
    this.#map.forget();
  }

  /** Whether the file holds the guest bytes of a block at that index, or will: what this session allocated. */
  #isPlace(block: number, entry: number): boolean {
    if (this.#blocks !== undefined && entry < this.#blocks.next) return true;
    return this.#geometry.isInside(block, entry, this.storage.size);
  }

  tryReadOpaque(): boolean {
    return false;
  }

  async readOpaque(_extents: ExtentBuffer, _index: number, offset: number, _iov: IoVec): Promise<void> {
    throw this.#bug('an opaque extent', offset);
  }

  /** A new modification id, durable before the first changed byte: whoever was made on the old state can tell. */
  async beginWrite(): Promise<void> {
    this.#uuidModify = randomUuid();
    await this.storage.writev(HEADER_V1.fields.uuidModify.at, IoVec.of(this.#uuidModify));
    await this.storage.sync();
    this.#begun = true;
  }

  async followParent({ uuidModify = '' }: Readonly<Record<string, string>>): Promise<void> {
    const uuid = parseUuid(uuidModify);
    if (uuid === undefined) return;
    await this.storage.writev(HEADER_V1.fields.uuidParentModify.at, IoVec.of(uuid));
    await this.storage.sync();
  }

  async reserve(offset: number, length: number): Promise<Reservation> {
    const { blockSize } = this.#geometry;
    const blocks = this.#writable();
    if (this.#cache.pinnedFull) await this.flush();
    await this.#grown();
    const first = Math.floor(offset / blockSize);
    const last = Math.min(Math.floor((offset + length - 1) / blockSize), first + MAX_RESERVED - 1);
    const indexes: number[] = [];
    const regions: Region[] = [];
    try {
      for (let block = first; block <= last; block++) {
        const index = this.#take(blocks) ?? (indexes.length > 0 ? undefined : await this.#takeRetired(blocks));
        if (index === undefined) break;
        indexes.push(index);
        const storageOffset = this.#geometry.placeOf(index);
        regions.push({
          storage: this.storage,
          storageOffset,
          length: blockSize,
          guestOffset: block * blockSize,
          fill: 'current',
          fresh: this.storage.growsZeroed && storageOffset >= this.storage.size,
        });
      }
    } catch (error) {
      for (const index of indexes.reverse()) blocks.giveBack(index);
      throw error;
    }
    return {
      end: (first + indexes.length) * blockSize,
      regions,
      commit: async () => {
        for (let i = 0; i < indexes.length; i++) await this.#map.set(first + i, indexes[i] as number);
      },
      abort: async () => {
        for (const index of indexes.reverse()) blocks.giveBack(index);
      },
    };
  }

  /** All indexes are taken, but a disk has no more blocks than the map: some must be on their way to be free. */
  async #takeRetired(blocks: PhysicalBlocks): Promise<number> {
    await this.flush();
    await this.#reclaiming;
    await this.#grown();
    const index = this.#take(blocks);
    if (index === undefined) throw noBlocks(this.storage);
    return index;
  }

  /** A place for a block, inside the device where the file is one. */
  #take(blocks: PhysicalBlocks): number | undefined {
    const index = blocks.tryTake();
    if (index === undefined || this.storage.growsZeroed) return index;
    if (this.#geometry.endOf(index + 1) <= this.storage.size) return index;
    blocks.giveBack(index);
    return undefined;
  }

  async zero(offset: number, length: number, unmap: boolean): Promise<boolean> {
    const { blockSize } = this.#geometry;
    const mayUnmap = unmap && this.#header.type !== TYPE_FIXED;
    for (let at = offset; at < offset + length; at += blockSize) {
      const block = at / blockSize;
      const entry = await this.#map.get(block);
      if (entry < ENTRY_ZERO && !mayUnmap) await this.#writeZeros(entry, Math.min(blockSize, offset + length - at));
      else await this.#clear(block, entry);
    }
    return true;
  }

  async release(offset: number, length: number): Promise<boolean> {
    if (this.#header.type === TYPE_FIXED) return false;
    return this.zero(offset, length, true);
  }

  /** Makes a block read as zeros without a place in the file. */
  async #clear(block: number, entry: number): Promise<void> {
    if (entry === ENTRY_ZERO || (entry === ENTRY_FREE && this.parent === undefined)) return;
    if (this.#cache.pinnedFull) await this.flush();
    await this.#map.set(block, ENTRY_ZERO);
    if (entry < ENTRY_ZERO) this.#writable().retire(entry);
  }

  /** Zeros in place, for a block that keeps its space. */
  async #writeZeros(index: number, length: number): Promise<void> {
    const place = this.#geometry.placeOf(index);
    if (await this.storage.writeZeroes(place, length, false)) return;
    const zeros = new Uint8Array(Math.min(length, ZERO_CHUNK));
    for (let at = 0; at < length; at += zeros.length) {
      await this.storage.writev(place + at, IoVec.of(zeros, 0, Math.min(zeros.length, length - at)));
    }
  }

  async resize(size: number, options: ResizeOptions): Promise<void> {
    const blocks = this.#writable();
    await this.flush();
    await this.#reclaiming;
    const parts = { storage: this.storage, header: this.#header, map: this.#map, blocks, leases: this.leases };
    const switched = (header: VdiHeader): BlockMap => this.#switched(header);
    const stop = (): void => {
      this.#failed = true;
    };
    let count = -1; // not known: the next flush writes it
    try {
      await resizeVdi({ ...parts, switched, stop }, size, options, () => this.flush());
      count = Math.min(blocks.next, this.#header.cBlocks);
      this.#header = { ...this.#header, cBlocksAllocated: count };
    } finally {
      this.#countOnDisk = count;
    }
  }

  /** The file has another header: everything is where that says. */
  #switched(header: VdiHeader): BlockMap {
    this.#header = header;
    this.#geometry = new Geometry(header);
    this.#map.release();
    this.#map = new BlockMap(this.storage, { offset: header.offBlocks, count: header.cBlocks }, this.#cache);
    return this.#map;
  }

  /**
   * Data and the header's count first, durable; then the map. A count that is too high is a leak, an entry without its data
   * would be corruption.
   */
  flush(): Promise<void> {
    const flushing = this.#flushing.catch(() => undefined).then(() => this.#flushOnce());
    this.#flushing = flushing;
    return flushing;
  }

  async #flushOnce(): Promise<void> {
    const blocks = this.#blocks;
    if (blocks === undefined) return;
    if (this.#failed) {
      throw new LunetteError('IO', 'writing back failed before: nothing more is written until it is opened again', {
        path: this.storage.path,
      });
    }
    const copies = this.#map.copies();
    const retired = blocks.takeRetired();
    try {
      const end = this.#geometry.endOf(blocks.next);
      // Indexes above the number of blocks there are only while the disk grows: the count must not be higher.
      const next = Math.min(blocks.next, this.#header.cBlocks);
      // Blocks whose end was zeros have not been written up to it.
      if (copies.length > 0 && this.storage.size < end && this.storage.growsZeroed) await this.#grow(end);
      if (next !== this.#countOnDisk) {
        await this.#writeCount(next);
        this.#countOnDisk = next;
      }
      await this.storage.sync();
      if (copies.length > 0) {
        await this.#map.write(copies);
        await this.storage.sync();
        this.#map.written(copies);
      }
    } catch (error) {
      blocks.putRetired(retired);
      if (!(error instanceof LunetteError) || error.code !== 'NO_SPACE') this.#failed = true;
      throw error;
    }
    if (retired.length > 0) this.#reclaim(blocks, retired);
  }

  /** Makes the file as long as what is reserved by now. Whoever reserves meanwhile waits: all writes stay inside that length. */
  async #grow(size: number): Promise<void> {
    this.#growing = this.storage.resize(size);
    try {
      await this.#growing;
    } finally {
      this.#growing = undefined;
    }
  }

  async #grown(): Promise<void> {
    while (this.#growing !== undefined) await this.#growing.catch(() => undefined);
  }

  /** Gives places to the next allocation once nobody reads there, and their space to the host meanwhile. */
  #reclaim(blocks: PhysicalBlocks, indexes: readonly number[]): void {
    this.#reclaiming = Promise.all([this.#reclaiming, this.leases.quiesced()]).then(async () => {
      for (const index of indexes) {
        // Only an optimization: the space is used again, or cut off when the image is closed.
        await this.storage.discard(this.#geometry.startOf(index), this.#geometry.stride).catch(() => false);
      }
      blocks.free(indexes);
    });
  }

  async #writeCount(count: number): Promise<void> {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, count, true);
    await this.storage.writev(HEADER_V1.fields.cBlocksAllocated.at, IoVec.of(bytes));
  }

  /** Free blocks are filled from the end and the file is cut, as VirtualBox keeps its files. */
  async close(): Promise<void> {
    try {
      const blocks = this.#blocks;
      if (blocks !== undefined && this.#begun && !this.#failed) {
        await this.flush();
        await this.#reclaiming;
        if (blocks.freeCount > 0 && this.#header.type !== TYPE_FIXED) {
          await compact({ storage: this.storage, geometry: this.#geometry, map: this.#map, blocks });
          this.#countOnDisk = blocks.next;
        }
      }
    } finally {
      this.#map.release();
      await this.storage.close();
    }
  }

  async describe(): Promise<LayerInfo> {
    const header = this.#header;
    const ids = headerIds(header);
    return {
      format: 'vdi',
      virtualSize: header.size,
      clusterSize: header.cbBlock,
      dirty: false,
      specific: {
        'image-type': TYPE_NAMES[header.type],
        'header-version': header.version === 0 ? '0' : '1.1',
        'blocks-allocated': header.cBlocksAllocated,
        'block-extra': header.cbBlockExtra,
        'uuid-image': ids.image,
        'uuid-modification': uuidText(this.#uuidModify),
        ...(this.parent === undefined
          ? {}
          : { 'uuid-parent': ids.parent, 'uuid-parent-modification': ids.parentModification }),
        ...(header.comment === '' ? {} : { comment: header.comment }),
      },
      ...(await actualSize(this.storage)),
    };
  }

  #writable(): PhysicalBlocks {
    if (this.#blocks === undefined)
      throw new LunetteError('READ_ONLY', 'the image is open read-only', { path: this.storage.path });
    return this.#blocks;
  }

  #bug(what: string, offset: number): LunetteError {
    return new LunetteError('INTERNAL', `VDI images have no use for ${what}`, { path: this.storage.path, offset });
  }
}

/** Only ids: VDI headers name no files. */
function parentOf(header: VdiHeader): ParentReference | undefined {
  if (isNullUuid(header.uuidLinkage)) return undefined;
  return {
    path: undefined,
    format: undefined,
    expected: { uuidCreate: uuidText(header.uuidLinkage) },
    ...(isNullUuid(header.uuidParentModify) ? {} : { advisory: { uuidModify: uuidText(header.uuidParentModify) } }),
  };
}
