import { codeOf, ImageError, LunetteError } from '../core/errors.ts';
import { appendZeros, IoVec } from '../core/iov.ts';
import { Lifetime } from '../core/lifetime.ts';
import { RangeLock } from '../core/range-lock.ts';
import { Turns } from '../core/turns.ts';
import { alignDown, alignUp } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';
import type { ChangeRecorder } from './bitmaps.ts';
import { begin, ChainReader, settle } from './chain-read.ts';
import { ABSENT, ExtentBuffer, isWritable, ZERO } from './extent.ts';
import { fillRegions } from './fill-regions.ts';
import { FreshReader } from './fresh-read.ts';
import type { CopySource, Image, ImageLimits } from './image.ts';
import type { Compression, EncodedUnit, Layer, ResizeOptions } from './layer.ts';
import { cloneRange, copyRange } from './transfer-range.ts';
import { writeUnits } from './write-compressed.ts';
import { roundedRange, type WriteRange } from './write-range.ts';

/** Most bytes of explicit zeros in one write. */
const ZERO_CHUNK = 1024 * 1024;

/**
 * The one mover: a disk made of layers, top first. Bounds, chain, zero fill, copy-on-write, ordering of writers and flush exist
 * here once, above all formats.
 *
 * Ordering: writers hold their guest range (rounded to allocation units where they allocate); readers hold nothing, they only wait for
 * earlier overlapping writers. The synchronous calls refuse while anything overlapping is held or awaited.
 */
export class ChainImage implements Image {
  readonly path: string;
  readonly layers: readonly Layer[];
  readonly readOnly: boolean;
  /** Others may write to its files meanwhile: where something lies is good for nothing but telling. */
  readonly shared: boolean;
  readonly limits: ImageLimits;
  readonly #top: Layer;
  readonly #reader: ChainReader;
  readonly #recorder: ChangeRecorder | undefined;
  readonly #locks = new RangeLock();
  readonly #lifetime: Lifetime;
  readonly #release: () => Promise<void>;
  /** For the synchronous path: what was mapped last. */
  readonly #extents = new ExtentBuffer();
  /** For writes that wait, which may overlap in time. */
  readonly #freeExtents: ExtentBuffer[] = [];
  readonly #resizeListeners = new Set<(size: number) => void>();
  /** See Image. Counted when a change is visible, while its range is still held: a flush that begins later covers what was counted. */
  mappingChanges = 0;
  /** beginWrite() has succeeded. */
  #begun = false;
  #beginning: Promise<void> | undefined;
  /** A flush failed for another reason than a full disk: what was acknowledged may be lost, so nothing more is. */
  #failed: LunetteError | undefined;
  readonly #flushes = new Turns(() => this.#writeBack(() => this.#top.flush()));

  /**
   * @param layers top first, at least one; the image takes them over
   * @param options.release closes the layers, or gives them back to whoever shares them; default: closes all
   */
  constructor(
    layers: readonly Layer[],
    options: { path?: string; readOnly?: boolean; shared?: boolean; release?: () => Promise<void> } = {},
  ) {
    const top = layers[0];
    if (top === undefined) throw new LunetteError('INVALID', 'an image needs at least one layer');
    this.layers = layers;
    this.#top = top;
    this.path = options.path ?? top.storage.path;
    this.readOnly = top.readOnly || (options.readOnly ?? false);
    this.limits = top.limits;
    this.shared = options.shared ?? false;
    this.#reader = this.shared ? new FreshReader(layers) : new ChainReader(layers);
    this.#recorder = top.recorder;
    this.#lifetime = new Lifetime(this.path);
    this.#release = options.release ?? (() => settle(layers.map((layer) => layer.close())));
  }

  get format(): string {
    return this.#top.format;
  }

