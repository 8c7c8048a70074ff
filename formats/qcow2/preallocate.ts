import { IoVec } from '../core/iov.ts';
import { alignUp } from '../core/units.ts';
import type { ResizeOptions } from '../image/layer.ts';
import type { Storage } from '../storage/storage.ts';
import { ALL_SUBCLUSTERS, EntryView, putEntry } from './entry.ts';
import { ensureL2Table } from './l2-tables.ts';
import type { WriteState } from './write-state.ts';
import { zeroFill } from './zero-fill.ts';

/** How new space is made beforehand, as `preallocation` of QEMU's qcow2. */
export type Preallocation = ResizeOptions['preallocation'];

/** Zeros that are written when space is to be written in full. */
const ZEROS = new Uint8Array(1024 * 1024);

/**
 * Gives every guest cluster of a range that has none a host cluster that reads as zeros, so that writes there change no metadata.
 *
 * `metadata` leaves the space to the file system (a hole, in most cases), `falloc` has it set aside, `full` writes zeros. With
 * subclusters none of them is marked as data: they show what they showed, a parent included. Only in a raw data file all of them
 * are, because nothing may hide what that holds.
 *
 * @param from guest offset of a cluster
 * @param to the disk's end
 * @param relieve called between steps, while nothing is held: to write back what has become too much
 */
export async function preallocate(
  state: WriteState,
  from: number,
  to: number,
  mode: Preallocation,
  relieve: () => Promise<void>,
): Promise<void> {
  const { sliceCoverage, clusterSize } = state.parts.geometry;
  const end = alignUp(to, clusterSize);
  for (let at = from; at < end; ) {
    const stop = Math.min(end, Math.floor(at / sliceCoverage) * sliceCoverage + sliceCoverage);
    const start = at;
    await state.change(() => preallocateSlice(state, start, stop, to, mode));
    await relieve();
    at = stop;
  }
}

async function preallocateSlice(
  state: WriteState,
  from: number,
  stop: number,
  diskEnd: number,
  mode: Preallocation,
): Promise<void> {
  const { geometry, slices, dataStorage, payload, allocator, rawData } = state.parts;
  const { clusterSize, sliceSize, sliceCoverage, l2Coverage, entrySize } = geometry;
  const table = await ensureL2Table(state, Math.floor(from / l2Coverage));
  const slice = table / sliceSize + Math.floor((from % l2Coverage) / sliceCoverage);
  await slices.hold(slice, 'mapping');
  try {
    const entry = new EntryView();
    const read = (guest: number): number => {
      const at = ((guest % sliceCoverage) / clusterSize) * entrySize;
      entry.read(state, slices.peek(slice) as Uint8Array, at, slice * sliceSize, guest);
      return at;
    };
    const free = (guest: number): boolean => {
      read(guest);
      return !entry.placed && !entry.compressed;
    };
    for (let guest = from; guest < stop; ) {
      if (!free(guest)) {
        guest += clusterSize;
        continue;
      }
      let wanted = 1;
      while (guest + wanted * clusterSize < stop && free(guest + wanted * clusterSize)) wanted++;
      const run = state.external
        ? { first: guest / clusterSize, count: wanted, fresh: dataStorage.growsZeroed && payload === dataStorage }
        : await allocator.allocate(wanted);
      const offset = run.first * clusterSize;
      const length = run.count * clusterSize;
      try {
        const inDisk = state.external ? Math.min(length, diskEnd - guest) : length;
        await fill(payload, offset, inDisk, mode, run.fresh || geometry.extendedL2);
        // Mapped space that the file does not reach would be taken for damage.
        if (dataStorage.growsZeroed && dataStorage.size < offset + inDisk) await dataStorage.resize(offset + inDisk);
      } catch (error) {
        if (!state.external) await allocator.free(run.first, run.count);
        throw error;
      }
      const bytes = slices.modify(slice);
      for (let i = 0; i < run.count; i++, guest += clusterSize) {
        const allocated = geometry.extendedL2 && !rawData ? 0 : ALL_SUBCLUSTERS;
        const at = read(guest);
        const zeros = (entry.zeros & ~allocated) >>> 0;
        putEntry(geometry, bytes, at, { offset: offset + i * clusterSize, copied: true, allocated, zeros });
      }
    }
  } finally {
    slices.unhold(slice);
  }
}

/** @param zero the space reads as zeros already, or what it reads as does not matter */
async function fill(
  storage: Storage,
  offset: number,
  length: number,
  mode: Preallocation,
  zero: boolean,
): Promise<void> {
  if (mode === 'full') {
    for (let at = 0; at < length; at += ZEROS.length) {
      await storage.writev(offset + at, IoVec.of(ZEROS, 0, Math.min(ZEROS.length, length - at)));
    }
  } else if (mode === 'falloc' || !zero) {
    await zeroFill(storage, offset, length);
  }
}
