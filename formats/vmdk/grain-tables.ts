import type { BlockCache } from '../cache/cache.ts';
import { type SliceCopy, TableSlices } from '../cache/table-slices.ts';
import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { getU32LE, setU32LE } from '../core/words.ts';
import type { Storage } from '../storage/storage.ts';
import { SECTOR } from './header.ts';

/** Most bytes in one write of neighbouring tables. */
const MAX_WRITE = 1024 * 1024;

export interface DirectoryPlace {
  /** Byte offset of the grain directory. */
  readonly offset: number;
  readonly count: number;
}

/** A grain directory: the sector of each grain table, 0 where there is none. */
export async function readDirectory(storage: Storage, place: DirectoryPlace, what: string): Promise<Uint8Array> {
  const length = 4 * place.count;
  if (place.offset < SECTOR || place.offset + length > storage.size) {
    throw new ImageError('TRUNCATED', `its ${what} at ${place.offset} is not inside the file`, {
      path: storage.path,
      offset: place.offset,
    });
  }
  const bytes = new Uint8Array(length);
  if (length > 0) await storage.readv(place.offset, IoVec.of(bytes));
  return bytes;
}

export interface GrainTableParts {
  readonly storage: Storage;
  /** Entries in a table. */
  readonly entries: number;
  readonly directory: DirectoryPlace & { readonly bytes: Uint8Array };
  /** The second copy, kept equal. */
  readonly redundant?: (DirectoryPlace & { readonly bytes: Uint8Array }) | undefined;
}

/**
 * The grain tables of one sparse extent: grain number to sector. Tables come into memory as they are needed; the directory is
 * there from the start.
 */
export class GrainTables {
  readonly entries: number;
  readonly #parts: GrainTableParts;
  readonly #slices: TableSlices;
  /** Tables that are in the file but perhaps in no directory there yet: byte offsets, of the second copy too. */
  readonly #placed = new Map<number, { primary: number; redundant: number | undefined }>();

  constructor(parts: GrainTableParts, cache: BlockCache) {
    this.#parts = parts;
    this.entries = parts.entries;
    this.#slices = new TableSlices(cache, parts.directory.count, (table) => this.#load(table));
  }

  /** A table's bytes when they are in memory. */
  tryTable(table: number): Uint8Array | undefined {
    return this.#slices.tryGet(table);
  }

  /** @throws {ImageError} CORRUPT for a table outside the file */
  table(table: number): Promise<Uint8Array> {
    return this.#slices.get(table);
  }

  async get(grain: number): Promise<number> {
    const table = Math.floor(grain / this.entries);
    const bytes = this.#slices.tryGet(table) ?? (await this.#slices.get(table));
    return getU32LE(bytes, 4 * (grain % this.entries));
  }

  async set(grain: number, entry: number): Promise<void> {
    const table = Math.floor(grain / this.entries);
    const bytes = this.#slices.tryChange(table) ?? (await this.#slices.change(table));
    setU32LE(bytes, 4 * (grain % this.entries), entry);
  }

  /** Takes the tables of some grains anew from the file, where another program may have changed or made them. Nothing is changed in memory. */
  async renew(firstGrain: number, lastGrain: number): Promise<void> {
    const { storage, directory } = this.#parts;
    const first = Math.floor(firstGrain / this.entries);
    const count = Math.floor(lastGrain / this.entries) + 1 - first;
    this.#slices.forget();
    await storage.readv(directory.offset + 4 * first, IoVec.of(directory.bytes, 4 * first, 4 * count));
  }

  copies(): SliceCopy[] {
    return this.#slices.copies();
  }

