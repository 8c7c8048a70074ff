import { LunetteError } from '../core/errors.ts';
import type { IoVec } from '../core/iov.ts';
import type { FormatDriver } from '../driver.ts';
import { ALLOCATED, DATA, type ExtentBuffer, WRITABLE, ZERO } from '../image/extent.ts';
import {
  type Layer,
  type LayerInfo,
  type LayerLimits,
  plainLimits,
  type Reservation,
  type ResizeOptions,
} from '../image/layer.ts';
import { LeaseBook } from '../image/lease.ts';
import { actualSize } from '../storage/actual-size.ts';
import type { Storage } from '../storage/storage.ts';
import { preallocate } from './creator.ts';

/** Raw disks: the file is the disk. Holes of a sparse file read as zeros and show in the map. */
export const raw: FormatDriver = {
  name: 'raw',
  probe: () => 1,
  async open(storage, options) {
    if (options.snapshot !== undefined) {
      await storage.close();
      throw new LunetteError('NOT_FOUND', `a raw image has no snapshots, so none called ${options.snapshot}`, {
        path: storage.path,
      });
    }
    return new RawLayer(storage, options.readOnly);
  },
};

export class RawLayer implements Layer {
  readonly format = 'raw';
  readonly storage: Storage;
  readonly readOnly: boolean;
  readonly limits: LayerLimits;
  readonly parent = undefined;
  readonly leases = new LeaseBook();
  /** Fixed between resizes: writes never grow a raw disk. */
  #size: number;

  constructor(storage: Storage, readOnly: boolean) {
    this.storage = storage;
    this.readOnly = readOnly || storage.readOnly;
    this.limits = plainLimits(storage.discards);
    this.#size = storage.size;
  }

  get size(): number {
    return this.#size;
  }

  /** Where bytes go to and come from: a hole counts as data here, it needs no allocation of ours. */
  tryMap(offset: number, length: number, out: ExtentBuffer): number {
    out.begin(offset);
    out.append(DATA, length, this.storage, offset, this.readOnly ? 0 : WRITABLE);
    return 1;
  }

  /** As tryMap, with holes told apart. */
  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    out.begin(offset);
    const end = offset + length;
    const writable = this.readOnly ? 0 : WRITABLE;
    while (out.end < end) {
      const at = out.end;
      const data = Math.min(end, await this.storage.nextData(at));
      if (data > at && !out.append(ZERO, data - at, this.storage, at, ALLOCATED)) break;
      if (data === end) break;
      const hole = Math.min(end, await this.storage.nextHole(data));
      // A hole that begins where the data does: somebody punches holes meanwhile. Call it data: it reads right either way.
      if (!out.append(DATA, Math.max(hole - data, Math.min(512, end - data)), this.storage, data, writable)) break;
    }
    return out.count;
  }

  tryReadOpaque(): boolean {
    return false;
  }

  async readOpaque(_extents: ExtentBuffer, _index: number, offset: number, _iov: IoVec): Promise<void> {
    throw this.#bug('an opaque extent', offset);
  }

  async beginWrite(): Promise<void> {}

  async reserve(offset: number): Promise<Reservation> {
    throw this.#bug('a reservation', offset);
  }

  zero(offset: number, length: number, unmap: boolean): Promise<boolean> {
    return this.storage.writeZeroes(offset, length, unmap);
  }

  release(offset: number, length: number): Promise<boolean> {
    // What a device shows after a discard is its own choice; zeroing that may unmap says what will be read.
    if (!this.storage.growsZeroed) return this.storage.writeZeroes(offset, length, true);
    return this.storage.discard(offset, length);
  }

  async resize(size: number, options: ResizeOptions): Promise<void> {
    if (size < this.#size && !options.shrink) {
      throw new LunetteError(
        'INVALID',
        `${size} bytes is less than the ${this.#size} it has: that would cut data off`,
        {
          path: this.storage.path,
          help: 'Say --shrink if that is what you want',
        },
      );
    }
    const before = this.#size;
    if (options.preallocation === 'metadata') {
      throw new LunetteError('INVALID', 'raw disks have no metadata to preallocate: falloc or full', {
        path: this.storage.path,
      });
    }
    await this.storage.resize(size);
    try {
      await preallocate(this.storage, before, size, options.preallocation);
    } catch (error) {
      await this.storage.resize(before).catch(() => undefined);
      throw error;
    }
    this.#size = size;
  }

  flush(): Promise<void> {
    return this.storage.sync();
  }

  close(): Promise<void> {
    return this.storage.close();
  }

  async describe(): Promise<LayerInfo> {
    return { format: 'raw', virtualSize: this.#size, dirty: false, ...(await actualSize(this.storage)) };
  }

  #bug(what: string, offset: number): LunetteError {
    return new LunetteError('INTERNAL', `raw images have no use for ${what}`, { path: this.storage.path, offset });
  }
}
