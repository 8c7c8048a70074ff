import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { getU32LE, setU32LE } from '../core/words.ts';
import type { LayerContext } from '../driver.ts';
import { type CheckOptions, type CheckResult, emptyCheckResult, report } from '../image/check.ts';
import type { Storage } from '../storage/storage.ts';
import { findDescriptor } from './driver.ts';
import { type GrainTableParts, readDirectory } from './grain-tables.ts';
import {
  COWD_HEADER,
  COWD_HEADER_SIZE,
  COWD_TABLE_ENTRIES,
  FLAG_COMPRESSED,
  FLAG_ZEROED_GRAIN,
  HOSTED_HEADER,
  MAGIC_COWD,
  MAGIC_HOSTED,
  parseCowd,
  SECTOR,
} from './header.ts';
import { hostedTables, magicOf, readHead, readHosted } from './open-extent.ts';

/** One sparse extent as the check sees it. */
interface Subject {
  readonly storage: Storage;
  readonly parts: GrainTableParts;
  /** Grains of the disk. */
  readonly grains: number;
  /** Sectors. */
  readonly grainSize: number;
  readonly firstSector: number;
  readonly zeroed: boolean;
  readonly compressed: boolean;
  /** Sectors of the last grain that belong to the disk. */
  readonly lastSize: number;
  readonly isUnclean: boolean;
  readonly uncleanAt: number;
  readonly uncleanLength: number;
}

/**
 * Checks the grain tables of every sparse extent of a disk: entries outside the data of the file, grains used twice, copies of
 * tables that differ, grains that nobody uses.
 *
 * Of two copies that differ: where exactly one has an entry that leads to an unused place, that one is right (a power cut came between
 * the two, or one copy is damaged): it counts as a leak, and repair fills in the other. Two different entries are
 * corruption; repair keeps the first copy, which is what readers see, unless only the second leads anywhere.
 *
 * @param storage the descriptor, or the whole disk; writable when something is to be repaired
 */
export async function checkVmdk(
  storage: Storage,
  options: CheckOptions & { context: LayerContext },
): Promise<CheckResult> {
  const result = emptyCheckResult();
  const repair = options.repair ?? 'none';
  const place = await findDescriptor(storage);
  if (place === undefined || place.embedded) {
    await checkFile(storage, repair, result);
    return result;
  }
  for (const line of place.descriptor.extents) {
    if (line.file === undefined || line.access === 'NOACCESS' || !['SPARSE', 'VMFSSPARSE'].includes(line.type))
      continue;
    const file = await options.context.openReferenced(line.file, storage, 'extent', { readOnly: repair === 'none' });
    try {
      await checkFile(file, repair, result);
    } finally {
      await file.close();
    }
  }
  return result;
}

async function checkFile(
  storage: Storage,
  repair: NonNullable<CheckOptions['repair']>,
  result: CheckResult,
): Promise<void> {
  const subject = await subjectOf(storage);
  if (subject === undefined) return;
  const check = new ExtentCheck(subject, result, repair);
  await check.run();
}

