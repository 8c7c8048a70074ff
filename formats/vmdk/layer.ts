import { randomBytes } from 'node:crypto';
import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { settle } from '../image/chain-read.ts';
import type { ExtentBuffer } from '../image/extent.ts';
import {
  type Layer,
  type LayerInfo,
  type LayerLimits,
  type ParentReference,
  plainLimits,
  type Reservation,
  type ResizeOptions,
} from '../image/layer.ts';
import type { LeaseBook } from '../image/lease.ts';
import { actualSize } from '../storage/actual-size.ts';
import type { Storage } from '../storage/storage.ts';
import { cidText, type ExtentLine, LONG_CID, NO_CID, type VmdkDescriptor } from './descriptor.ts';
import type { VmdkExtent } from './extent.ts';
import { newUuid } from './write-descriptor.ts';

/** Where a descriptor is: a file of its own, or a part of the extent that it describes. */
export interface DescriptorPlace {
  readonly descriptor: VmdkDescriptor;
  readonly storage: Storage;
  readonly offset: number;
  /** Room for it, bytes; Infinity when it has the file for itself. */
  readonly room: number;
  /** It is inside the one extent that it describes. */
  readonly embedded: boolean;
}

export interface VmdkParts {
  readonly storage: Storage;
  /** Undefined for an extent that was opened without its descriptor. */
  readonly place: DescriptorPlace | undefined;
  readonly parent: ParentReference | undefined;
  readonly extents: readonly VmdkExtent[];
  /** Further files, to be closed with the layer. */
  readonly files: readonly Storage[];
  readonly readOnly: boolean;
  readonly leases: LeaseBook;
}

/** A VMDK disk: a descriptor and one or more extents. */
export class VmdkLayer implements Layer {
  readonly format = 'vmdk';
  readonly storage: Storage;
  readonly size: number;
  readonly readOnly: boolean;
  readonly limits: LayerLimits;
  readonly parent: ParentReference | undefined;
  readonly leases: LeaseBook;
  readonly #place: DescriptorPlace | undefined;
  readonly #extents: readonly VmdkExtent[];
  /** Guest offset of each extent, and the end of the last. */
  readonly #starts: Float64Array;
  readonly #files: readonly Storage[];
  #begun = false;
  #failed = false;

