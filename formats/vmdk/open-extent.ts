import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp } from '../core/units.ts';
import type { LayerContext } from '../driver.ts';
import type { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import { CompressedGrains } from './compressed.ts';
import { checkTablePlaces, type GrainTableParts, GrainTables, readDirectory } from './grain-tables.ts';
import {
  COWD_HEADER,
  COWD_HEADER_SIZE,
  COWD_TABLE_ENTRIES,
  type CowdHeader,
  FLAG_COMPRESSED,
  FLAG_MARKERS,
  FLAG_REDUNDANT,
  FLAG_ZEROED_GRAIN,
  HOSTED_HEADER,
  type HostedHeader,
  MAGIC_COWD,
  MAGIC_HOSTED,
  parseCowd,
  parseHosted,
  SECTOR,
} from './header.ts';
import { type ExtentMarks, SparseExtent } from './sparse.ts';

export interface SparseOpenOptions {
  /** Bytes of the disk; default: what the header says. */
  readonly length?: number | undefined;
  readonly writable: boolean;
  readonly hasParent: boolean;
  readonly leases: LeaseBook;
  readonly context: LayerContext;
}

/** How far before the end a footer is looked for, when something was appended to the file: bytes. */
const FOOTER_SEARCH = 64 * 1024;

export async function readHead(storage: Storage, length: number): Promise<Uint8Array> {
  const head = new Uint8Array(Math.min(length, storage.size));
  if (head.length > 0) await storage.readv(0, IoVec.of(head));
  return head;
}

/** What the first bytes of a file say it is. */
export function magicOf(head: Uint8Array): number {
  return head.length < 4 ? 0 : new DataView(head.buffer, head.byteOffset).getUint32(0, true);
}

/**
 * The header that counts: for a stream whose directory is at the end, the footer's.
 *
 * @throws {ImageError} as parseHosted; TRUNCATED for a stream without footer
 */
export async function readHosted(storage: Storage): Promise<{ header: HostedHeader; at: number }> {
  const header = parseHosted(await readHead(storage, SECTOR), storage.path);
  if (!header.directoryAtEnd) return { header, at: 0 };
  // The footer is the last sector but one. Padding that somebody added is skipped.
  const end = storage.size - (storage.size % SECTOR);
  const start = Math.max(SECTOR, end - FOOTER_SEARCH);
  const tail = new Uint8Array(Math.max(0, end - start));
  if (tail.length > 0) await storage.readv(start, IoVec.of(tail));
  for (let at = tail.length - 2 * SECTOR; at >= 0; at -= SECTOR) {
    if (magicOf(tail.subarray(at)) !== MAGIC_HOSTED) continue;
    const footer = parseHosted(tail.subarray(at, at + SECTOR), storage.path, start + at);
    if (!footer.directoryAtEnd) return { header: footer, at: start + at };
  }
  throw new ImageError('TRUNCATED', 'it is a stream that has no footer: its end is missing', {
    path: storage.path,
    field: 'gdOffset',
    offset: HOSTED_HEADER.fields.gdOffset.at,
  });
}

/** Opens the sparse extent in a file, hosted or ESX. @throws {ImageError} */
export async function openSparse(storage: Storage, options: SparseOpenOptions): Promise<SparseExtent> {
  const head = await readHead(storage, COWD_HEADER_SIZE);
  const magic = magicOf(head);
  if (magic === MAGIC_HOSTED) return openHosted(storage, (await readHosted(storage)).header, options);
  if (magic === MAGIC_COWD) return openCowd(storage, parseCowd(head, storage.path), options);
  throw new ImageError('BAD_MAGIC', 'is no sparse extent', { path: storage.path, offset: 0 });
}

async function openHosted(storage: Storage, header: HostedHeader, options: SparseOpenOptions): Promise<SparseExtent> {
  const { path } = storage;
  const { context } = options;
  const compressed = (header.flags & FLAG_COMPRESSED) !== 0;
  const writable = options.writable && !compressed;
  const length = lengthOf(options.length, header.capacity * SECTOR, path);
  if (!compressed && header.overHead * SECTOR > storage.size)
    throw new ImageError('TRUNCATED', 'the file ends inside its metadata', {
      path,
      field: 'overHead',
      offset: HOSTED_HEADER.fields.overHead.at,
    });
  const parts = await hostedTables(storage, header);
  if (writable) checkTablePlaces(parts);
  const zeroed = (header.flags & FLAG_ZEROED_GRAIN) !== 0;
  const marks: ExtentMarks = {
    setUnclean: (unclean) =>
      storage.writev(HOSTED_HEADER.fields.uncleanShutdown.at, IoVec.of(Uint8Array.of(unclean ? 1 : 0))),
    allowZeroed: () => allowZeroed(storage, header),
  };
  if (header.uncleanShutdown !== 0 && options.writable)
    context.warn('it was not closed properly; a check finds out whether its tables agree', storage);
  const grain = header.grainSize * SECTOR;
  const markers = (header.flags & FLAG_MARKERS) !== 0;
  return new SparseExtent({
    storage,
    length,
    grain,
    tables: new GrainTables(parts, context.cache),
    marks,
    firstSector: compressed ? 1 : Math.max(1, header.overHead),
    end: 0,
    writable,
    zeroed,
    hasParent: options.hasParent,
    leases: options.leases,
    cache: context.cache,
    facts: { type: 'SPARSE', compressed, dirty: header.uncleanShutdown !== 0, version: header.version },
    compressed: compressed
      ? new CompressedGrains(storage, context.cache, {
          grain,
          count: divideUp(length, grain),
          markers,
          inflate: context.inflate,
        })
      : undefined,
  });
}

/** Directories of a hosted extent. Of a compressed one the second copy is ignored, as its maker may not have written it. */
export async function hostedTables(storage: Storage, header: HostedHeader): Promise<GrainTableParts> {
  const count = Math.ceil(header.capacity / header.grainSize / header.numGTEsPerGT);
  const primary = { offset: header.gdOffset * SECTOR, count };
  const directory = { ...primary, bytes: await readDirectory(storage, primary, 'grain directory') };
  const redundant = (header.flags & FLAG_REDUNDANT) !== 0 && (header.flags & FLAG_COMPRESSED) === 0;
  if (!redundant || header.rgdOffset === 0) return { storage, entries: header.numGTEsPerGT, directory };
  const second = { offset: header.rgdOffset * SECTOR, count };
  return {
    storage,
    entries: header.numGTEsPerGT,
    directory,
    redundant: { ...second, bytes: await readDirectory(storage, second, 'redundant grain directory') },
  };
}

/** Header version 2 and the flag, durable before the first such entry. */
async function allowZeroed(storage: Storage, header: HostedHeader): Promise<void> {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, Math.max(2, header.version), true);
  view.setUint32(4, header.flags | FLAG_ZEROED_GRAIN, true);
  await storage.writev(HOSTED_HEADER.fields.version.at, IoVec.of(bytes));
  await storage.sync();
}

