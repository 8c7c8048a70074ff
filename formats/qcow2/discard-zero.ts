import { alignDown, alignUp } from '../core/units.ts';
import { EntryView } from './entry.ts';
import { COPIED, setEntry, ZERO_BIT } from './l2.ts';
import { ensureL2Table } from './l2-tables.ts';
import type { WriteState } from './write-state.ts';

/** What becomes of a cluster: reads as zeros with its space kept, with its space given back, or (version 2) shows nothing at all. */
export type ZeroMode = 'keep' | 'unmap' | 'deallocate';

/** What changing one entry takes. */
type Change = 'none' | 'flag' | 'clear';

/**
 * Makes the clusters of a range read as zeros, up to the end of one slice of an L2 table. Callers hold the mutex.
 *
 * A flagged cluster keeps its host cluster; a cleared one drops it: version 3 says "zeros" in its place, version 2 nothing.
 *
 * @returns guest offset up to which it is done
 */
export async function zeroSlice(state: WriteState, start: number, end: number, mode: ZeroMode): Promise<number> {
  const { geometry, slices, l1, hasParent } = state.parts;
  const { clusterSize, sliceSize, sliceCoverage, l2Coverage, entrySize } = geometry;
  const l1Index = Math.floor(start / l2Coverage);
  const table = l1.checkedTarget(l1Index);
  if (table === 0 && !hasParent) return Math.min(end, (l1Index + 1) * l2Coverage);
  const stop = Math.min(end, alignDown(start, sliceCoverage) + sliceCoverage);
  const first = (start % sliceCoverage) / clusterSize;
  const last = (alignUp(stop, clusterSize) - alignDown(start, sliceCoverage)) / clusterSize;
  const sliceInTable = Math.floor((start % l2Coverage) / sliceCoverage);
  // Nothing to change: no table is made or copied for it.
  if (table !== 0 && !(await anyChange(state, table / sliceSize + sliceInTable, first, last, mode))) return stop;

  const slice = (await ensureL2Table(state, l1Index)) / sliceSize + sliceInTable;
  await slices.hold(slice, 'mapping');
  try {
    const entry = new EntryView();
    // Everything is looked at before anything is changed: a broken entry leaves the slice as it was.
    const before = slices.peek(slice) as Uint8Array;
    for (let i = first; i < last; i++) entry.read(state, before, i * entrySize, slice * sliceSize);
    const bytes = slices.modify(slice);
    for (let i = first; i < last; i++) {
      const at = i * entrySize;
      entry.read(state, bytes, at, slice * sliceSize);
      switch (changeOf(state, entry, mode)) {
        case 'flag':
          setEntry(bytes, at, entry.offset, entry.copied ? COPIED : 0, ZERO_BIT);
          break;
        case 'clear':
          entry.unlink(state, alignDown(start, sliceCoverage) + i * clusterSize, mode !== 'keep');
          setEntry(bytes, at, 0, 0, mode === 'deallocate' ? 0 : ZERO_BIT);
          break;
      }
    }
  } finally {
    slices.unhold(slice);
  }
  return stop;
}

async function anyChange(
  state: WriteState,
  slice: number,
  first: number,
  last: number,
  mode: ZeroMode,
): Promise<boolean> {
  const { slices, geometry } = state.parts;
  await slices.hold(slice, 'mapping');
  try {
    const bytes = slices.peek(slice) as Uint8Array;
    const entry = new EntryView();
    for (let i = first; i < last; i++) {
      entry.read(state, bytes, i * geometry.entrySize, slice * geometry.sliceSize);
      if (changeOf(state, entry, mode) !== 'none') return true;
    }
    return false;
  } finally {
    slices.unhold(slice);
  }
}

function changeOf(state: WriteState, entry: EntryView, mode: ZeroMode): Change {
  if (entry.compressed) return 'clear';
  if (entry.offset !== 0) {
    if (mode !== 'keep') return 'clear';
    return entry.zero ? 'none' : 'flag';
  }
  // Nothing of its own: reads as zeros already, unless a parent shows through.
  return entry.zero || !state.parts.hasParent ? 'none' : 'clear';
}
