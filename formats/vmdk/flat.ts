import { ImageError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import { ALLOCATED, DATA, type ExtentBuffer, WRITABLE, ZERO } from '../image/extent.ts';
import type { Reservation } from '../image/layer.ts';
import type { Storage } from '../storage/storage.ts';
import type { ExtentFacts, VmdkExtent } from './extent.ts';

/** What extents without allocation have in common. */
abstract class PlainExtent implements VmdkExtent {
  readonly length: number;
  readonly grain = 1;
  abstract readonly storage: Storage | undefined;
  abstract readonly writable: boolean;
  abstract readonly facts: ExtentFacts;

  constructor(length: number) {
    this.length = length;
  }

  abstract tryMap(offset: number, length: number, out: ExtentBuffer): void;
  abstract map(offset: number, length: number, out: ExtentBuffer): Promise<void>;
  abstract zero(offset: number, length: number, unmap: boolean): Promise<boolean>;
  abstract flush(): Promise<void>;

  tryReadOpaque(): boolean {
    return false;
  }

  async readOpaque(_offset: number, _iov: IoVec): Promise<void> {
    throw new ImageError('INTERNAL', 'an extent without compression has nothing opaque');
  }

  async beginWrite(): Promise<void> {}

  /** Only what may not be written comes here. */
  async reserve(offset: number): Promise<Reservation> {
    throw new ImageError('READ_ONLY', `this part of the disk (${this.facts.type}) cannot be written`, {
      path: this.storage?.path,
      offset,
    });
  }

  async finish(): Promise<void> {}

  release(): void {}
}

/** Bytes of a file as they are. */
export class FlatExtent extends PlainExtent {
  readonly storage: Storage;
  readonly writable: boolean;
  readonly facts: ExtentFacts;
  readonly #offset: number;

  constructor(storage: Storage, options: { offset: number; length: number; writable: boolean; type: string }) {
    super(options.length);
    this.storage = storage;
    this.writable = options.writable;
    this.facts = { type: options.type, compressed: false, dirty: false };
    this.#offset = options.offset;
  }

  tryMap(offset: number, length: number, out: ExtentBuffer): void {
    out.append(DATA, length, this.storage, this.#offset + offset, this.writable ? WRITABLE : 0);
  }

  /** With holes told apart. */
  async map(offset: number, length: number, out: ExtentBuffer): Promise<void> {
    const shift = out.end - offset;
    const end = offset + length;
    for (let at = offset; at < end; at = out.end - shift) {
      const place = this.#offset + at;
      const data = Math.min(end, (await this.storage.nextData(place)) - this.#offset);
      if (data > at && !out.append(ZERO, data - at, this.storage, place, ALLOCATED)) return;
      if (data === end) return;
      const hole = Math.min(end, (await this.storage.nextHole(this.#offset + data)) - this.#offset);
      // A hole that begins where the data does: somebody punches holes meanwhile. Call it data: it reads right either way.
      const size = Math.max(hole - data, Math.min(512, end - data));
      if (!out.append(DATA, size, this.storage, this.#offset + data, this.writable ? WRITABLE : 0)) return;
    }
  }

  async zero(offset: number, length: number, unmap: boolean): Promise<boolean> {
    if (!this.writable) return this.reserve(offset).then(() => false);
    return this.storage.writeZeroes(this.#offset + offset, length, unmap);
  }

  async flush(): Promise<void> {
    if (this.writable) await this.storage.sync();
  }
}

/** Zeros without a file: ZERO extents, and those that may not be accessed. */
export class ZeroExtent extends PlainExtent {
  readonly storage = undefined;
  readonly writable = false;
  readonly facts: ExtentFacts;

  constructor(length: number, type: string) {
    super(length);
    this.facts = { type, compressed: false, dirty: false };
  }

  tryMap(_offset: number, length: number, out: ExtentBuffer): void {
    out.append(ZERO, length);
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<void> {
    this.tryMap(offset, length, out);
  }

  /** Zeros they are. */
  async zero(): Promise<boolean> {
    return true;
  }

  async flush(): Promise<void> {}
}