async function subjectOf(storage: Storage): Promise<Subject | undefined> {
  const head = await readHead(storage, COWD_HEADER_SIZE);
  const magic = magicOf(head);
  if (magic === MAGIC_HOSTED) {
    const { header } = await readHosted(storage);
    const compressed = (header.flags & FLAG_COMPRESSED) !== 0;
    return {
      storage,
      parts: await hostedTables(storage, header),
      grains: Math.ceil(header.capacity / header.grainSize),
      grainSize: header.grainSize,
      firstSector: compressed ? 1 : Math.max(1, header.overHead),
      zeroed: (header.flags & FLAG_ZEROED_GRAIN) !== 0,
      compressed,
      lastSize: header.capacity % header.grainSize || header.grainSize,
      isUnclean: header.uncleanShutdown !== 0,
      uncleanAt: HOSTED_HEADER.fields.uncleanShutdown.at,
      uncleanLength: 1,
    };
  }
  if (magic !== MAGIC_COWD) return undefined; // seSparse has nothing that is checked here.
  const header = parseCowd(head, storage.path);
  const count = Math.ceil(header.numSectors / header.grainSize / COWD_TABLE_ENTRIES);
  const place = { offset: header.gdOffset * SECTOR, count };
  return {
    storage,
    parts: {
      storage,
      entries: COWD_TABLE_ENTRIES,
      directory: { ...place, bytes: await readDirectory(storage, place, 'grain directory') },
    },
    grains: Math.ceil(header.numSectors / header.grainSize),
    grainSize: header.grainSize,
    firstSector: Math.ceil((place.offset + 4 * header.numGDEntries) / SECTOR),
    zeroed: false,
    compressed: false,
    lastSize: header.numSectors % header.grainSize || header.grainSize,
    isUnclean: header.uncleanShutdown !== 0,
    uncleanAt: COWD_HEADER.fields.uncleanShutdown.at,
    uncleanLength: 4,
  };
}

/** Bits of PAGE_SECTORS sectors; without bits once all are set. */
interface Page {
  bits: Uint8Array | undefined;
  count: number;
}

const PAGE_SECTORS = 32768;

/** A set of sectors. Files are dense as a rule: pages that are full take no room. */
class SectorSet {
  readonly #pages = new Map<number, Page>();

  /** Adds sectors up to the first that is in the set already. @returns how many were added */
  addRun(sector: number, count: number): number {
    for (let at = sector; at < sector + count; ) {
      const page = this.#page(at);
      const { bits } = page;
      if (bits === undefined) return at - sector;
      const index = at % PAGE_SECTORS;
      const byte = index >>> 3;
      // Eight at once where they are all new: grains are long runs.
      const eight = (index & 7) === 0 && at + 8 <= sector + count && bits[byte] === 0;
      const mask = eight ? 0xff : 1 << (index & 7);
      if (((bits[byte] as number) & mask) !== 0) return at - sector;
      bits[byte] = (bits[byte] as number) | mask;
      at += eight ? 8 : 1;
      page.count += eight ? 8 : 1;
      if (page.count === PAGE_SECTORS) page.bits = undefined;
    }
    return count;
  }

  hasAny(sector: number, count: number): boolean {
    for (let at = sector; at < sector + count; at++) {
      const page = this.#pages.get(Math.floor(at / PAGE_SECTORS));
      if (page === undefined) continue;
      const index = at % PAGE_SECTORS;
      if (page.bits === undefined || ((page.bits[index >>> 3] as number) & (1 << (index & 7))) !== 0) return true;
    }
    return false;
  }

  #page(sector: number): Page {
    const number = Math.floor(sector / PAGE_SECTORS);
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = { bits: new Uint8Array(PAGE_SECTORS / 8), count: 0 };
      this.#pages.set(number, page);
    }
    return page;
  }
}

class ExtentCheck {
  readonly #subject: Subject;
  readonly #result: CheckResult;
  readonly #repair: NonNullable<CheckOptions['repair']>;
  /** Every sector of a grain or table in use. */
  readonly #used = new SectorSet();
  /** How many of them are in the data. */
  #usedData = 0;
  #end = 0;
  /** Tables, by the copy they belong to, that lie outside the file or in each other: their entries mean nothing. */
  readonly #lost = { first: new Set<number>(), second: new Set<number>() };

  constructor(subject: Subject, result: CheckResult, repair: NonNullable<CheckOptions['repair']>) {
    this.#subject = subject;
    this.#result = result;
    this.#repair = repair;
  }