  get size(): number {
    return this.#top.size;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    const length = iov.byteLength;
    this.#checkRange(offset, length);
    if (this.#lifetime.closed || this.#locks.overlaps(offset, length)) return false;
    return length === 0 || this.#reader.tryRead(0, offset, iov);
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    this.#checkRange(offset, iov.byteLength);
    this.#lifetime.enter();
    try {
      await this.#locks.passed(offset, iov.byteLength);
      await this.#reader.read(0, offset, iov);
    } finally {
      this.#lifetime.leave();
    }
  }

  readsZero(offset: number, length: number): boolean {
    this.#checkRange(offset, length);
    return !this.#lifetime.closed && !this.#locks.overlaps(offset, length) && this.#reader.readsZero(0, offset, length);
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    const length = iov.byteLength;
    this.#checkWrite(offset, length);
    if (!this.#begun || this.#lifetime.closed || this.#locks.overlaps(offset, length)) return false;
    const extents = this.#extents;
    if (this.#top.tryMap(offset, length, extents) !== 1 || extents.end < offset + length) return false;
    if (!isWritable(extents, 0)) return false;
    if (this.#recorder !== undefined && !this.#recorder.tryRecord(offset, length)) return false;
    return extents.storages[0]?.tryWritev(extents.storageOffsets[0] as number, iov) ?? false;
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    this.#checkWrite(offset, iov.byteLength);
    if (iov.byteLength === 0) return;
    await this.#change(this.#rangeOfWrite(offset, iov.byteLength), () => this.#write(offset, iov));
  }

  get compression(): Compression | undefined {
    return this.readOnly ? undefined : this.#top.compression;
  }

  async writeCompressed(offset: number, units: readonly EncodedUnit[]): Promise<void> {
    const unit = this.#top.compression?.unit ?? 1;
    const length = Math.min(units.length * unit, alignUp(this.size, unit) - offset);
    const bytes = Math.min(length, this.size - offset); // the last unit may reach behind the end
    this.#checkWrite(offset, bytes);
    if (offset % unit !== 0 || length < units.length * unit) {
      throw new LunetteError('INVALID', 'compressed units lie side by side, from one on', { path: this.path, offset });
    }
    if (length === 0) return;
    const writer = { write: (at: number, iov: IoVec) => this.#write(at, iov), flush: () => this.flush() };
    const range = { ...roundedRange(offset, length, this.limits.allocationUnit), bytes };
    await this.#change(range, () => writeUnits(this.#top, offset, units, writer));
  }

  async cloneFrom(offset: number, length: number, source: Storage, sourceOffset: number): Promise<boolean> {
    const from = { source, sourceOffset, leaveOut: 0 };
    return length === (await this.#transfer(offset, length, () => cloneRange(this.#top, offset, length, from)));
  }

  copyFrom(offset: number, length: number, from: CopySource): Promise<number> {
    return this.#transfer(offset, length, () => copyRange(this.#top, offset, length, from));
  }

  async #transfer(offset: number, length: number, move: () => Promise<number>): Promise<number> {
    this.#checkWrite(offset, length);
    let done = 0;
    await this.#change(roundedRange(offset, length, this.limits.allocationUnit), async () => {
      done = await move();
      this.mappingChanges++;
    });
    return done;
  }

  async writeZeroes(offset: number, length: number, unmap: boolean): Promise<void> {
    this.#checkWrite(offset, length);
    if (length === 0) return;
    await this.#change(
      roundedRange(offset, length, Math.max(this.limits.zeroUnit, this.limits.allocationUnit)),
      async () => {
        const end = offset + length;
        const unit = this.limits.zeroUnit;
        const start = unit === 0 ? end : Math.min(end, alignUp(offset, unit));
        const stop = unit === 0 || end === this.size ? end : Math.max(start, alignDown(end, unit));
        if (offset < start) await this.#writeZeros(offset, start - offset);
        // Parts of allocation units apart from whole ones: a format may have to refuse them.
        const whole = Math.min(stop, alignUp(start, this.limits.allocationUnit));
        const rest = stop === this.size ? stop : Math.max(whole, alignDown(stop, this.limits.allocationUnit));
        await this.#zero(start, whole - start, unmap);
        await this.#zero(whole, rest - whole, unmap);
        await this.#zero(rest, stop - rest, unmap);
        if (stop < end) await this.#writeZeros(stop, end - stop);
      },
    );
  }

  async #zero(offset: number, length: number, unmap: boolean): Promise<void> {
    if (length > 0 && !(await this.#top.zero(offset, length, unmap))) await this.#writeZeros(offset, length);
    this.mappingChanges++;
  }

  async discard(offset: number, length: number): Promise<boolean> {
    this.#checkWrite(offset, length);
    const unit = this.limits.discardUnit;
    if (unit === 0) return false;
    const start = alignUp(offset, unit);
    const end = offset + length === this.size ? this.size : alignDown(offset + length, unit);
    if (start >= end) return true;
    let done = false;
    await this.#change(roundedRange(start, end - start, Math.max(unit, this.limits.allocationUnit)), async () => {
      done = await this.#top.release(start, end - start);
      this.mappingChanges++;
    });
    return done;
  }

  async readModifyWrite(offset: number, length: number, change: (bytes: Uint8Array) => boolean): Promise<void> {
    this.#checkWrite(offset, length);
    if (length === 0) return;
    await this.#change(this.#rangeOfWrite(offset, length), async () => {
      const bytes = new Uint8Array(length);
      const iov = IoVec.of(bytes);
      await this.#reader.read(0, offset, iov);
      if (change(bytes)) await this.#write(offset, iov);
    });
  }

  /** Callers that come while a flush runs share the next one: theirs must begin after their writes. */
  flush(): Promise<void> {
    if (this.readOnly) return Promise.resolve();
    return this.#failed === undefined ? this.#flushes.ask(true) : Promise.reject(this.#failed);
  }

  async publish(): Promise<void> {
    const top = this.#top;
    if (top.publish === undefined) return this.flush();
    if (this.readOnly) return;
    if (this.#failed !== undefined) throw this.#failed;
    await this.#writeBack(async () => top.publish?.());
  }

  async #writeBack(act: () => Promise<void>): Promise<void> {
    this.#lifetime.enter();
    try {
      await act();
    } catch (error) {
      // A full disk can be mended and the write tried again; after anything else nobody knows what the disk holds.
      if (!(error instanceof LunetteError) || error.code !== 'NO_SPACE') {
        this.#failed = new LunetteError(
          'IO',
          'writing back failed, the image takes no more writes until it is opened again',
          { path: this.path, cause: error },
        );
      }
      throw error;
    } finally {
      this.#lifetime.leave();
    }
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    this.#checkRange(offset, length);
    this.#lifetime.enter();
    try {
      out.begin(offset);
      if (length > 0) await this.#reader.map(0, offset, length, out);
      return out.count;
    } finally {
      this.#lifetime.leave();
    }
  }

  async resize(size: number, options: Partial<ResizeOptions> = {}): Promise<void> {
    if (!Number.isSafeInteger(size) || size < 0) throw new LunetteError('INVALID', `${size} is no size`);
    const { shrink = false, preallocation = 'off' } = options;
    const shownTo = Math.max(0, ...this.layers.slice(1).map((layer) => layer.size));
    await this.restructure(async (top) => {
      const before = top.size;
      // What a cut cluster holds behind the disk's end would show when it grows.
      if (size > before && (await this.#zeroTail(before, size))) await this.flush();
      await top.resize(size, { shrink, preallocation, shownTo });
      // It has its new size, whatever comes of this; growing zeroes the tail again.
      if (size < before && !this.#top.cutsEnd) await this.#zeroTail(size, before).catch(() => false);
    });
  }

  /** Runs a change of the top layer as a whole (snapshots.ts, resize): no write sees half of it. */
  async restructure<T>(act: (top: Layer) => Promise<T>): Promise<T> {
    if (this.readOnly) throw this.#readOnlyError(0);
    const before = this.size;
    try {
      return await this.exclusive(async () => {
        if (this.#failed !== undefined) throw this.#failed;
        await this.#begin();
        return act(this.#top);
      });
    } finally {
      if (this.size !== before) for (const listener of this.#resizeListeners) listener(this.size);
    }
  }

  /** Zeroes from the disk's end `from` to the end of its unit in the file, at most to `end`. @returns false when zeros are there */
  async #zeroTail(from: number, end: number): Promise<boolean> {
    const to = Math.min(end, alignUp(from, this.#top.endUnit ?? 1));
    if (from >= to) return false;
    const extents = new ExtentBuffer();
    await this.#top.map(from, to - from, extents);
    const zero = (kind: number): boolean => kind === ZERO || (kind === ABSENT && this.layers.length === 1);
    if (extents.end >= to && extents.kinds.subarray(0, extents.count).every(zero)) return false;
    const list = new IoVec();
    appendZeros(list, to - from);
    await this.#write(from, list);
    return true;
  }

  /** Runs something while no write is in flight; writes that come meanwhile wait. */
  async exclusive<T>(act: () => Promise<T>): Promise<T> {
    this.#lifetime.enter();
    try {
      const hold = await this.#locks.acquire(0, Number.POSITIVE_INFINITY);
      try {
        return await act();
      } finally {
        this.#locks.release(hold);
      }
    } finally {
      this.#lifetime.leave();
    }
  }

  onResize(listener: (size: number) => void): () => void {
    this.#resizeListeners.add(listener);
    return () => this.#resizeListeners.delete(listener);
  }

  close(): Promise<void> {
    return this.#lifetime.close(async () => {
      try {
        await this.#flushes.running?.catch(() => undefined);
        if (!this.readOnly && this.#failed === undefined) await this.#top.flush();
      } finally {
        await this.#release();
      }
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /**
   * Runs a change of a range: in its turn, counted, refused after a failed flush, and only once the format is ready to be written.
   * The range is asked for in the tick of the call, so that calls take effect in their order.
   */
  async #change(range: WriteRange, act: () => Promise<void>): Promise<void> {
    this.#lifetime.enter();
    try {
      const hold = await this.#locks.acquire(range.start, range.length, range.moves);
      try {
        this.#checkWrite(range.offset, range.bytes); // while it waited the disk may have shrunk, or a flush failed
        if (!this.#begun) await this.#begin();
        const recorder = this.#recorder;
        if (recorder !== undefined && !recorder.tryRecord(range.offset, range.bytes)) {
          await recorder.record(range.offset, range.bytes);
        }
        await act();
      } finally {
        this.#locks.release(hold);
      }
    } finally {
      this.#lifetime.leave();
    }
  }

  #begin(): Promise<void> {
    this.#beginning ??= this.#top.beginWrite().then(
      () => {
        this.#begun = true;
      },
      (error: unknown) => {
        this.#beginning = undefined; // to be tried again by the next write
        throw error;
      },
    );
    return this.#beginning;
  }

  /**
   * What a write must hold: exactly its range when all of it can be written in place, else the allocation units it touches.
   * What is in place now stays there until our turn: whoever moves it later waits for us, and nobody before us does.
   */
  #rangeOfWrite(offset: number, length: number): WriteRange {
    const rounded = roundedRange(offset, length, this.limits.allocationUnit);
    if (this.#locks.overlapsMove(rounded.start, rounded.length) || !this.#inPlace(offset, length)) return rounded;
    return { offset, bytes: length, start: offset, length, moves: false };
  }

  #inPlace(offset: number, length: number): boolean {
    const extents = this.#extents;
    if (this.#top.tryMap(offset, length, extents) < 0 || extents.end < offset + length) return false;
    for (let i = 0; i < extents.count; i++) {
      if (!isWritable(extents, i)) return false;
    }
    return true;
  }

  /** Writes a range that is locked. */
  async #write(offset: number, iov: IoVec): Promise<void> {
    const top = this.#top;
    const end = offset + iov.byteLength;
    const extents = this.#freeExtents.pop() ?? new ExtentBuffer();
    const pending: Promise<void>[] = [];
    try {
      for (let at = offset; at < end; ) {
        if (top.tryMap(at, end - at, extents) < 0) await this.#mapForWrite(at, end - at, extents);
        let i = 0;
        for (; i < extents.count && isWritable(extents, i); i++) {
          const start = extents.offsets[i] as number;
          const part = iov.slice(start - offset, extents.lengths[i] as number);
          const storage = extents.storages[i] as NonNullable<(typeof extents.storages)[0]>;
          const storageOffset = extents.storageOffsets[i] as number;
          if (!storage.tryWritev(storageOffset, part)) begin(pending, storage.writev(storageOffset, part));
        }
        if (i === extents.count) {
          at = extents.end;
          continue;
        }
        // A run that has no place of its own yet. The mapping behind it is looked up again: reserving may have moved it.
        const start = extents.offsets[i] as number;
        while (i < extents.count && !isWritable(extents, i)) i++;
        const stop = i < extents.count ? (extents.offsets[i] as number) : extents.end;
        at = await this.#allocate(start, stop, offset, iov);
      }
    } finally {
      this.#freeExtents.push(extents);
      await settle(pending);
    }
  }

  /** Mapping for a write: what a read could not follow is one request's failure, what a write cannot follow is the image's. */
  async #mapForWrite(offset: number, length: number, extents: ExtentBuffer): Promise<void> {
    try {
      await this.#top.map(offset, length, extents);
    } catch (error) {
      if (error instanceof ImageError && error.code === 'CORRUPT') await this.#top.condemn?.(error);
      throw error;
    }
  }

  /**
   * Writes the start of [start, stop) into new space. When the disk is full, once more after a flush: what was discarded gives its
   * space back only when the metadata that let go of it is durable.
   *
   * @returns the guest offset up to which it got
   */
  async #allocate(start: number, stop: number, offset: number, iov: IoVec): Promise<number> {
    for (let retried = false; ; retried = true) {
      const reservation = await this.#top.reserve(start, stop - start);
      const end = Math.min(reservation.end, stop);
      try {
        await settle(fillRegions(this.#reader, reservation, { start, end }, { offset, iov }));
      } catch (error) {
        await reservation.abort();
        if (retried || codeOf(error) !== 'NO_SPACE') throw error;
        await this.flush();
        continue;
      }
      await reservation.commit();
      this.mappingChanges++;
      return end;
    }
  }

  /** Writes zeros over a locked range, leaving alone what is known to read as zeros. */
  async #writeZeros(offset: number, length: number): Promise<void> {
    const list = new IoVec();
    for (let at = offset; at < offset + length; ) {
      const take = Math.min(ZERO_CHUNK, offset + length - at);
      if (!this.#reader.readsZero(0, at, take)) {
        list.clear();
        appendZeros(list, take);
        await this.#write(at, list);
      }
      at += take;
    }
  }

  #checkRange(offset: number, length: number): void {
    if (offset < 0 || length < 0 || offset + length > this.#top.size || !Number.isSafeInteger(offset)) {
      throw new LunetteError(
        'OUT_OF_RANGE',
        `${length} bytes at ${offset} are outside the image of ${this.#top.size} bytes`,
        { path: this.path },
      );
    }
  }

  #checkWrite(offset: number, length: number): void {
    if (this.readOnly) throw this.#readOnlyError(offset);
    if (this.#failed !== undefined) throw this.#failed;
    this.#checkRange(offset, length);
  }

  #readOnlyError(offset: number): LunetteError {
    return new LunetteError('READ_ONLY', 'the image is open read-only', { path: this.path, offset });
  }
}
