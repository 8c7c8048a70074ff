import { alignDown, alignUp } from '../core/units.ts';
import { ALL_SUBCLUSTERS, EntryView, putEntry, touchedSubclusters } from './entry.ts';
import { ensureL2Table } from './l2-tables.ts';
import type { Unlinked } from './unlinked.ts';
import type { WriteState } from './write-state.ts';

/** What becomes of a cluster: reads as zeros with its space kept, with its space given back, or (version 2) shows nothing at all. */
export type ZeroMode = 'keep' | 'unmap' | 'deallocate';

/** A range that is to read as zeros: guest offsets, aligned to subclusters where the image has them, else to clusters. */
export interface ZeroRange {
  readonly start: number;
  readonly end: number;
  readonly mode: ZeroMode;
  /** Collects host clusters that read as zeros as a whole now but keep their place. */
  readonly kept?: Unlinked | undefined;
}

/** What changing one entry takes. `refused`: part of a compressed cluster has no way to say that it reads as zeros. */
type Change = 'none' | 'flag' | 'clear' | 'refused';

/**
 * Makes the clusters of a range read as zeros, up to the end of one slice of an L2 table. Callers hold the mutex.
 *
 * A flagged cluster keeps its host cluster; a cleared one drops it: version 3 says "zeros" in its place, version 2 nothing. Of a
 * cluster that the range covers in part only these subclusters change; it is dropped when it has no others.
 *
 * @returns guest offset up to which it is done; -1 when it was refused, with nothing changed
 */
export async function zeroSlice(state: WriteState, range: ZeroRange): Promise<number> {
  const { geometry, slices, l1, hasParent } = state.parts;
  const { clusterSize, sliceSize, sliceCoverage, l2Coverage, entrySize } = geometry;
  const { start, end, mode } = range;
  const l1Index = Math.floor(start / l2Coverage);
  const table = l1.checkedTarget(l1Index);
  if (table === 0 && !hasParent) return Math.min(end, (l1Index + 1) * l2Coverage);
  const base = alignDown(start, sliceCoverage);
  const stop = Math.min(end, base + sliceCoverage);
  const part = {
    base,
    first: Math.floor((start - base) / clusterSize),
    last: alignUp(stop - base, clusterSize) / clusterSize,
  };
  const sliceInTable = Math.floor((start % l2Coverage) / sliceCoverage);
  // Nothing to change: no table is made or copied for it.
  const what = table === 0 ? 'change' : await look(state, table / sliceSize + sliceInTable, part, range);
  if (what === 'none') return stop;
  if (what === 'refused') return -1;

  const slice = (await ensureL2Table(state, l1Index)) / sliceSize + sliceInTable;
  await slices.hold(slice, 'mapping');
  try {
    const entry = new EntryView();
    const bytes = slices.modify(slice);
    for (let i = part.first; i < part.last; i++) {
      const at = i * entrySize;
      const guest = base + i * clusterSize;
      const mask = covered(state, range, guest);
      entry.read(state, bytes, at, slice * sliceSize, guest);
      const { offset, copied } = entry;
      const zeros = (entry.zeros | mask) >>> 0;
      const allocated = (entry.allocated & ~mask) >>> 0;
      const change = changeOf(state, entry, mask, mode);
      if (change === 'flag') {
        putEntry(geometry, bytes, at, { offset, copied, allocated, zeros });
      } else if (change === 'clear') {
        entry.unlink(state, guest, mode !== 'keep');
        const left = mode === 'deallocate' ? 0 : zeros;
        putEntry(geometry, bytes, at, { offset: 0, copied: false, allocated: 0, zeros: left });
      }
      if (change !== 'clear' && entry.own && allocated === 0) range.kept?.add(offset / clusterSize, 1, true);
    }
  } finally {
    slices.unhold(slice);
  }
  return stop;
}

/** Subclusters of the cluster at a guest offset that a range covers. */
function covered(state: WriteState, range: ZeroRange, guest: number): number {
  const { geometry } = state.parts;
  const { clusterSize } = geometry;
  return touchedSubclusters(geometry, Math.max(0, range.start - guest), Math.min(clusterSize, range.end - guest));
}

/** Looks at everything before anything is changed: a broken entry leaves the slice as it was. */
async function look(
  state: WriteState,
  slice: number,
  part: { readonly base: number; readonly first: number; readonly last: number },
  range: ZeroRange,
): Promise<'none' | 'change' | 'refused'> {
  const { slices, geometry } = state.parts;
  await slices.hold(slice, 'mapping');
  try {
    const bytes = slices.peek(slice) as Uint8Array;
    const entry = new EntryView();
    let result: 'none' | 'change' = 'none';
    for (let i = part.first; i < part.last; i++) {
      const guest = part.base + i * geometry.clusterSize;
      entry.read(state, bytes, i * geometry.entrySize, slice * geometry.sliceSize, guest);
      const change = changeOf(state, entry, covered(state, range, guest), range.mode);
      if (change === 'refused') return 'refused';
      if (change !== 'none') result = 'change';
    }
    return result;
  } finally {
    slices.unhold(slice);
  }
}

function changeOf(state: WriteState, entry: EntryView, mask: number, mode: ZeroMode): Change {
  if (entry.compressed) return mask === ALL_SUBCLUSTERS ? 'clear' : 'refused';
  // Nothing of its own: reads as zeros already, unless a parent shows through.
  const reads = (entry.allocated & mask) === 0 && (!state.parts.hasParent || (mask & ~entry.zeros) === 0);
  if (entry.placed && mode !== 'keep' && (entry.allocated & ~mask) === 0) return 'clear';
  if (reads) return 'none';
  return entry.placed ? 'flag' : 'clear';
}
