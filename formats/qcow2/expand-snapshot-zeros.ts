import { ImageError } from '../core/errors.ts';
import { divideUp } from '../core/units.ts';
import { changeTables } from './copied-flags.ts';
import { COMPRESSED_BIT, getU32, hostOffset, OFFSET_LOW, setEntry, ZERO_BIT } from './l2.ts';
import { PointerTable } from './pointer-table.ts';
import { ReferenceCounts } from './reference-counts.ts';
import type { Qcow2Snapshot } from './snapshot.ts';
import { scanTables } from './table-scan.ts';
import type { WriteState } from './write-state.ts';

/** Refcounts of version 2 have 16 bits. */
const MAX_REFERENCES = 0xffff;

/** What it takes to do without the zero flag in the tables of snapshots. */
export interface ZeroExpansion {
  /** L2 tables in which it is, with how many L1 entries refer to each. */
  readonly tables: ReadonlyMap<number, number>;
  /** How many references each of the clusters of zeros gets that take the place of zero clusters; none where no parent would show. */
  readonly fills: readonly number[];
  /** References to host clusters that zero clusters had kept. */
  readonly losses: ReferenceCounts;
}

/**
 * Looks through the tables of all snapshots, each once. Nothing is dirty in memory.
 *
 * @throws {ImageError} CORRUPT; TOO_LARGE for tables that more snapshots share than version 2 can count
 */
export async function planZeroExpansion(
  state: WriteState,
  snapshots: readonly Qcow2Snapshot[],
): Promise<ZeroExpansion> {
  const { storage, geometry, hasParent } = state.parts;
  const { clusterSize } = geometry;
  const references = new Map<number, number>();
  for (const { l1TableOffset: offset, l1Size: entries } of snapshots) {
    const l1 = await PointerTable.load(storage, { name: 'snapshot L1 table', offset, entries, clusterSize });
    for (let i = 0; i < l1.entries; i++) {
      const table = l1.checkedTarget(i);
      if (table !== 0) references.set(table, (references.get(table) ?? 0) + 1);
    }
  }
  const tables = new Map<number, number>();
  const fills = new Fills(state);
  const losses = new ReferenceCounts(divideUp(storage.size, clusterSize) + 1);
  const offsets = Float64Array.from(references.keys()).sort();
  await scanTables(storage, offsets, clusterSize, {
    visit: (bytes, offset) => {
      const times = references.get(offset) as number;
      for (const { at, host } of zeroEntries(bytes, geometry.entrySize)) {
        tables.set(offset, times);
        if (hasParent) fills.take(times, offset);
        if (host === 0) continue;
        if (host % clusterSize === 0 && losses.add(host / clusterSize, 1, times)) continue;
        throw new ImageError('CORRUPT', 'a zero cluster of a snapshot keeps a place that is no cluster of the file', {
          path: storage.path,
          field: 'L2 table',
          offset: offset + at,
        });
      }
      return undefined;
    },
  });
  return { tables, fills: fills.references, losses };
}

/**
 * Takes the flag out of the tables, in the file. What an entry says shows the same before and after: the tables may be changed one by
 * one. Not synced.
 *
 * @param clusters where the clusters of zeros are, one for each of `fills`; their refcounts are durable
 */
export async function expandSnapshotZeros(
  state: WriteState,
  { tables, fills }: ZeroExpansion,
  clusters: readonly number[],
): Promise<void> {
  const { entrySize, clusterSize } = state.parts.geometry;
  const again = new Fills(state);
  await changeTables(state, [...tables.keys()], (bytes, offset) => {
    let from = -1;
    let to = -1;
    for (const { at } of zeroEntries(bytes, entrySize)) {
      const fill = fills.length === 0 ? 0 : (clusters[again.take(tables.get(offset) as number, offset)] as number);
      setEntry(bytes, at, fill * clusterSize, 0, 0);
      if (from < 0) from = at;
      to = at + entrySize;
    }
    return from < 0 ? undefined : { from, to };
  });
}

/** Entries with the zero flag. */
function* zeroEntries(bytes: Uint8Array, entrySize: number): Generator<{ at: number; host: number }> {
  for (let at = 0; at < bytes.length; at += entrySize) {
    const high = getU32(bytes, at);
    const low = getU32(bytes, at + 4);
    if ((high & COMPRESSED_BIT) !== 0 || (low & ZERO_BIT) === 0) continue;
    yield { at, host: hostOffset(high, (low & OFFSET_LOW) >>> 0) };
  }
}

/** Shares out references among clusters of zeros: the same way each time the tables are gone through. */
class Fills {
  /** References to each cluster. */
  readonly references: number[] = [];
  readonly #most: number;
  readonly #path: string;

  constructor(state: WriteState) {
    this.#most = Math.min(MAX_REFERENCES, state.parts.geometry.refcountMax);
    this.#path = state.parts.storage.path;
  }

  /** @returns the index of the cluster that takes `times` references more */
  take(times: number, table: number): number {
    if (times > this.#most) {
      throw new ImageError('TOO_LARGE', `${times} snapshots share a table: compat 0.10 cannot count them`, {
        path: this.#path,
        field: 'refcount',
        offset: table,
      });
    }
    const last = this.references.length - 1;
    const sum = (this.references[last] ?? Number.POSITIVE_INFINITY) + times;
    if (sum > this.#most) return this.references.push(times) - 1;
    this.references[last] = sum;
    return last;
  }
}