  /**
   * First part of writing back: tables that the directory does not name yet get a place. Nothing refers to them until write().
   *
   * @param allocate gives the byte offset of new space
   */
  async writeNew(copies: readonly SliceCopy[], allocate: (length: number) => number): Promise<void> {
    for (const { slice, bytes } of copies) {
      if (this.#sectorOf(slice) !== 0) continue;
      let place = this.#placed.get(slice);
      if (place === undefined) {
        const primary = allocate(bytes.length);
        place = { primary, redundant: this.#parts.redundant === undefined ? undefined : allocate(bytes.length) };
        this.#placed.set(slice, place);
      }
      await this.#parts.storage.writev(place.primary, IoVec.of(bytes));
      if (place.redundant !== undefined) await this.#parts.storage.writev(place.redundant, IoVec.of(bytes));
    }
  }

  /** Second part: tables that the directory names, both copies, and the directory's new entries. */
  async write(copies: readonly SliceCopy[]): Promise<void> {
    const { directory, redundant } = this.#parts;
    // Also those whose directory entries could not be written last time, though in memory they are there.
    const fresh = copies.filter(({ slice }) => this.#placed.has(slice));
    const places: { at: number; bytes: Uint8Array }[] = [];
    for (const { slice, bytes } of copies) {
      const sector = this.#sectorOf(slice);
      if (sector === 0) continue;
      places.push({ at: sector * SECTOR, bytes });
      const second = redundant === undefined ? 0 : getU32LE(redundant.bytes, 4 * slice);
      if (second !== 0) places.push({ at: second * SECTOR, bytes });
    }
    await this.#writePlaces(places);
    for (const { slice } of fresh) {
      const place = this.#placed.get(slice);
      if (place === undefined) continue;
      setU32LE(directory.bytes, 4 * slice, place.primary / SECTOR);
      if (redundant !== undefined && place.redundant !== undefined)
        setU32LE(redundant.bytes, 4 * slice, place.redundant / SECTOR);
    }
    for (const copy of [directory, redundant]) {
      if (copy !== undefined) await this.#writeDirectory(copy, fresh);
    }
    for (const { slice } of fresh) this.#placed.delete(slice);
  }

  written(copies: readonly SliceCopy[]): void {
    this.#slices.written(copies);
  }

  release(): void {
    this.#slices.release();
  }

  #sectorOf(table: number): number {
    return getU32LE(this.#parts.directory.bytes, 4 * table);
  }

  /** Neighbours in one write. */
  async #writePlaces(places: { at: number; bytes: Uint8Array }[]): Promise<void> {
    places.sort((a, b) => a.at - b.at);
    const list = new IoVec();
    let start = 0;
    for (const { at, bytes } of places) {
      if (list.byteLength > 0 && (at !== start + list.byteLength || list.byteLength >= MAX_WRITE)) {
        await this.#parts.storage.writev(start, list);
        list.clear();
      }
      if (list.byteLength === 0) start = at;
      list.append(bytes);
    }
    if (list.byteLength > 0) await this.#parts.storage.writev(start, list);
  }

  /** The sectors of a directory that hold these entries. */
  async #writeDirectory(copy: DirectoryPlace & { bytes: Uint8Array }, changed: readonly SliceCopy[]): Promise<void> {
    const sectors = new Set(changed.map(({ slice }) => Math.floor((4 * slice) / SECTOR)));
    for (const sector of sectors) {
      const at = sector * SECTOR;
      const length = Math.min(SECTOR, copy.bytes.length - at);
      await this.#parts.storage.writev(copy.offset + at, IoVec.of(copy.bytes, at, length));
    }
  }

  async #load(table: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(4 * this.entries);
    const sector = this.#sectorOf(table);
    if (sector === 0) return bytes;
    const { storage, directory } = this.#parts;
    if ((sector + Math.ceil(bytes.length / SECTOR)) * SECTOR > storage.size) {
      throw new ImageError(
        'CORRUPT',
        `grain table ${table} is at sector ${sector}, which is past the end of the file`,
        {
          path: storage.path,
          field: 'grain directory',
          offset: directory.offset + 4 * table,
          help: 'A check with repair uses the other copy of the table, where there is one',
        },
      );
    }
    await storage.readv(sector * SECTOR, IoVec.of(bytes));
    return bytes;
  }
}

/**
 * Before an extent is written: no two tables may share space with each other or with a directory or the header.
 *
 * @throws {ImageError} CORRUPT
 */
export function checkTablePlaces(parts: GrainTableParts): void {
  const { storage, entries } = parts;
  const sectors = Math.ceil((4 * entries) / SECTOR);
  const copies = [parts.directory, parts.redundant].filter((copy) => copy !== undefined);
  const places: { start: number; end: number }[] = [{ start: 0, end: 1 }];
  const sorted = new Float64Array(copies.reduce((sum, { count }) => sum + count, 0));
  let used = 0;
  for (const { offset, count, bytes } of copies) {
    places.push({ start: offset / SECTOR, end: (offset + 4 * count) / SECTOR });
    for (let i = 0; i < count; i++) {
      const sector = getU32LE(bytes, 4 * i);
      if (sector !== 0) sorted[used++] = sector;
    }
  }
  const starts = sorted.subarray(0, used).sort();
  const fail = (sector: number, why: string): never => {
    throw new ImageError('CORRUPT', `it cannot be written: the grain table at sector ${sector} ${why}`, {
      path: storage.path,
      help: 'Check it with repair first, or open it read-only',
    });
  };
  for (const [i, start] of starts.entries()) {
    if ((start + sectors) * SECTOR > storage.size) fail(start, 'is past the end of the file');
    if (i > 0 && start < (starts[i - 1] as number) + sectors) fail(start, 'lies in another one');
    if (places.some((place) => start < place.end && place.start < start + sectors))
      fail(start, 'lies in the header or a directory');
  }
}
