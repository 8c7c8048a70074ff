import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignDown, alignUp, GiB, KiB, MiB } from '../core/units.ts';
import type { BitmapInfo, BitmapReader, BitmapStore, ChangeRecorder, NewBitmapOptions } from '../image/bitmaps.ts';
import { BitmapTable, dirtyRuns } from './bitmap-content.ts';
import type { OwnersHost } from './bitmap-owners.ts';
import { describe, findBitmap, isUsable, refuseUnusable } from './bitmap-reader.ts';
import { type BitmapDraft, BitmapWriter, directoryExtension, type NewDirectory } from './bitmap-write.ts';
import {
  BITMAP_AUTO,
  BITMAP_ENTRY,
  BITMAP_IN_USE,
  bitmapTableSize,
  changeBitmapEntry,
  encodeBitmapEntry,
  MAX_BITMAP_BYTES,
  MAX_BITMAP_NAME,
  parseBitmapDirectory,
  type Qcow2Bitmap,
  readBitmapDirectory,
} from './bitmaps.ts';
import { DirtyBits } from './dirty-bits.ts';
import { EXTENSION, MAX_BITMAP_DIRECTORY, MAX_BITMAPS } from './extensions.ts';
import { AUTOCLEAR } from './features.ts';
import { HEADER_V3 } from './header.ts';
import { type HeaderHost, rewriteHeader, withExtension } from './header-rewrite.ts';
import { Mutex } from './mutex.ts';
import { readBytes } from './refcount.ts';
import type { SnapshotEditorHost } from './snapshot-editor.ts';

/** Bits in memory that are not in the file: above this they are stored before more are set. */
const MAX_HELD_BYTES = 32 * MiB;
/** Each write is noted in every bitmap that is enabled. */
const MAX_RECORDING = 1024;
const MAX_RECORDING_BYTES = 4 * GiB;
const MERGE_RUNS = 4096;
const SECTOR = 512;

export interface BitmapEditorHost extends SnapshotEditorHost, HeaderHost, OwnersHost {
  warn(message: string): void;
}

/** A bitmap of an image that is open for writing. */
interface Live {
  bitmap: Qcow2Bitmap;
  /** As of when the image was opened, or later: in_use of ours does not count. */
  readonly usable: boolean;
  /** Set since it was stored last. */
  bits: DirtyBits;
}

/**
 * The persistent bitmaps of an image that is open for writing. Enabled ones are marked in_use, durably, before the first write, and note
 * every change in memory; closing stores them. Every other change makes new tables and a new directory beside the old ones, and one
 * write of the header leads to them.
 */
export class BitmapEditor implements BitmapStore, ChangeRecorder {
  readonly #host: BitmapEditorHost;
  readonly #writer: BitmapWriter;
  readonly #mutex = new Mutex();
  #size: number;
  #lives: Live[] = [];
  /** Enabled and usable. */
  #recording: Live[] = [];
  /** Bytes of bits in memory, about. */
  #held = 0;
  #directory: { readonly offset: number; readonly length: number } | undefined;
  /** The autoclear bit says that the directory is valid. */
  #vouched = false;
  /** The directory cannot be used: the first write declares all bitmaps invalid, as a program without support for them would. */
  #broken = false;

  constructor(host: BitmapEditorHost) {
    this.#host = host;
    this.#writer = new BitmapWriter(host);
    this.#size = host.header.size;
  }