  async run(): Promise<void> {
    const { parts, grains, storage } = this.#subject;
    const { directory } = parts;
    this.#result.totalClusters += grains;
    for (let table = 0; table < directory.count; table++) this.#markTables(table);
    if (this.#repair === 'all') await this.#replaceLost();
    // First all entries of what readers see: a place they use is not free for what a second copy says.
    for (let table = 0; table < directory.count; table++) await this.#guarded(() => this.#examine(table, 'first'));
    if (parts.redundant !== undefined && !this.#subject.compressed) {
      for (let table = 0; table < directory.count; table++) await this.#guarded(() => this.#examine(table, 'second'));
    }
    if (!this.#subject.compressed) this.#countLeaks();
    this.#result.imageEndOffset = Math.max(this.#result.imageEndOffset, this.#end * SECTOR);
    if (this.#subject.isUnclean && this.#repair !== 'none' && this.#result.corruptions === 0) {
      await storage.writev(this.#subject.uncleanAt, IoVec.of(new Uint8Array(this.#subject.uncleanLength)));
    }
    if (this.#repair !== 'none') await storage.sync();
  }

  async #guarded(act: () => Promise<void>): Promise<void> {
    try {
      await act();
    } catch (error) {
      if (error instanceof ImageError || !(error instanceof LunetteError)) throw error;
      this.#result.checkErrors++;
      report(this.#result, error.message);
    }
  }

  get #tableSectors(): number {
    return Math.ceil((4 * this.#subject.parts.entries) / SECTOR);
  }

  #markTables(table: number): void {
    const { parts, storage } = this.#subject;
    for (const name of ['first', 'second'] as const) {
      const copy = name === 'first' ? parts.directory : parts.redundant;
      const sector = copy === undefined ? 0 : getU32LE(copy.bytes, 4 * table);
      if (sector === 0) continue;
      if ((sector + this.#tableSectors) * SECTOR > storage.size || !this.#take(sector, this.#tableSectors)) {
        this.#lost[name].add(table);
        this.#result.corruptions++;
        report(this.#result, `grain table ${table} at sector ${sector} is past the end of the file or in another one`);
      }
    }
  }

  /** Marks sectors as used. @returns false when one of them was */
  #take(sector: number, count: number): boolean {
    const added = this.#used.addRun(sector, count);
    this.#usedData += Math.max(0, sector + added - Math.max(sector, this.#subject.firstSector));
    this.#end = Math.max(this.#end, sector + count);
    return added === count;
  }

  async #examine(table: number, pass: 'first' | 'second'): Promise<void> {
    const { parts, storage, grains, zeroed, grainSize, lastSize, compressed } = this.#subject;
    const first = await this.#read('first', table);
    const second = parts.redundant === undefined || compressed ? undefined : await this.#read('second', table);
    if (first === undefined && second === undefined) return;
    const changed = { first: false, second: false };
    const last = Math.min(parts.entries, grains - table * parts.entries);
    for (let i = 0; i < last; i++) {
      const grain = table * parts.entries + i;
      const size = compressed ? 1 : grain === grains - 1 ? lastSize : grainSize;
      const entry = first === undefined ? 0 : getU32LE(first, 4 * i);
      const other = second === undefined ? entry : getU32LE(second, 4 * i);
      const isPlace = (sector: number): boolean =>
        sector >= this.#subject.firstSector && (sector + size) * SECTOR <= storage.size;
      const isHole = (value: number): boolean => value === 0 || (value === 1 && zeroed);
      if (pass === 'first') {
        if (isHole(entry)) continue;
        this.#result.allocatedClusters++;
        if (compressed) this.#result.compressedClusters++;
        if (!isPlace(entry)) {
          const rescued = this.#repair === 'all' && second !== undefined && isPlace(other) && this.#isFree(other, size);
          this.#fault(`grain ${grain} is at sector ${entry}, which is not in the data of the file`, rescued);
          if (rescued && first !== undefined) {
            setU32LE(first, 4 * i, other);
            changed.first = true;
            this.#take(other, size);
          }
        } else if (!this.#take(entry, size))
          this.#fault(`grain ${grain} shares sector ${entry} with another one`, false);
        continue;
      }
      if (entry === other || first === undefined || second === undefined) continue;
      const mend = this.#repair === 'all' || (this.#repair === 'leaks' && (isHole(entry) || isHole(other)));
      if (isHole(entry) && !isHole(other) && isPlace(other) && this.#isFree(other, size)) {
        // Only the second copy knows of a grain.
        this.#stale(`grain ${grain} is in the second copy of its table only`, mend);
        if (!mend) continue;
        setU32LE(first, 4 * i, other);
        changed.first = true;
        this.#take(other, size);
        continue;
      }
      if (isHole(entry) || isHole(other)) this.#stale(`the second copy of the entry of grain ${grain} is stale`, mend);
      else this.#fault(`the copies of the entry of grain ${grain} differ: ${entry} and ${other}`, mend);
      if (!mend) continue;
      setU32LE(second, 4 * i, entry);
      changed.second = true;
    }
    if (changed.first && first !== undefined) await this.#write(parts.directory.bytes, table, first);
    if (changed.second && second !== undefined) await this.#write(parts.redundant?.bytes, table, second);
  }

  /** A lost table gets a new place, behind everything, with what the other copy says. */
  async #replaceLost(): Promise<void> {
    const { parts, storage, compressed } = this.#subject;
    if (parts.redundant === undefined || compressed) return;
    for (const [name, other, copy] of [
      ['first', 'second', parts.directory],
      ['second', 'first', parts.redundant],
    ] as const) {
      for (const table of [...this.#lost[name]]) {
        const bytes = await this.#read(other, table);
        if (bytes === undefined) continue;
        const sector = Math.ceil(storage.size / SECTOR);
        await storage.writev(sector * SECTOR, IoVec.of(bytes));
        await storage.sync();
        setU32LE(copy.bytes, 4 * table, sector);
        await storage.writev(copy.offset + 4 * table, IoVec.of(copy.bytes, 4 * table, 4));
        this.#take(sector, this.#tableSectors);
        this.#lost[name].delete(table);
        this.#result.corruptions--;
        this.#result.corruptionsFixed++;
      }
    }
  }

  #isFree(sector: number, count: number): boolean {
    return !this.#used.hasAny(sector, count);
  }

  #fault(message: string, fixed: boolean): void {
    if (fixed) this.#result.corruptionsFixed++;
    else this.#result.corruptions++;
    report(this.#result, message);
  }

  #stale(message: string, fixed: boolean): void {
    if (fixed) this.#result.leaksFixed++;
    else this.#result.leaks++;
    report(this.#result, message);
  }

  /** Grains in the file that no table names. Their space is used by nobody until the disk is converted. */
  #countLeaks(): void {
    const { storage, firstSector, grainSize } = this.#subject;
    const sectors = Math.floor(storage.size / SECTOR) - firstSector;
    const orphans = Math.max(0, Math.floor((sectors - this.#usedData) / grainSize));
    if (orphans === 0) return;
    this.#result.leaks += orphans;
    report(this.#result, `about ${orphans} grains of the file are in no grain table`);
  }

  /** A table of one of the copies; undefined when there is none that can be read. */
  async #read(copy: 'first' | 'second', table: number): Promise<Uint8Array | undefined> {
    const { parts, storage } = this.#subject;
    const directory = copy === 'first' ? parts.directory : parts.redundant;
    const sector = directory === undefined ? 0 : getU32LE(directory.bytes, 4 * table);
    if (sector === 0 || this.#lost[copy].has(table)) return undefined;
    const bytes = new Uint8Array(4 * parts.entries);
    await storage.readv(sector * SECTOR, IoVec.of(bytes));
    return bytes;
  }

  async #write(directory: Uint8Array | undefined, table: number, bytes: Uint8Array): Promise<void> {
    if (directory === undefined) return;
    await this.#subject.storage.writev(getU32LE(directory, 4 * table) * SECTOR, IoVec.of(bytes));
  }
}
