import type { BlockCache } from '../cache/cache.ts';
import { TableSlices } from '../cache/table-slices.ts';
import { type ErrorCode, ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { reserved, Struct, u64 } from '../core/struct.ts';
import { hex } from '../core/units.ts';
import { getU32LE } from '../core/words.ts';
import { ABSENT, DATA, type ExtentBuffer, ZERO } from '../image/extent.ts';
import type { Reservation } from '../image/layer.ts';
import type { Storage } from '../storage/storage.ts';
import type { ExtentFacts, VmdkExtent } from './extent.ts';
import { SECTOR } from './header.ts';

/**
 * Space-efficient sparse extents of vSphere ("seSparse"), read-only. There is no public specification: the layout is what tools
 * that read it agree on (docs/formats/vmdk.md). Words of 64 bits, little-endian; offsets and sizes in sectors.
 */
export const MAGIC_SESPARSE = 0xcafebabe;
const MAGIC_VOLATILE = 0xcafecafe;
const VERSION_HIGH = 2;
const VERSION_LOW = 1;
const GRAIN_SECTORS = 8;
const TABLE_SECTORS = 64;
const TABLE_ENTRIES = 4096;
/** 64 TiB of disk. */
const MAX_CAPACITY = 2 ** 37;

export const SESPARSE_HEADER = new Struct(
  'vmdk seSparse header',
  { size: SECTOR, endian: 'little' },
  {
    magic: u64(0),
    version: reserved(8, 8),
    capacity: u64(16),
    grainSize: u64(24),
    grainTableSize: u64(32),
    flags: u64(40),
    spare: reserved(48, 32),
    volatileHeaderOffset: u64(80),
    volatileHeaderSize: u64(88),
    journalHeaderOffset: u64(96),
    journalHeaderSize: u64(104),
    journalOffset: u64(112),
    journalSize: u64(120),
    grainDirOffset: u64(128),
    grainDirSize: u64(136),
    grainTablesOffset: u64(144),
    grainTablesSize: u64(152),
    freeBitmapOffset: u64(160),
    freeBitmapSize: u64(168),
    backmapOffset: u64(176),
    backmapSize: u64(184),
    grainsOffset: u64(192),
    grainsSize: u64(200),
    padding: reserved(208, 304),
  },
);

export function isSeSparse(head: Uint8Array): boolean {
  return head.length >= SECTOR && getU32LE(head, 0) === MAGIC_SESPARSE && getU32LE(head, 4) === 0;
}

/** @throws {ImageError} BAD_MAGIC, BAD_HEADER, UNSUPPORTED, CORRUPT, TRUNCATED */
export async function openSeSparse(
  storage: Storage,
  length: number | undefined,
  cache: BlockCache,
): Promise<SeSparseExtent> {
  const head = new Uint8Array(SECTOR);
  await storage.readv(0, IoVec.of(head));
  const { path } = storage;
  if (!isSeSparse(head)) throw new ImageError('BAD_MAGIC', 'vmdk seSparse header: no signature', { path, offset: 0 });
  const header = SESPARSE_HEADER.read(new DataView(head.buffer));
  const check = (
    holds: boolean,
    field: keyof typeof SESPARSE_HEADER.fields,
    why: string,
    code: ErrorCode = 'UNSUPPORTED',
  ) => {
    if (!holds)
      throw new ImageError(code, `vmdk seSparse header: ${why}`, {
        path,
        field,
        offset: SESPARSE_HEADER.fields[field].at,
      });
  };
  const [low, high] = [getU32LE(head, 8), getU32LE(head, 12)];
  check(low === VERSION_LOW && high === VERSION_HIGH, 'version', `version ${high}.${low} is not 2.1`);
  check(header.grainSize === GRAIN_SECTORS, 'grainSize', `grains of ${header.grainSize} sectors`);
  check(header.grainTableSize === TABLE_SECTORS, 'grainTableSize', `grain tables of ${header.grainTableSize} sectors`);
  check(header.flags === 0, 'flags', 'it has flags that are not known here');
  check(header.capacity <= MAX_CAPACITY, 'capacity', `${header.capacity} sectors`);
  const tables = Math.ceil(header.capacity / GRAIN_SECTORS / TABLE_ENTRIES);
  const directory = header.grainDirOffset * SECTOR;
  check(
    directory + 8 * tables <= storage.size,
    'grainDirOffset',
    'the grain directory is not inside the file',
    'TRUNCATED',
  );
  check(header.grainDirSize * SECTOR >= 8 * tables, 'grainDirSize', 'the grain directory is too short', 'BAD_HEADER');
  for (const field of ['grainTablesOffset', 'grainsOffset'] as const) {
    check(
      Number.isSafeInteger(header[field] * SECTOR) && header[field] > 0,
      field,
      'an offset is out of range',
      'BAD_HEADER',
    );
  }
  const second = new Uint8Array(SECTOR);
  const volatileAt = header.volatileHeaderOffset * SECTOR;
  check(
    volatileAt + SECTOR <= storage.size,
    'volatileHeaderOffset',
    'the volatile header is not inside the file',
    'TRUNCATED',
  );
  await storage.readv(volatileAt, IoVec.of(second));
  check(
    getU32LE(second, 0) === MAGIC_VOLATILE && getU32LE(second, 4) === 0,
    'volatileHeaderOffset',
    `the volatile header begins with ${hex(getU32LE(second, 0))}`,
    'CORRUPT',
  );
  if (second.subarray(24, 32).some((byte) => byte !== 0)) {
    throw new ImageError('UNSUPPORTED', 'it was not closed properly and has a journal to replay', {
      path,
      field: 'replayJournal',
      offset: volatileAt + 24,
      help: 'Let vSphere open it once',
    });
  }
  const bytes = new Uint8Array(8 * tables);
  if (tables > 0) await storage.readv(directory, IoVec.of(bytes));
  const capacity = header.capacity * SECTOR;
  if (length !== undefined && length > capacity)
    throw new ImageError('BAD_HEADER', `its descriptor says ${length} bytes, its header ${capacity}`, {
      path,
      field: 'capacity',
    });
  return new SeSparseExtent(storage, {
    length: length ?? capacity,
    directory: bytes,
    tablesAt: header.grainTablesOffset * SECTOR,
    grainsAt: header.grainsOffset * SECTOR,
    cache,
  });
}

export class SeSparseExtent implements VmdkExtent {
  readonly length: number;
  readonly grain = GRAIN_SECTORS * SECTOR;
  readonly storage: Storage;
  readonly writable = false;
  readonly facts: ExtentFacts = { type: 'SESPARSE', compressed: false, dirty: false };
  readonly #directory: Uint8Array;
  readonly #tablesAt: number;
  readonly #grainsAt: number;
  readonly #slices: TableSlices;

  constructor(
    storage: Storage,
    parts: { length: number; directory: Uint8Array; tablesAt: number; grainsAt: number; cache: BlockCache },
  ) {
    this.storage = storage;
    this.length = parts.length;
    this.#directory = parts.directory;
    this.#tablesAt = parts.tablesAt;
    this.#grainsAt = parts.grainsAt;
    this.#slices = new TableSlices(parts.cache, parts.directory.length / 8, (table) => this.#load(table));
  }

  tryMap(offset: number, length: number, out: ExtentBuffer): void {
    const { grain } = this;
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / grain);
      const bytes = this.#slices.tryGet(Math.floor(index / TABLE_ENTRIES));
      if (bytes === undefined) return;
      const start = index * grain;
      const take = Math.min(start + grain, end) - at;
      const place = this.#placeOf(bytes, index);
      let fits: boolean;
      if (place === PLACE_ABSENT) fits = out.append(ABSENT, take);
      else if (place === PLACE_ZERO) fits = out.append(ZERO, take);
      else if (place < 0 || place + Math.min(grain, this.length - start) > this.storage.size) return;
      else fits = out.append(DATA, take, this.storage, place + (at - start), 0);
      if (!fits) return;
      at += take;
    }
  }

  /** Byte offset of a grain, or what it is instead. */
  #placeOf(table: Uint8Array, index: number): number {
    const at = 8 * (index % TABLE_ENTRIES);
    const low = getU32LE(table, at);
    const high = getU32LE(table, at + 4);
    switch (high >>> 28) {
      case 0:
        return low === 0 && high === 0 ? PLACE_ABSENT : PLACE_WRONG;
      case 1: // unmapped by the guest
      case 2:
        return PLACE_ZERO;
      case 3: {
        // Bits 48 to 59 are the low bits of the grain's number, bits 0 to 47 the others.
        const grain = ((high >>> 16) & 0xfff) + ((high & 0xffff) * 2 ** 32 + low) * 4096;
        const place = this.#grainsAt + grain * this.grain;
        return Number.isSafeInteger(place) ? place : PLACE_WRONG;
      }
      default:
        return PLACE_WRONG;
    }
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<void> {
    const before = out.end;
    for (;;) {
      this.tryMap(offset, length, out);
      if (out.end > before) return;
      const index = Math.floor(offset / this.grain);
      const table = await this.#slices.get(Math.floor(index / TABLE_ENTRIES));
      const place = this.#placeOf(table, index);
      if (place === PLACE_WRONG || place + Math.min(this.grain, this.length - index * this.grain) > this.storage.size) {
        throw new ImageError('CORRUPT', `grain ${index} has an entry that leads nowhere`, { path: this.storage.path });
      }
    }
  }

  async #load(table: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(8 * TABLE_ENTRIES);
    const low = getU32LE(this.#directory, 8 * table);
    const high = getU32LE(this.#directory, 8 * table + 4);
    if (low === 0 && high === 0) return bytes;
    const at = this.#tablesAt + low * TABLE_SECTORS * SECTOR;
    if (high !== 0x10000000 || at + bytes.length > this.storage.size) {
      throw new ImageError('CORRUPT', `entry ${table} of the grain directory leads nowhere`, {
        path: this.storage.path,
      });
    }
    await this.storage.readv(at, IoVec.of(bytes));
    return bytes;
  }

  tryReadOpaque(): boolean {
    return false;
  }

  async readOpaque(): Promise<void> {
    throw new ImageError('INTERNAL', 'seSparse extents have nothing opaque', { path: this.storage.path });
  }

  async beginWrite(): Promise<void> {}

  async reserve(): Promise<Reservation> {
    throw new ImageError('READ_ONLY', 'seSparse extents are read, not written', { path: this.storage.path });
  }

  async zero(): Promise<boolean> {
    return this.reserve().then(() => false);
  }

  async flush(): Promise<void> {}

  async finish(): Promise<void> {}

  release(): void {
    this.#slices.release();
  }
}

const PLACE_ABSENT = -1;
const PLACE_ZERO = -2;
const PLACE_WRONG = -3;
