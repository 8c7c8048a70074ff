import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignDown, alignUp } from '../core/units.ts';
import { COMPRESSED_BIT, COPIED, hostOffset, runLength } from './l2.ts';
import type { PointerTable } from './pointer-table.ts';
import { getRefcount } from './refcount-codec.ts';
import { scanTables } from './table-scan.ts';
import type { WriteState } from './write-state.ts';

const SECTOR = 512;
/** Writes in flight while tables are changed. */
const DEPTH = 8;

/**
 * Clears COPIED in all entries of L2 tables, in the file: what they refer to is about to be shared. Not synced.
 *
 * The tables are written around the cache, whose slices of them must be clean; it forgets them. No writer may be active.
 */
export async function clearCopied(state: WriteState, tables: readonly number[]): Promise<void> {
  const { entrySize } = state.parts.geometry;
  await changeTables(state, tables, (bytes) => withoutCopied(bytes, entrySize));
}

/** Reads L2 tables in the order of the file, and writes what `change` made of them, several at a time. Rules as for clearCopied(). */
export async function changeTables(
  state: WriteState,
  tables: readonly number[],
  change: (bytes: Uint8Array, table: number) => Changed | undefined | Promise<Changed | undefined>,
): Promise<void> {
  const { storage, geometry, slices } = state.parts;
  const offsets = Float64Array.from(tables).sort();
  for (const table of offsets) refuseOutside(state, table);
  const writes = new Set<Promise<void>>();
  let failure: { readonly error: unknown } | undefined;
  const write = (bytes: Uint8Array, table: number, { from, to }: Changed): void => {
    const start = alignDown(from, SECTOR);
    if (storage.tryWritev(table + start, IoVec.of(bytes, start, alignUp(to, SECTOR) - start))) {
      slices.forget(table / geometry.sliceSize, geometry.slicesPerCluster);
      return;
    }
    const sectors = bytes.slice(start, alignUp(to, SECTOR)); // what the table was read into is read into again
    const work = writeSectors(state, table, start, sectors).then(
      () => void writes.delete(work),
      (error: unknown) => {
        failure ??= { error };
        writes.delete(work);
      },
    );
    writes.add(work);
  };
  try {
    await scanTables(storage, offsets, geometry.clusterSize, {
      visit: (bytes, table) => {
        const changed = change(bytes, table);
        if (changed === undefined) return undefined;
        if (changed instanceof Promise || writes.size >= DEPTH) {
          return (async () => {
            const range = await changed;
            if (range === undefined) return;
            while (writes.size >= DEPTH) await Promise.race(writes);
            if (failure !== undefined) throw failure.error;
            write(bytes, table, range);
          })();
        }
        write(bytes, table, changed);
        return undefined;
      },
    });
  } finally {
    await Promise.all(writes);
  }
  if (failure !== undefined) throw failure.error;
}

/** Clears COPIED in a table's bytes. @returns the first and last byte that changed, plus one; undefined when none did */
function withoutCopied(bytes: Uint8Array, entrySize: number): Changed | undefined {
  let changed: Changed | undefined;
  for (let at = 0; at < bytes.length; at += entrySize) {
    if (((bytes[at] as number) & 0x80) === 0) continue;
    bytes[at] = (bytes[at] as number) & 0x7f;
    changed = { from: changed?.from ?? at, to: at + entrySize };
  }
  return changed;
}

/** The first byte of a table that changed, and the one behind the last. */
export interface Changed {
  readonly from: number;
  readonly to: number;
}

/**
 * Sets COPIED in the active tables exactly where the refcount is one. Counts that it relies on must be durable. Leaves changes of the L1
 * table to the next flush, which also makes those of L2 tables durable.
 */
export async function restoreCopied(state: WriteState): Promise<void> {
  const { l1, geometry } = state.parts;
  const counts = new CountReader(state);
  try {
    for (let index = 0; index < l1.entries; index++) {
      const table = l1.checkedTarget(index);
      if (table === 0) continue;
      const cluster = table / geometry.clusterSize;
      if (!counts.has(cluster)) await counts.load(cluster);
      const alone = counts.at(cluster) === 1;
      if (l1.copied(index) !== alone) l1.set(index, table, alone);
    }
    await changeTables(state, tablesOf(l1), (bytes) => withCopied(bytes, 0, undefined, geometry, counts));
  } finally {
    counts.release();
  }
}