async function openCowd(storage: Storage, header: CowdHeader, options: SparseOpenOptions): Promise<SparseExtent> {
  const { context, writable } = options;
  const length = lengthOf(options.length, header.numSectors * SECTOR, storage.path);
  const grain = header.grainSize * SECTOR;
  const count = divideUp(header.numSectors, header.grainSize * COWD_TABLE_ENTRIES);
  const place = { offset: header.gdOffset * SECTOR, count };
  const directory = { ...place, bytes: await readDirectory(storage, place, 'grain directory') };
  const parts: GrainTableParts = { storage, entries: COWD_TABLE_ENTRIES, directory };
  if (writable) checkTablePlaces(parts);
  const word = (at: number, value: number): Promise<void> => {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    return storage.writev(at, IoVec.of(bytes));
  };
  return new SparseExtent({
    storage,
    length,
    grain,
    tables: new GrainTables(parts, context.cache),
    marks: {
      setUnclean: (unclean) => word(COWD_HEADER.fields.uncleanShutdown.at, unclean ? 1 : 0),
      // A number that is too high wastes space; one that is too low would be used twice.
      setNext: (offset) => word(COWD_HEADER.fields.freeSector.at, Math.min(offset / SECTOR, 0xffffffff)),
    },
    firstSector: divideUp(place.offset + 4 * header.numGDEntries, SECTOR),
    end: header.freeSector * SECTOR,
    writable,
    zeroed: false,
    hasParent: options.hasParent,
    leases: options.leases,
    cache: context.cache,
    facts: { type: 'VMFSSPARSE', compressed: false, dirty: header.uncleanShutdown !== 0, version: header.version },
  });
}

function lengthOf(wanted: number | undefined, capacity: number, path: string): number {
  if (wanted === undefined) return capacity;
  if (wanted > capacity) {
    throw new ImageError('BAD_HEADER', `its descriptor says ${wanted} bytes, its header only ${capacity}`, {
      path,
      field: 'capacity',
    });
  }
  return wanted;
}
