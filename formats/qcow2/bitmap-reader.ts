import { ImageError } from '../core/errors.ts';
import type { BitmapInfo, BitmapReader, BitmapStore } from '../image/bitmaps.ts';
import type { Storage } from '../storage/storage.ts';
import { BitmapTable, dirtyRuns } from './bitmap-content.ts';
import { BITMAP_IN_USE, bitmapInfo, bitmapTableSize, type Qcow2Bitmap, readBitmapDirectory } from './bitmaps.ts';
import { AUTOCLEAR } from './features.ts';
import type { Qcow2Header } from './header.ts';

/** Bitmaps of an image that is only read: looked at when somebody asks. */
export class ReadOnlyBitmaps implements BitmapStore {
  readonly #storage: Storage;
  readonly #header: Qcow2Header;
  #directory: Promise<readonly Qcow2Bitmap[]> | undefined;

  constructor(storage: Storage, header: Qcow2Header) {
    this.#storage = storage;
    this.#header = header;
  }

  async list(): Promise<readonly BitmapInfo[]> {
    const { size, geometry } = this.#header;
    return (await this.#read()).map((bitmap) => describe(bitmap, size, geometry.clusterSize));
  }

  async open(name: string): Promise<BitmapReader> {
    const { size, geometry } = this.#header;
    const { clusterSize } = geometry;
    const bitmap = findBitmap(await this.#read(), name, this.#storage.path);
    refuseUnusable(bitmap, size, clusterSize, this.#storage.path);
    const load = () => BitmapTable.load(this.#storage, bitmap, clusterSize);
    await load(); // tells whether it can be read; kept only once it is
    let table: Promise<BitmapTable> | undefined;
    const runs = async (offset: number, length: number, most: number) => {
      table ??= load();
      return dirtyRuns(await table, clusterSize, [], { offset, length, most });
    };
    return { name, granularity: bitmap.granularity, size, runs };
  }

  add = (): Promise<void> => this.#refuse();
  remove = (): Promise<void> => this.#refuse();
  clear = (): Promise<void> => this.#refuse();
  setEnabled = (): Promise<void> => this.#refuse();
  merge = (): Promise<void> => this.#refuse();

  #read(): Promise<readonly Qcow2Bitmap[]> {
    const { extensions, autoclearFeatures, geometry } = this.#header;
    const valid = extensions.bitmaps !== undefined && (autoclearFeatures.low & AUTOCLEAR.BITMAPS) !== 0;
    this.#directory ??= valid
      ? readBitmapDirectory(this.#storage, extensions.bitmaps, geometry.clusterSize)
      : Promise.resolve([]);
    return this.#directory;
  }

  async #refuse(): Promise<never> {
    throw new ImageError('READ_ONLY', 'the image is open read-only', { path: this.#storage.path });
  }
}

/** What a bitmap is for a disk of this size. */
export function describe(bitmap: Qcow2Bitmap, diskSize: number, clusterSize: number): BitmapInfo {
  return { ...bitmapInfo(bitmap), inconsistent: !isUsable(bitmap, diskSize, clusterSize) };
}

/** Whether a bitmap in the file holds every write since it was cleared, and of the whole disk. */
export function isUsable(bitmap: Qcow2Bitmap, diskSize: number, clusterSize: number): boolean {
  if (bitmap.unknown !== undefined || (bitmap.flagBits & BITMAP_IN_USE) !== 0) return false;
  return bitmap.tableSize === Math.max(1, bitmapTableSize(diskSize, bitmap.granularity, clusterSize));
}

/** @throws {ImageError} CORRUPT, UNSUPPORTED when a bitmap cannot be used */
export function refuseUnusable(bitmap: Qcow2Bitmap, diskSize: number, clusterSize: number, path: string): void {
  const name = JSON.stringify(bitmap.name);
  if (bitmap.unknown !== undefined) {
    throw new ImageError('UNSUPPORTED', `bitmap ${name} has ${bitmap.unknown} that this program does not know`, {
      path,
    });
  }
  if (isUsable(bitmap, diskSize, clusterSize)) return;
  throw new ImageError('CORRUPT', `bitmap ${name} is inconsistent: it may miss writes`, {
    path,
    field: 'bitmaps',
    help: 'It can only be removed: add a new one, and start again with a full backup.',
  });
}

export function findBitmap<T extends { readonly name: string }>(bitmaps: readonly T[], name: string, path: string): T {
  const found = bitmaps.find((bitmap) => bitmap.name === name);
  if (found !== undefined) return found;
  throw new ImageError('NOT_FOUND', `there is no bitmap ${JSON.stringify(name)}`, { path });
}