  /** Reads the directory. @throws {ImageError} UNSUPPORTED for what only a newer program may write to */
  async load(): Promise<void> {
    const { header, storage, clusterSize } = this.#host;
    const reference = header.extensions.bitmaps;
    if (reference === undefined || (header.autoclearFeatures.low & AUTOCLEAR.BITMAPS) === 0) return;
    this.#vouched = true;
    try {
      const bitmaps = await readBitmapDirectory(storage, reference, clusterSize);
      this.#claim(reference.directoryOffset, reference.directorySize);
      for (const { tableOffset, tableSize } of bitmaps) this.#claim(tableOffset, tableSize * 8);
      this.#lives = bitmaps.map((bitmap) => live(bitmap, isUsable(bitmap, this.#size, clusterSize)));
      this.#directory = { offset: reference.directoryOffset, length: reference.directorySize };
    } catch (error) {
      if (!(error instanceof ImageError) || (error.code !== 'CORRUPT' && error.code !== 'TRUNCATED')) throw error;
      this.#broken = true;
      this.#host.warn(`${error.message}: once the image is written its bitmaps are lost`);
      return;
    }
    for (const { bitmap } of this.#lives) {
      if (bitmap.unknown !== undefined) refuseUnusable(bitmap, this.#size, clusterSize, storage.path);
    }
    this.#renewRecording();
  }

  /** Before the first write of a session: from now on the file says of enabled bitmaps that they are in use. Not synced. @returns whether the autoclear bit stays */
  async begin(): Promise<boolean> {
    if (this.#broken) {
      this.#vouched = false;
      return false;
    }
    await this.#mutex.run(() => this.#setFlags(this.#recording, BITMAP_IN_USE, 0));
    return this.#vouched;
  }

  /** Stores what was noted, and says that bitmaps are not in use any more. What cannot be stored stays marked. */
  async end(): Promise<void> {
    await this.#mutex.run(async () => {
      const used = this.#recording.filter(({ bitmap }) => (bitmap.flagBits & BITMAP_IN_USE) !== 0);
      if (used.length === 0) return;
      try {
        if (used.every(({ bits }) => bits.empty)) {
          await this.#setFlags(used, 0, BITMAP_IN_USE);
          await this.#host.sync();
        } else {
          await this.#store(used, (flags) => flags & ~BITMAP_IN_USE);
        }
      } catch (error) {
        if (!(error instanceof LunetteError)) throw error;
        const names = used.map(({ bitmap }) => bitmap.name).join(', ');
        this.#host.warn(`bitmaps could not be stored and are inconsistent now (${names}): ${error.message}`);
      }
    });
  }

  tryRecord(offset: number, length: number): boolean {
    const recording = this.#recording;
    if (recording.length === 0) return true;
    if (this.#held > MAX_HELD_BYTES) return false;
    let held = 0;
    const inside = Math.min(length, this.#size - offset);
    for (let i = 0; i < recording.length; i++) {
      const { bits } = recording[i] as Live;
      bits.mark(offset, inside);
      held += bits.bytes;
    }
    this.#held = held;
    return true;
  }

  async record(offset: number, length: number): Promise<void> {
    while (!this.tryRecord(offset, length)) {
      await this.#mutex.run(async () => {
        if (this.#held > MAX_HELD_BYTES) await this.#store(this.#recording, (flags) => flags);
      });
    }
  }

  async list(): Promise<readonly BitmapInfo[]> {
    return this.#lives.map(({ bitmap, usable }) => ({
      ...describe(bitmap, this.#size, this.#host.clusterSize),
      inconsistent: !usable,
    }));
  }

  async open(name: string): Promise<BitmapReader> {
    const found = this.#usable(name);
    const { clusterSize, storage } = this.#host;
    const { granularity } = found.bitmap;
    let table: BitmapTable | undefined;
    const runs = (offset: number, length: number, most: number) =>
      this.#mutex.run(async () => {
        if (!this.#lives.includes(found)) findBitmap([], name, storage.path);
        if (table?.bitmap !== found.bitmap) {
          table = await BitmapTable.load(storage, found.bitmap, clusterSize);
        }
        return dirtyRuns(table as BitmapTable, clusterSize, [found.bits], { offset, length, most });
      });
    const size = () => this.#size;
    return {
      name,
      granularity,
      get size() {
        return size();
      },
      runs,
    };
  }

  async add(name: string, options: NewBitmapOptions): Promise<void> {
    const { clusterSize, storage, header } = this.#host;
    const { path } = storage;
    const refuse = (code: 'EXISTS' | 'TOO_LARGE' | 'UNSUPPORTED', why: string): never => {
      throw new ImageError(code, why, { path });
    };
    const granularity = options.granularity ?? Math.min(64 * KiB, Math.max(4 * KiB, clusterSize));
    const bits = Math.log2(granularity);
    if (header.geometry.version < 3) refuse('UNSUPPORTED', 'version 2 (compat 0.10) has no dirty bitmaps');
    if (!Number.isInteger(bits) || bits < 9 || bits > 31) {
      const why = `the granularity of a bitmap is a power of two from 512 bytes to 2 GiB, not ${granularity}`;
      throw new LunetteError('INVALID', why, { path });
    }
    const bytes = new TextEncoder().encode(name);
    if (bytes.length === 0 || bytes.length > MAX_BITMAP_NAME || bytes.includes(0)) {
      throw new LunetteError('INVALID', `the name of a bitmap has 1 to ${MAX_BITMAP_NAME} bytes`, { path });
    }
    if (this.#lives.some(({ bitmap }) => bitmap.name === name)) {
      refuse('EXISTS', `there is a bitmap ${JSON.stringify(name)} already`);
    }
    const tableSize = Math.max(1, bitmapTableSize(this.#size, granularity, clusterSize));
    if (tableSize * clusterSize > MAX_BITMAP_BYTES) {
      refuse(
        'TOO_LARGE',
        `a bitmap of ${granularity} bytes a bit would be larger than 512 MiB: use a larger granularity`,
      );
    }
    const entry = encodeBitmapEntry(bytes, granularity);
    const length = this.#lives.reduce((sum, { bitmap }) => sum + bitmap.entry.length, entry.length);
    if (this.#lives.length >= MAX_BITMAPS || length > MAX_BITMAP_DIRECTORY) {
      refuse('TOO_LARGE', 'the image has as many bitmaps as its directory can hold');
    }
    const enabled = options.enabled ?? true;
    if (enabled) this.#admitRecording(tableSize * clusterSize);
    await this.#mutex.run(() =>
      this.#commit([
        ...this.#same(),
        { entry, flags: enabled ? BITMAP_AUTO | BITMAP_IN_USE : 0, content: 'new', tableSize, granularity },
      ]),
    );
  }

  async remove(name: string): Promise<void> {
    const found = this.#find(name);
    await this.#mutex.run(() => this.#commit(this.#same().filter((draft) => draft.of !== found.bitmap)));
  }

  async clear(name: string): Promise<void> {
    const found = this.#usable(name);
    await this.#mutex.run(async () => {
      await this.#commit(this.#same(found, { content: 'clear' }));
      const now = this.#find(name);
      now.bits = new DirtyBits(now.bitmap.granularity);
    });
  }

  async setEnabled(name: string, enabled: boolean): Promise<void> {
    const found = this.#usable(name);
    if (((found.bitmap.flagBits & BITMAP_AUTO) !== 0) === enabled) return;
    if (enabled) this.#admitRecording(found.bitmap.tableSize * this.#host.clusterSize);
    await this.#mutex.run(async () => {
      if (!enabled) return this.#store([found], (flags) => flags & ~(BITMAP_AUTO | BITMAP_IN_USE));
      await this.#setFlags([found], BITMAP_AUTO | BITMAP_IN_USE, 0);
      await this.#host.sync();
      this.#renewRecording();
    });
  }

  async merge(name: string, source: BitmapReader): Promise<void> {
    const found = this.#usable(name);
    const bits = new DirtyBits(found.bitmap.granularity);
    for (let at = 0; at < source.size; ) {
      const runs = await source.runs(at, source.size - at, MERGE_RUNS);
      for (let i = 0; i < runs.length; i += 2) {
        if (runs[i + 1] === 1) bits.mark(at, runs[i] as number);
        at += runs[i] as number;
      }
    }
    await this.#mutex.run(() => this.#store([found], (flags) => flags, bits));
  }

  /** Notes that the whole disk changes. */
  async recordAll(): Promise<void> {
    if (this.#size > 0) await this.record(0, this.#size);
  }

  /** @throws {ImageError} CORRUPT when the disk cannot have another size because of a bitmap */
  admitResize(size: number): void {
    const { clusterSize, storage } = this.#host;
    const sizes = this.#recording.map(
      ({ bitmap }) => Math.max(1, bitmapTableSize(size, bitmap.granularity, clusterSize)) * clusterSize,
    );
    // Now, because once the header is switched it is too late.
    if (sizes.reduce((sum, bytes) => sum + bytes, 0) > MAX_RECORDING_BYTES) throw this.#tooLarge();
    for (const { bitmap, usable } of this.#lives) {
      if (!usable) refuseUnusable({ ...bitmap, flagBits: BITMAP_IN_USE }, this.#size, clusterSize, storage.path);
      if (bitmapTableSize(size, bitmap.granularity, clusterSize) * clusterSize <= MAX_BITMAP_BYTES) continue;
      throw new ImageError('TOO_LARGE', `bitmap ${JSON.stringify(bitmap.name)} would be larger than 512 MiB`, {
        path: storage.path,
      });
    }
  }

  /** Changes the header, and bitmaps with it: the disk has another size. */
  async resize(size: number, fields: (view: DataView) => void): Promise<void> {
    if (this.#lives.length === 0 || size === this.#size) {
      await this.#host.switchHeader(fields);
      this.#size = size;
      return;
    }
    this.admitResize(size);
    await this.#mutex.run(async () => {
      const { clusterSize } = this.#host;
      const drafts = this.#same().map((draft): BitmapDraft => {
        const tableSize = Math.max(1, bitmapTableSize(size, draft.granularity, clusterSize));
        return { ...draft, content: 'resize', tableSize, keep: Math.min(size, this.#size) };
      });
      await this.#commit(drafts, fields);
      for (const { bits } of this.#lives) bits.truncate(size);
      this.#size = size;
    });
  }

  #find(name: string): Live {
    const bitmap = findBitmap(
      this.#lives.map((each) => each.bitmap),
      name,
      this.#host.storage.path,
    );
    return this.#lives.find((each) => each.bitmap === bitmap) as Live;
  }

  #usable(name: string): Live {
    const found = this.#find(name);
    const { storage, clusterSize } = this.#host;
    if (!found.usable) {
      refuseUnusable({ ...found.bitmap, flagBits: BITMAP_IN_USE }, this.#size, clusterSize, storage.path);
    }
    return found;
  }

  /** Tables that lie on other metadata are none. */
  #claim(offset: number, length: number): void {
    const { metadata } = this.#host.state.parts;
    const { clusterSize } = this.#host;
    if (offset + length > alignUp(this.#host.storage.size, clusterSize)) {
      throw new ImageError('CORRUPT', 'a bitmap table is outside the file', { field: 'bitmaps', offset });
    }
    for (let cluster = offset / clusterSize; cluster * clusterSize < offset + length; cluster++) {
      if (metadata.has(cluster)) {
        throw new ImageError('CORRUPT', 'a bitmap table lies on other metadata', { field: 'bitmaps', offset });
      }
    }
    metadata.add(offset, length);
  }

  #admitRecording(more: number): void {
    const { clusterSize } = this.#host;
    const bytes = this.#recording.reduce((sum, { bitmap }) => sum + bitmap.tableSize * clusterSize, more);
    if (bytes > MAX_RECORDING_BYTES || this.#recording.length >= MAX_RECORDING) throw this.#tooLarge();
  }

  #tooLarge(): ImageError {
    return new ImageError(
      'TOO_LARGE',
      `the image has more or larger enabled bitmaps than this program notes writes in`,
      {
        path: this.#host.storage.path,
        help: 'Disable or remove some of them.',
      },
    );
  }

  #renewRecording(): void {
    this.#recording = [];
    for (const each of this.#lives) {
      if (!each.usable || (each.bitmap.flagBits & BITMAP_AUTO) === 0) continue;
      this.#admitRecording(each.bitmap.tableSize * this.#host.clusterSize);
      this.#recording.push(each);
    }
    this.#held = 0;
  }

  /** Drafts that change nothing, but for one of them. */
  #same(found?: Live, change: Partial<BitmapDraft> = {}): BitmapDraft[] {
    return this.#lives.map((each) => {
      const { bitmap } = each;
      const { entry, flagBits: flags, tableSize, granularity } = bitmap;
      const draft: BitmapDraft = { of: bitmap, entry, flags, content: 'same', tableSize, granularity };
      return each === found ? { ...draft, ...change } : draft;
    });
  }

  /**
   * Stores bits that were noted, with other flags.
   *
   * @param more bits to store with them, of one bitmap: forgotten when that fails, as what was noted is not
   */
  async #store(lives: readonly Live[], flags: (flags: number) => number, more?: DirtyBits): Promise<void> {
    const noted = lives.map(({ bits }) => bits);
    const storing = more === undefined ? noted : noted.map((bits) => unionOf(bits, more));
    for (const each of lives) each.bits = new DirtyBits(each.bitmap.granularity);
    try {
      await this.#commit(
        this.#same().map((draft): BitmapDraft => {
          const bits = storing[lives.findIndex(({ bitmap }) => bitmap === draft.of)];
          if (bits === undefined) return draft;
          return { ...draft, flags: flags(draft.flags), content: bits.empty ? 'same' : 'add', bits };
        }),
      );
    } catch (error) {
      lives.forEach((each, i) => {
        each.bits.add(noted[i] as DirtyBits);
      });
      throw error;
    }
  }

  /** Makes the file hold these bitmaps, all at once. */
  async #commit(drafts: readonly BitmapDraft[], fields?: (view: DataView) => void): Promise<void> {
    this.#host.state.check();
    const dropped = this.#lives.map(({ bitmap }) => bitmap).filter((bitmap) => !drafts.some(({ of }) => of === bitmap));
    const next = await this.#writer.write(drafts, dropped, this.#directory);
    try {
      await this.#host.flush();
      await this.#switch(next, fields);
    } catch (error) {
      await this.#writer.undo(next);
      throw error;
    }
    for (const { offset, length } of next.dropped) this.#writer.letGo(offset, length);
    this.#directory = next.bytes.length === 0 ? undefined : { offset: next.offset, length: next.bytes.length };
    const place = { directoryOffset: next.offset, count: drafts.length, clusterSize: this.#host.clusterSize };
    const known = new Map(this.#lives.map((each) => [each.bitmap, each]));
    this.#lives = parseBitmapDirectory(next.bytes, place).map((bitmap, i) => {
      const { of } = drafts[i] as BitmapDraft;
      const before = of === undefined ? undefined : known.get(of);
      if (before === undefined) return live(bitmap, true);
      before.bitmap = bitmap;
      return before;
    });
    this.#renewRecording();
  }

  /** One write of the header: from now on the file has the new directory. */
  async #switch(next: NewDirectory, fields: ((view: DataView) => void) | undefined): Promise<void> {
    const vouch = next.bytes.length > 0;
    await rewriteHeader(this.#host, {
      fields:
        vouch === this.#vouched && fields === undefined
          ? undefined
          : (view) => {
              fields?.(view);
              const { high, low } = HEADER_V3.fields.autoclearFeatures.read(view, 88, false);
              const bits = vouch ? low | AUTOCLEAR.BITMAPS : low & ~AUTOCLEAR.BITMAPS;
              HEADER_V3.write(view, { autoclearFeatures: { high, low: bits >>> 0 } });
            },
      extensions: (list) => withExtension(list, EXTENSION.BITMAPS, directoryExtension(next)),
    });
    this.#vouched = vouch;
  }

  /** Changes flags where they are: a sector holds them whole. Not synced. */
  async #setFlags(lives: readonly Live[], set: number, clear: number): Promise<void> {
    const { storage } = this.#host;
    let at = this.#directory?.offset ?? 0;
    for (const each of this.#lives) {
      const { bitmap } = each;
      const flags = (bitmap.flagBits | set) & ~clear;
      if (lives.includes(each) && flags !== bitmap.flagBits) {
        const field = at + BITMAP_ENTRY.fields.flags.at;
        const sector = alignDown(field, SECTOR);
        const bytes = await readBytes(storage, sector, Math.min(SECTOR, storage.size - sector));
        new DataView(bytes.buffer).setUint32(field - sector, flags);
        await storage.writev(sector, IoVec.of(bytes));
        const { tableOffset, tableSize } = bitmap;
        each.bitmap = {
          ...bitmap,
          flagBits: flags,
          entry: changeBitmapEntry(bitmap.entry, { tableOffset, tableSize, flags }),
        };
      }
      at += bitmap.entry.length;
    }
  }
}

function unionOf(a: DirtyBits, b: DirtyBits): DirtyBits {
  const result = new DirtyBits(a.granularity);
  result.add(a);
  result.add(b);
  return result;
}

function live(bitmap: Qcow2Bitmap, usable: boolean): Live {
  return { bitmap, usable, bits: new DirtyBits(bitmap.granularity) };
}
