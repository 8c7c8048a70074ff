import type { Reservation } from '../image/layer.ts';
import { EntryView } from './entry.ts';
import { setEntry } from './l2.ts';
import { ensureL2Table } from './l2-tables.ts';
import type { WriteState } from './write-state.ts';
import { zeroFill } from './zero-fill.ts';

/**
 * Takes the zero flag out of all entries of the active tables, as version 2 has none: without a parent nothing takes their place, with one a
 * cluster of zeros. The disk shows the same afterwards. No write is in flight.
 */
export async function expandZeros(
  state: WriteState,
  diskSize: number,
  reserve: (offset: number, length: number) => Promise<Reservation>,
  relieve: () => Promise<void>,
): Promise<void> {
  const { l1, geometry, slices, hasParent } = state.parts;
  const { clusterSize, sliceSize, slicesPerCluster, sliceEntries, entrySize, l2Coverage } = geometry;
  for (let index = 0; index < l1.entries; index++) {
    for (let i = 0; i < slicesPerCluster; i++) {
      const table = l1.checkedTarget(index);
      if (table === 0) break;
      const zeros: number[] = [];
      await slices.hold(table / sliceSize + i, 'mapping');
      try {
        const bytes = slices.peek(table / sliceSize + i) as Uint8Array;
        const entry = new EntryView();
        for (let j = 0; j < sliceEntries; j++) {
          const guest = index * l2Coverage + (i * sliceEntries + j) * clusterSize;
          entry.read(state, bytes, j * entrySize, table + i * sliceSize, guest);
          if (!entry.compressed && entry.zeros !== 0) zeros.push(j);
        }
      } finally {
        slices.unhold(table / sliceSize + i);
      }
      const first = index * l2Coverage + i * sliceEntries * clusterSize;
      await relieve();
      // Behind the disk's end nothing shows.
      const shown = hasParent ? zeros.filter((j) => first + j * clusterSize < diskSize) : [];
      await state.change(() => clearEntries(state, index, i, hasParent ? zeros.slice(shown.length) : zeros));
      for (const j of shown) await fill(await reserve(first + j * clusterSize, clusterSize));
    }
  }
}

async function clearEntries(state: WriteState, index: number, slice: number, zeros: readonly number[]): Promise<void> {
  if (zeros.length === 0) return;
  const { geometry, slices } = state.parts;
  const { clusterSize, sliceSize, sliceEntries, entrySize, l2Coverage } = geometry;
  const at = (await ensureL2Table(state, index)) / sliceSize + slice;
  await slices.hold(at, 'mapping');
  try {
    const bytes = slices.modify(at);
    const entry = new EntryView();
    for (const j of zeros) {
      const guest = index * l2Coverage + (slice * sliceEntries + j) * clusterSize;
      entry.read(state, bytes, j * entrySize, at * sliceSize, guest);
      entry.unlink(state, guest, true);
      setEntry(bytes, j * entrySize, 0, 0, 0);
    }
  } finally {
    slices.unhold(at);
  }
}

async function fill(reservation: Reservation): Promise<void> {
  try {
    // Fresh space too: the file must reach as far as its clusters.
    for (const { storage, storageOffset, length } of reservation.regions) {
      await zeroFill(storage, storageOffset, length);
    }
  } catch (error) {
    await reservation.abort();
    throw error;
  }
  await reservation.commit();
}