  constructor(parts: VmdkParts) {
    this.storage = parts.storage;
    this.readOnly = parts.readOnly;
    this.parent = parts.parent;
    this.leases = parts.leases;
    this.#place = parts.place;
    this.#extents = parts.extents;
    this.#files = parts.files;
    this.#starts = new Float64Array(parts.extents.length + 1);
    for (const [i, extent] of parts.extents.entries()) {
      this.#starts[i + 1] = (this.#starts[i] as number) + extent.length;
    }
    this.size = this.#starts[parts.extents.length] as number;
    this.limits = limitsOf(parts.extents, this.#starts, this.size);
  }

  get ids(): Readonly<Record<string, string>> {
    const descriptor = this.#place?.descriptor;
    if (descriptor === undefined) return {};
    const uuid = (key: string) => descriptor.get(key)?.replace(/[{}]/g, '').toLowerCase();
    const [uuidCreate, uuidModify] = [uuid('ddb.uuid.image'), uuid('ddb.uuid.modification')];
    return {
      CID: cidText(descriptor.cid('CID')),
      ...(uuidCreate === undefined ? {} : { uuidCreate }),
      ...(uuidModify === undefined ? {} : { uuidModify }),
    };
  }

  tryMap(offset: number, length: number, out: ExtentBuffer): number {
    out.begin(offset);
    const end = offset + length;
    for (let i = this.#find(offset); out.end < end; i++) {
      const start = this.#starts[i] as number;
      const stop = Math.min(end, this.#starts[i + 1] as number);
      const at = out.end;
      if (stop > at) (this.#extents[i] as VmdkExtent).tryMap(at - start, stop - at, out);
      if (out.end < stop) break;
    }
    return out.count > 0 ? out.count : -1;
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    out.begin(offset);
    const i = this.#find(offset);
    const start = this.#starts[i] as number;
    const stop = Math.min(offset + length, this.#starts[i + 1] as number);
    await (this.#extents[i] as VmdkExtent).map(offset - start, stop - offset, out);
    return out.count;
  }

  async renew(offset: number, length: number): Promise<void> {
    const end = Math.min(offset + length, this.size);
    if (offset >= end) return;
    for (let i = this.#find(offset); i < this.#extents.length && (this.#starts[i] as number) < end; i++) {
      const start = this.#starts[i] as number;
      const at = Math.max(offset, start);
      const stop = Math.min(end, this.#starts[i + 1] as number);
      if (stop > at) await (this.#extents[i] as VmdkExtent).renew?.(at - start, stop - at);
    }
  }

  /** The extent that holds a guest offset. */
  #find(offset: number): number {
    let low = 0;
    for (let high = this.#extents.length - 1; low < high; ) {
      const middle = (low + high + 1) >>> 1;
      if ((this.#starts[middle] as number) <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  tryReadOpaque(_extents: ExtentBuffer, _index: number, offset: number, iov: IoVec): boolean {
    const i = this.#find(offset);
    return (this.#extents[i] as VmdkExtent).tryReadOpaque(offset - (this.#starts[i] as number), iov);
  }

  readOpaque(_extents: ExtentBuffer, _index: number, offset: number, iov: IoVec): Promise<void> {
    const i = this.#find(offset);
    return (this.#extents[i] as VmdkExtent).readOpaque(offset - (this.#starts[i] as number), iov);
  }

  /** A new content id, and "not closed properly", durable before the first changed byte. */
  async beginWrite(): Promise<void> {
    if (this.#place !== undefined) await writeNewIds(this.#place);
    await settle(this.#extents.map((extent) => extent.beginWrite()));
    await this.#syncAll();
    this.#begun = true;
  }

  async followParent({ CID: cid, uuidModify }: Readonly<Record<string, string>>): Promise<void> {
    if (this.#place === undefined || cid === undefined) return;
    await changeDescriptor(this.#place, (descriptor) => {
      descriptor.set('parentCID', cid);
      const key = 'ddb.uuid.parentmodification';
      if (uuidModify !== undefined && descriptor.get(key) !== undefined) descriptor.set(key, uuidModify);
    });
    await this.#syncAll();
  }

  async reserve(offset: number, length: number): Promise<Reservation> {
    const i = this.#find(offset);
    const start = this.#starts[i] as number;
    const stop = Math.min(offset + length, this.#starts[i + 1] as number);
    const reservation = await (this.#extents[i] as VmdkExtent).reserve(offset - start, stop - offset);
    if (start === 0) return reservation;
    return {
      end: start + reservation.end,
      regions: reservation.regions.map((region) => ({ ...region, guestOffset: start + region.guestOffset })),
      commit: () => reservation.commit(),
      abort: () => reservation.abort(),
    };
  }

  zero(offset: number, length: number, unmap: boolean): Promise<boolean> {
    return this.#zeroParts(offset, length, unmap);
  }

  /** Flat extents lose their space only where their file system can punch holes; the data stays otherwise. */
  release(offset: number, length: number): Promise<boolean> {
    return this.#zeroParts(offset, length, true);
  }

  async #zeroParts(offset: number, length: number, unmap: boolean): Promise<boolean> {
    let complete = true;
    for (let at = offset; at < offset + length; ) {
      const i = this.#find(at);
      const start = this.#starts[i] as number;
      const stop = Math.min(offset + length, this.#starts[i + 1] as number);
      if (!(await (this.#extents[i] as VmdkExtent).zero(at - start, stop - at, unmap))) complete = false;
      at = stop;
    }
    return complete;
  }

  async resize(_size: number, _options: ResizeOptions): Promise<void> {
    throw new ImageError('UNSUPPORTED', 'VMDK disks do not change their size here', {
      path: this.storage.path,
      help: 'Convert to a new image of that size',
    });
  }

  async flush(): Promise<void> {
    if (this.readOnly) return;
    try {
      await settle(this.#extents.map((extent) => extent.flush()));
    } catch (error) {
      if (!(error instanceof LunetteError) || error.code !== 'NO_SPACE') this.#failed = true;
      throw error;
    }
  }

  async close(): Promise<void> {
    try {
      if (!this.readOnly && this.#begun && !this.#failed) {
        await this.flush();
        await settle(this.#extents.map((extent) => extent.finish()));
        await this.#syncAll();
      }
    } finally {
      for (const extent of this.#extents) extent.release();
      await settle([this.storage, ...this.#files].map((file) => file.close()));
    }
  }

  async #syncAll(): Promise<void> {
    const written = this.#extents.filter((extent) => extent.writable).flatMap((extent) => extent.storage ?? []);
    const files = new Set([...(this.#place === undefined ? [] : [this.#place.storage]), ...written]);
    await settle([...files].map((file) => file.sync()));
  }

  async describe(): Promise<LayerInfo> {
    const descriptor = this.#place?.descriptor;
    const embedded = this.#files.length === 0;
    // As written, wherever the parent was found.
    const hint = this.parent === undefined ? undefined : descriptor?.get('parentFileNameHint');
    const sizes = await Promise.all([this.storage, ...this.#files].map((file) => actualSize(file)));
    const grain = this.#extents.find((extent) => extent.grain > 1)?.grain;
    return {
      format: 'vmdk',
      virtualSize: this.size,
      ...(sizes.every(({ actualSize: size }) => size !== undefined)
        ? { actualSize: sizes.reduce((sum, { actualSize: size = 0 }) => sum + size, 0) }
        : {}),
      ...(grain === undefined ? {} : { clusterSize: grain }),
      ...(this.#extents.some((extent) => extent.facts.compressed) ? { compressed: true } : {}),
      dirty: this.#extents.some((extent) => extent.facts.dirty),
      ...(hint === undefined ? {} : { backingFile: hint, backingFormat: 'vmdk' }),
      specific: {
        cid: descriptor?.cid('CID') ?? NO_CID,
        'parent-cid': descriptor?.cid('parentCID') ?? NO_CID,
        'create-type': descriptor?.createType ?? '',
        extents: this.#extents.map((extent) => ({
          ...(extent.facts.compressed ? { compressed: true } : {}),
          'virtual-size': extent.length,
          filename: extent.storage?.path ?? '',
          ...(extent.grain > 1 ? { 'cluster-size': extent.grain } : {}),
          format: embedded ? '' : extent.facts.type,
        })),
      },
      children: this.#files.map((file, i) => ({ name: `extents.${i}`, path: file.path })),
    };
  }
}

/** What was seen of an extent's file; nothing where it could not be looked at. */
export interface ExtentOutline {
  readonly actualSize?: number;
  /** Bytes of a grain. */
  readonly grain?: number;
}

/** What can be said of a disk whose extents are not opened. */
export class VmdkOutline extends VmdkLayer {
  readonly #lines: readonly ExtentLine[];
  readonly #info: DescriptorPlace;
  /** By number of the line. */
  readonly #seen: readonly ExtentOutline[];

  constructor(parts: VmdkParts & { place: DescriptorPlace }, seen: readonly ExtentOutline[]) {
    super(parts);
    this.#seen = seen;
    this.#lines = parts.place.descriptor.extents;
    this.#info = parts.place;
  }

  override async describe(): Promise<LayerInfo> {
    const { descriptor, storage } = this.#info;
    const resolved = (file: string | undefined): string => (file === undefined ? '' : storage.resolve(file));
    const { actualSize: own, ...shown } = await super.describe();
    const files = this.#lines.flatMap(({ file }, i) => (file === undefined ? [] : [this.#seen[i]?.actualSize]));
    const sizes = [own, ...new Map(this.#lines.map(({ file }, i) => [file, this.#seen[i]?.actualSize])).values()];
    const grain = this.#seen.find((each) => each.grain !== undefined)?.grain;
    return {
      ...shown,
      ...(files.includes(undefined) || own === undefined
        ? {}
        : { actualSize: sizes.reduce<number>((sum, size) => sum + (size ?? 0), 0) }),
      ...(grain === undefined ? {} : { clusterSize: grain }),
      virtualSize: this.#lines.reduce((sum, line) => sum + line.length, 0),
      specific: {
        cid: descriptor.cid('CID'),
        'parent-cid': descriptor.cid('parentCID'),
        'create-type': descriptor.createType,
        extents: this.#lines.map((line, i) => ({
          'virtual-size': line.length,
          filename: resolved(line.file),
          ...(this.#seen[i]?.grain === undefined ? {} : { 'cluster-size': this.#seen[i]?.grain }),
          format: line.type,
        })),
      },
      children: this.#lines
        .filter((line) => line.file !== undefined)
        .map((line, i) => ({ name: `extents.${i}`, path: resolved(line.file) })),
    };
  }
}

function limitsOf(extents: readonly VmdkExtent[], starts: Float64Array, size: number): LayerLimits {
  const grain = Math.max(1, ...extents.map((extent) => extent.grain));
  if (grain === 1) return plainLimits(extents.every(({ storage }) => storage?.discards !== false));
  const aligned = extents.every((extent, i) => extent.grain === 1 || (starts[i] as number) % grain === 0);
  if (aligned) return { allocationUnit: grain, zeroUnit: grain, discardUnit: grain };
  // Grains that lie across each other's borders: writers that allocate take turns, and zeros are written.
  return { allocationUnit: Math.max(1, size), zeroUnit: 0, discardUnit: 0 };
}

/** Gives the content a new id: CID, or ddb.longContentID where CID says so; VirtualBox's modification id along with it. */
function writeNewIds(place: DescriptorPlace): Promise<void> {
  return changeDescriptor(place, setNewIds);
}

function setNewIds(descriptor: VmdkDescriptor): void {
  const old = descriptor.get('CID') ?? '';
  const long = descriptor.get('ddb.longContentID');
  const isLong = descriptor.cid('CID') === LONG_CID && long !== undefined;
  // As many digits as there were: nothing else moves.
  const digits = /^[0-9a-f]{4,8}$/i.test(old) ? old.length : 8;
  const cid = newCid(descriptor.cid('CID'), digits);
  if (!isLong) descriptor.set('CID', cid);
  if (long !== undefined && /^[0-9a-f]{32}$/i.test(long))
    descriptor.set('ddb.longContentID', `${randomBytes(12).toString('hex')}${cid.padStart(8, '0')}`);
  if (descriptor.get('ddb.uuid.modification') !== undefined) descriptor.set('ddb.uuid.modification', newUuid());
}

/** Changes a descriptor in its file. One that keeps its length is changed where it differs, so that a power cut leaves the old or the new one. */
async function changeDescriptor(
  { descriptor, storage, offset, room }: DescriptorPlace,
  change: (descriptor: VmdkDescriptor) => void,
): Promise<void> {
  const before = descriptor.toBytes();
  change(descriptor);
  const after = descriptor.toBytes();
  if (after.length > room) {
    throw new ImageError('UNSUPPORTED', 'its descriptor has no room for another id', { path: storage.path, offset });
  }
  if (after.length !== before.length) {
    await storage.writev(offset, IoVec.of(after));
    if (room === Number.POSITIVE_INFINITY) await storage.resize(after.length);
    return;
  }
  const first = after.findIndex((byte, i) => byte !== before[i]);
  const last = after.findLastIndex((byte, i) => byte !== before[i]);
  if (first >= 0) await storage.writev(offset + first, IoVec.of(after, first, last + 1 - first));
}

function newCid(old: number, digits: number): string {
  for (;;) {
    const cid = randomBytes(4).toString('hex').slice(0, digits);
    const value = Number.parseInt(cid, 16);
    if (value !== old && value !== NO_CID && value !== LONG_CID) return cid;
  }
}
