/** What dirty bitmaps in a file may say after a power cut: those that claim to be valid hold every write since they were enabled. */

import type { FileBitmap, Qcow2File } from './qcow2-file.ts';

const NEVER = Number.POSITIVE_INFINITY;

/** A range of the disk that must be dirty from some step on. */
interface Mark {
  readonly offset: number;
  readonly length: number;
  readonly issuedAt: number;
  /** Infinity while it may or may not have happened. */
  requiredFrom: number;
  /** A first write of a session: what the disk shows as long as it has not begun. */
  readonly before?: Uint8Array | undefined;
}

interface ModelBitmap {
  readonly granularity: number;
  enabled: boolean;
  readonly addingAt: number;
  addedAt: number;
  removingAt: number;
  removedAt: number;
  marks: Mark[];
  /** Times at which it was, or may have been, cleared from an offset on. */
  readonly cuts: { readonly from: number; readonly issuedAt: number }[];
}

export class BitmapModel {
  readonly bitmaps = new Map<string, ModelBitmap>();
  readonly #clock: { now: number };

  constructor(clock: { now: number }) {
    this.#clock = clock;
  }

  /** Those that are there for sure. */
  get present(): string[] {
    return [...this.bitmaps]
      .filter(([, { addedAt, removingAt }]) => addedAt < NEVER && removingAt === NEVER)
      .map(([name]) => name);
  }

  /**
   * A write that is about to begin.
   *
   * @param before given for the first ones of a session: bitmaps are marked before any byte is written, but not when the call is made
   */
  write(offset: number, length: number, before?: Uint8Array): void {
    const issuedAt = this.#clock.now++;
    const requiredFrom = before === undefined ? issuedAt : NEVER;
    for (const bitmap of this.bitmaps.values()) {
      if (bitmap.enabled) bitmap.marks.push({ offset, length, issuedAt, requiredFrom, before });
    }
  }

  /** The first writes of a session are over. */
  begun(): void {
    const now = this.#clock.now++;
    for (const { marks } of this.bitmaps.values()) {
      for (const mark of marks) if (mark.before !== undefined && mark.requiredFrom === NEVER) mark.requiredFrom = now;
    }
  }

  async add(name: string, granularity: number, enabled: boolean, done: () => Promise<void>): Promise<void> {
    const bitmap: ModelBitmap = {
      granularity,
      enabled,
      addingAt: this.#clock.now++,
      addedAt: NEVER,
      removingAt: NEVER,
      removedAt: NEVER,
      marks: [],
      cuts: [],
    };
    this.bitmaps.set(name, bitmap);
    await done();
    bitmap.addedAt = this.#clock.now++;
  }

  async remove(name: string, done: () => Promise<void>): Promise<void> {
    const bitmap = this.#get(name);
    bitmap.removingAt = this.#clock.now++;
    bitmap.enabled = false;
    await done();
    bitmap.removedAt = this.#clock.now++;
  }

  async clear(name: string, done: () => Promise<void>): Promise<void> {
    const bitmap = this.#get(name);
    bitmap.cuts.push({ from: 0, issuedAt: this.#clock.now++ });
    await done();
    this.#clock.now++;
  }

  async setEnabled(name: string, enabled: boolean, done: () => Promise<void>): Promise<void> {
    await done();
    this.#get(name).enabled = enabled;
    this.#clock.now++;
  }

  /** @param size of the disk, bytes */
  async merge(name: string, from: string, size: number, done: () => Promise<void>): Promise<void> {
    const issuedAt = this.#clock.now++;
    const source = this.#get(from);
    const marks = this.#required(source, issuedAt).map((mark) => {
      const offset = Math.floor(mark.offset / source.granularity) * source.granularity;
      const end = Math.ceil((mark.offset + mark.length) / source.granularity) * source.granularity;
      return { offset, length: Math.min(size, end) - offset, issuedAt, requiredFrom: NEVER };
    });
    this.#get(name).marks.push(...marks);
    await done();
    const now = this.#clock.now++;
    for (const mark of marks) mark.requiredFrom = now;
  }

  /** The disk is about to become smaller, or has another size. */
  cut(size: number): void {
    const issuedAt = this.#clock.now++;
    for (const bitmap of this.bitmaps.values()) bitmap.cuts.push({ from: size, issuedAt });
  }

  /** What must be dirty at a step, or was never cleared for sure. */
  #required(bitmap: ModelBitmap, at: number): { offset: number; length: number }[] {
    const result: { offset: number; length: number }[] = [];
    for (const { offset, length, issuedAt, requiredFrom } of bitmap.marks) {
      if (!(requiredFrom < at)) continue;
      let end = offset + length;
      for (const cut of bitmap.cuts) {
        // A granule that the new end lies in still tells of what was written to it, wherever that was.
        const kept = Math.ceil(cut.from / bitmap.granularity) * bitmap.granularity;
        if (cut.issuedAt < at && cut.issuedAt > issuedAt) end = Math.min(end, kept);
      }
      if (end > offset) result.push({ offset, length: end - offset });
    }
    return result;
  }

  /**
   * Looks at the bitmaps of a file as it may be at a step.
   *
   * @param found what the disk shows
   * @param clean the image was closed: all are valid, and say nothing more than they must
   * @returns what is wrong
   */
  judge(file: Qcow2File, at: number, found: Uint8Array, clean = false): string[] {
    const wrong: string[] = [];
    const listed = new Map(file.bitmaps().map((bitmap) => [bitmap.name, bitmap]));
    for (const [name, bitmap] of this.bitmaps) {
      const here = listed.get(name);
      if (bitmap.addedAt < at && bitmap.removingAt >= at && here === undefined) wrong.push(`${name} is gone`);
      if ((bitmap.addingAt >= at || bitmap.removedAt < at) && here !== undefined) wrong.push(`${name} is there`);
      if (here === undefined) continue;
      if (clean && here.inUse) wrong.push(`${name} is in use`);
      if (!here.inUse) wrong.push(...this.#judgeBits(file, here, bitmap, at, found, clean));
    }
    return wrong;
  }

  #judgeBits(
    file: Qcow2File,
    here: FileBitmap,
    bitmap: ModelBitmap,
    at: number,
    found: Uint8Array,
    clean: boolean,
  ): string[] {
    const wrong: string[] = [];
    const { name, granularity } = here;
    const size = found.length;
    const required = new Set<number>();
    for (const { offset, length } of this.#required(bitmap, at)) {
      const end = Math.min(size, offset + length);
      for (let granule = Math.floor(offset / granularity); granule * granularity < end; granule++)
        required.add(granule);
    }
    for (const { offset, before, issuedAt, requiredFrom } of bitmap.marks) {
      if (before === undefined || requiredFrom < at || issuedAt >= at) continue;
      for (let i = 0; i < before.length && offset + i < size; i++) {
        if (found[offset + i] !== before[i]) required.add(Math.floor((offset + i) / granularity));
      }
    }
    for (const granule of required) {
      if (!file.isDirty(here, granule)) wrong.push(`${name} misses a write at ${granule * granularity}`);
    }
    if (!clean) return wrong;
    for (let granule = 0; granule * granularity < size; granule++) {
      if (!required.has(granule) && file.isDirty(here, granule)) {
        wrong.push(`${name} says that ${granule * granularity} was written`);
      }
    }
    return wrong;
  }

  #get(name: string): ModelBitmap {
    return this.bitmaps.get(name) as ModelBitmap;
  }
}