/** Sets COPIED in a table's bytes from `start` on; goes on later when it has to wait for refcounts. */
function withCopied(
  bytes: Uint8Array,
  start: number,
  before: Changed | undefined,
  geometry: WriteState['parts']['geometry'],
  counts: CountReader,
): Changed | undefined | Promise<Changed | undefined> {
  const { clusterSize, entrySize } = geometry;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let from = before?.from ?? -1;
  let to = before?.to ?? -1;
  for (let at = start; at < bytes.length; ) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const offset = hostOffset(high, low);
    if ((high & COMPRESSED_BIT) !== 0 || offset === 0) {
      if ((high & COPIED) !== 0) {
        view.setUint32(at, (high & ~COPIED) >>> 0);
        if (from < 0) from = at;
        to = at + entrySize;
      }
      at += entrySize;
      continue;
    }
    const first = Math.floor(offset / clusterSize);
    if (!counts.has(first)) {
      const changed = from < 0 ? undefined : { from, to };
      return counts.load(first).then(() => withCopied(bytes, at, changed, geometry, counts));
    }
    // Entries that map clusters in a row agree in their flag: only those with another refcount are looked at again.
    const run = entrySize === 8 ? runLength(view, at, high, low, clusterSize) : 1;
    const count = Math.min(run, counts.end - first);
    const copied = (high & COPIED) !== 0;
    for (let i = 0; i < count; ) {
      const same = counts.run(first + i, count - i, copied);
      i += same;
      const other = counts.run(first + i, count - i, !copied);
      if (other === 0) continue;
      if (from < 0) from = at + i * entrySize;
      for (const end = i + other; i < end; i++) {
        const flagged = at + i * entrySize;
        bytes[flagged] = (bytes[flagged] as number) ^ (COPIED >>> 24);
      }
      to = at + i * entrySize;
    }
    at += count * entrySize;
  }
  return from < 0 ? undefined : { from, to };
}

/** Refcounts of one slice at a time: neighbours, which are the rule, are found without a look-up or a wait. Nobody changes refcounts meanwhile. */
class CountReader {
  readonly #state: WriteState;
  readonly #order: number;
  #slice = -1;
  #first = 0;
  /** Cluster behind the last whose refcount is at hand. */
  end = 0;
  #bytes: Uint8Array | undefined;

  constructor(state: WriteState) {
    this.#state = state;
    this.#order = state.parts.geometry.refcountOrder;
  }

  /** Whether a cluster's refcount is at hand. */
  has(cluster: number): boolean {
    return cluster >= this.#first && cluster < this.end;
  }

  /** The refcount of a cluster that is at hand. */
  at(cluster: number): number {
    return this.#bytes === undefined ? 0 : getRefcount(this.#bytes, this.#order, cluster - this.#first);
  }

  /** How many of `count` clusters that are at hand have, one after the other, a refcount of one (`alone`) or another. */
  run(cluster: number, count: number, alone: boolean): number {
    const bytes = this.#bytes;
    const first = cluster - this.#first;
    let i = 0;
    if (bytes === undefined) return alone ? 0 : count;
    if (this.#order === 4) {
      for (let at = first * 2; i < count; i++, at += 2) {
        if ((bytes[at + 1] === 1 && bytes[at] === 0) !== alone) break;
      }
    } else {
      while (i < count && (getRefcount(bytes, this.#order, first + i) === 1) === alone) i++;
    }
    return i;
  }

  async load(cluster: number): Promise<void> {
    const { refcounts, slices, geometry } = this.#state.parts;
    this.release();
    const slice = await refcounts.ready(cluster);
    if (slice >= 0) {
      await slices.hold(slice, 'refcount');
      this.#slice = slice;
      this.#bytes = slices.peek(slice);
    }
    this.#first = cluster - (cluster % geometry.refcountsPerSlice);
    this.end = this.#first + geometry.refcountsPerSlice;
  }

  release(): void {
    if (this.#slice >= 0) this.#state.parts.slices.unhold(this.#slice);
    this.#slice = -1;
    this.#bytes = undefined;
    this.end = 0;
  }
}

function refuseOutside(state: WriteState, table: number): void {
  const { storage, geometry } = state.parts;
  if (table + geometry.clusterSize <= storage.size) return;
  throw new ImageError('CORRUPT', 'an L2 table is outside the file', {
    path: storage.path,
    field: 'L1 table',
    offset: table,
  });
}

/** Writes the sectors of a table that changed. */
async function writeSectors(state: WriteState, table: number, start: number, sectors: Uint8Array): Promise<void> {
  const { storage, slices, geometry } = state.parts;
  try {
    await storage.writev(table + start, IoVec.of(sectors));
  } finally {
    slices.forget(table / geometry.sliceSize, geometry.slicesPerCluster);
  }
}

/** The tables that an L1 table points to, each once. @throws {ImageError} CORRUPT */
export function tablesOf(l1: PointerTable): number[] {
  const tables = new Set<number>();
  for (let i = 0; i < l1.entries; i++) {
    const table = l1.checkedTarget(i);
    if (table !== 0) tables.add(table);
  }
  return [...tables];
}
