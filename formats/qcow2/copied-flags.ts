import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignDown, alignUp } from '../core/units.ts';
import { COMPRESSED_BIT, COPIED, getU32, hostOffset, setU32 } from './l2.ts';
import type { PointerTable } from './pointer-table.ts';
import { readBytes } from './refcount.ts';
import { getRefcount } from './refcount-codec.ts';
import type { WriteState } from './write-state.ts';

const SECTOR = 512;
/** Tables that are read and written at once. */
const DEPTH = 8;

/**
 * Clears COPIED in all entries of L2 tables, in the file: what they refer to is about to be shared. Not synced.
 *
 * The tables are written around the cache, whose slices of them must be clean; it forgets them. No writer may be active.
 */
export async function clearCopied(state: WriteState, tables: readonly number[]): Promise<void> {
  let next = 0;
  let failed = false;
  const worker = async () => {
    while (next < tables.length && !failed) {
      const table = tables[next++] as number;
      try {
        const bytes = await readTable(state, table);
        await writeChanged(state, table, bytes, withoutCopied(bytes, state.parts.geometry.entrySize));
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  const workers = Array.from({ length: Math.min(DEPTH, tables.length) }, worker);
  for (const result of await Promise.allSettled(workers)) if (result.status === 'rejected') throw result.reason;
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

interface Changed {
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
      const alone = (await counts.at(table / geometry.clusterSize)) === 1;
      if (l1.copied(index) !== alone) l1.set(index, table, alone);
      await restoreTable(state, table, counts);
    }
  } finally {
    counts.release();
  }
}

async function restoreTable(state: WriteState, table: number, counts: CountReader): Promise<void> {
  const { clusterSize, entrySize } = state.parts.geometry;
  const bytes = await readTable(state, table);
  let changed: Changed | undefined;
  for (let at = 0; at < clusterSize; at += entrySize) {
    const high = getU32(bytes, at);
    const low = getU32(bytes, at + 4);
    const offset = hostOffset(high, low);
    let alone = false;
    if ((high & COMPRESSED_BIT) === 0 && offset !== 0) {
      const cluster = Math.floor(offset / clusterSize);
      const value = counts.tryAt(cluster);
      alone = (value < 0 ? await counts.at(cluster) : value) === 1;
    }
    if (alone === ((high & COPIED) !== 0)) continue;
    setU32(bytes, at, (alone ? high | COPIED : high & ~COPIED) >>> 0);
    changed = { from: changed?.from ?? at, to: at + entrySize };
  }
  await writeChanged(state, table, bytes, changed);
}

/** Refcounts one after the other: neighbours, which are the rule, are found without a look-up or a wait. */
class CountReader {
  readonly #state: WriteState;
  #slice = -1;

  constructor(state: WriteState) {
    this.#state = state;
  }

  /** A refcount when it is in the slice used last, else -1. */
  tryAt(cluster: number): number {
    const { refcounts, slices, geometry } = this.#state.parts;
    const slice = refcounts.sliceOf(cluster);
    if (slice < 0) return 0;
    if (slice !== this.#slice) return -1;
    return getRefcount(slices.peek(slice) as Uint8Array, geometry.refcountOrder, cluster % geometry.refcountsPerSlice);
  }

  async at(cluster: number): Promise<number> {
    const { refcounts, slices } = this.#state.parts;
    const slice = refcounts.sliceOf(cluster);
    if (slice >= 0 && slice !== this.#slice) {
      this.release();
      await slices.hold(slice, 'refcount');
      this.#slice = slice;
    }
    return this.tryAt(cluster);
  }

  release(): void {
    if (this.#slice >= 0) this.#state.parts.slices.unhold(this.#slice);
    this.#slice = -1;
  }
}

async function readTable(state: WriteState, table: number): Promise<Uint8Array> {
  const { storage, geometry } = state.parts;
  if (table + geometry.clusterSize > storage.size) {
    throw new ImageError('CORRUPT', 'an L2 table is outside the file', {
      path: storage.path,
      field: 'L1 table',
      offset: table,
    });
  }
  return readBytes(storage, table, geometry.clusterSize);
}

/** Writes the sectors that changed, in one piece. */
async function writeChanged(
  state: WriteState,
  table: number,
  bytes: Uint8Array,
  changed: Changed | undefined,
): Promise<void> {
  if (changed === undefined) return;
  const { storage, slices, geometry } = state.parts;
  const from = alignDown(changed.from, SECTOR);
  try {
    await storage.writev(table + from, IoVec.of(bytes, from, alignUp(changed.to, SECTOR) - from));
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
