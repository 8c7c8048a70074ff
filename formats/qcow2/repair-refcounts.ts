import { ImageError, LunetteError } from '../core/errors.ts';
import { alignUp } from '../core/units.ts';
import { countReferences } from './count-references.ts';
import { INCOMPATIBLE } from './features.ts';
import { HEADER_V3, type Qcow2Header } from './header.ts';
import { COMPRESSED_BIT, COPIED, getU32, hostOffset, setU32 } from './l2.ts';
import { getRefcount, setRefcount } from './refcount-codec.ts';
import type { ReferenceCounts } from './reference-counts.ts';
import type { SnapshotTable } from './snapshot.ts';
import type { WriteState } from './write-state.ts';

/**
 * Brings refcounts and COPIED flags in line with what refers to clusters, and clears the dirty bit: what a writer with lazy refcounts
 * left undone when it was killed. Interrupted, it starts over: the bit goes last.
 *
 * @throws {ImageError} CORRUPT when there is more wrong than refcounts
 */
export async function repairRefcounts(image: {
  readonly header: Qcow2Header;
  readonly snapshotTable: SnapshotTable;
  readonly state: WriteState;
  readonly flush: () => Promise<void>;
}): Promise<void> {
  const { header, snapshotTable, state, flush } = image;
  const { storage, l1, refcounts, brokenTables } = state.parts;
  try {
    if (brokenTables.size > 0) {
      throw new ImageError('CORRUPT', 'an L2 table lies on other metadata', { field: 'L1 table', offset: l1.offset });
    }
    const counts = await countReferences({ storage, header, snapshotTable, l1, refcountTable: refcounts.table });
    const repair = new Repair(state, counts, flush);
    await repair.refcounts();
    await repair.copiedFlags();
  } catch (error) {
    if (error instanceof LunetteError && error.code === 'CORRUPT') {
      error.help ??=
        'It was not closed by its last writer, and there is more damage than that: repair it with a check.';
    }
    throw error;
  }
  await flush();
  await state.parts.header.update((view) => {
    const { high, low } = header.incompatibleFeatures;
    HEADER_V3.write(view, { incompatibleFeatures: { high, low: (low & ~INCOMPATIBLE.DIRTY) >>> 0 } });
  });
  await storage.sync();
}

class Repair {
  readonly #state: WriteState;
  readonly #counts: ReferenceCounts;
  readonly #flush: () => Promise<void>;
  /** No cluster from here on is referred to. */
  #end: number;

  constructor(state: WriteState, counts: ReferenceCounts, flush: () => Promise<void>) {
    this.#state = state;
    this.#counts = counts;
    this.#flush = flush;
    this.#end = counts.limit;
  }

  async refcounts(): Promise<void> {
    const { refcounts, geometry } = this.#state.parts;
    const { refcountsPerBlock } = geometry;
    const entries = refcounts.table.entries;
    for (let index = 0; index < entries; index++) {
      if (refcounts.table.checkedTarget(index) === 0) {
        const first = index * refcountsPerBlock;
        if (!this.#counts.anyIn(first, first + refcountsPerBlock)) continue;
        await this.#placeBlock(index);
      }
      for (let i = 0; i < geometry.slicesPerCluster; i++) {
        await this.#slice(index * refcountsPerBlock + i * geometry.refcountsPerSlice);
      }
      if (this.#state.parts.cache.pinnedFull) await this.#flush();
    }
    if (this.#counts.anyIn(entries * refcountsPerBlock, Math.max(entries * refcountsPerBlock, this.#end))) {
      throw new ImageError('CORRUPT', 'the refcount table is too small for the file', {
        field: 'refcount table',
        offset: refcounts.table.offset,
      });
    }
  }

  /** A block for counts that have none, behind everything that is used. */
  async #placeBlock(index: number): Promise<void> {
    const { refcounts, storage, geometry } = this.#state.parts;
    const cluster = Math.max(this.#end, alignUp(storage.size, geometry.clusterSize) / geometry.clusterSize);
    await refcounts.placeEmptyBlock(index, cluster);
    this.#counts.set(cluster, 1);
    this.#end = cluster + 1;
  }

  /** Corrects the counts of one slice. */
  async #slice(first: number): Promise<void> {
    const { refcounts, slices, geometry } = this.#state.parts;
    const { refcountsPerSlice, refcountOrder, refcountMax } = geometry;
    const slice = refcounts.sliceOf(first);
    await slices.hold(slice, 'refcount');
    try {
      let bytes = slices.peek(slice) as Uint8Array;
      let changing = false;
      for (let i = 0; i < refcountsPerSlice; i++) {
        const expected = this.#counts.get(first + i);
        if (getRefcount(bytes, refcountOrder, i) === expected) continue;
        if (expected > refcountMax) {
          throw new ImageError('CORRUPT', `a cluster has ${expected} references, more than its refcount can say`, {
            field: 'refcount',
            offset: (first + i) * geometry.clusterSize,
          });
        }
        if (!changing) bytes = slices.modify(slice);
        changing = true;
        setRefcount(bytes, refcountOrder, i, expected);
      }
    } finally {
      slices.unhold(slice);
    }
  }

  /** Corrects COPIED in the active tables: set exactly where the refcount is one. */
  async copiedFlags(): Promise<void> {
    const { l1, geometry } = this.#state.parts;
    const { clusterSize, sliceSize, slicesPerCluster } = geometry;
    for (let index = 0; index < l1.entries; index++) {
      const table = l1.checkedTarget(index);
      if (table === 0) continue;
      const alone = this.#counts.get(table / clusterSize) === 1;
      if (l1.copied(index) !== alone) l1.set(index, table, alone);
      // Data in a file of its own has no refcounts: its flags are as its writer left them.
      if (this.#state.external) continue;
      // Entries of a table that a snapshot has as well are shared with it, all of them.
      for (let i = 0; i < slicesPerCluster; i++) await this.#copiedInSlice(table / sliceSize + i);
      if (this.#state.parts.cache.pinnedFull) await this.#flush();
    }
  }

  async #copiedInSlice(slice: number): Promise<void> {
    const { slices, geometry } = this.#state.parts;
    const { clusterSize, entrySize, sliceSize } = geometry;
    await slices.hold(slice, 'mapping');
    try {
      let bytes = slices.peek(slice) as Uint8Array;
      let changing = false;
      for (let at = 0; at < sliceSize; at += entrySize) {
        const high = getU32(bytes, at);
        const offset = hostOffset(high, getU32(bytes, at + 4));
        const standard = (high & COMPRESSED_BIT) === 0 && offset !== 0;
        const alone = standard && this.#counts.get(offset / clusterSize) === 1;
        if (alone === ((high & COPIED) !== 0)) continue;
        if (!changing) bytes = slices.modify(slice);
        changing = true;
        setU32(bytes, at, (alone ? high | COPIED : high & ~COPIED) >>> 0);
      }
    } finally {
      slices.unhold(slice);
    }
  }
}
