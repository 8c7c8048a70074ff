import { LunetteError } from '../core/errors.ts';
import { alignDown, alignUp, MiB } from '../core/units.ts';
import type { Region, Reservation } from '../image/layer.ts';
import { EntryView } from './entry.ts';
import { COPIED, setEntry } from './l2.ts';
import { ensureL2Table } from './l2-tables.ts';
import type { WriteState } from './write-state.ts';

/** Most bytes in one reservation: longer writes come again. */
const MAX_RESERVATION = 4 * MiB;
/** Most separate places in one reservation: a fragmented file costs more calls, not more memory. */
const MAX_REGIONS = 64;

/** Host clusters for guest clusters that follow each other. */
interface Placed {
  readonly host: number;
  count: number;
  readonly fresh: boolean;
  /** Newly allocated: to be given back when the write fails. A preallocated zero cluster is written in its own place. */
  readonly allocated: boolean;
}

/**
 * Makes room for a write: clusters of their own for guest clusters that have none, or share theirs. Stays within one slice of an L2
 * table, which is held until commit or abort. Callers hold the mutex.
 */
export async function makeReservation(state: WriteState, offset: number, length: number): Promise<Reservation> {
  const { geometry, slices } = state.parts;
  const { clusterSize, sliceSize, sliceCoverage, l2Coverage } = geometry;
  const start = alignDown(offset, clusterSize);
  const limit = Math.min(
    alignUp(offset + length, clusterSize),
    start + Math.max(clusterSize, MAX_RESERVATION),
    alignDown(start, sliceCoverage) + sliceCoverage,
  );
  const table = await ensureL2Table(state, Math.floor(start / l2Coverage));
  const slice = table / sliceSize + Math.floor((start % l2Coverage) / sliceCoverage);
  await slices.hold(slice, 'mapping');
  const placed: Placed[] = [];
  try {
    const first = (start % sliceCoverage) / clusterSize;
    const count = (limit - start) / clusterSize;
    const covered = await place(state, slice, first, count, placed);
    const end = start + covered * clusterSize;
    const fill = needsCurrent(state, slice, first, covered, offset > start, offset + length < end);
    return new Qcow2Reservation(state, { slice, start, end, placed, fill });
  } catch (error) {
    await giveBack(state, placed);
    slices.unhold(slice);
    throw error;
  }
}

/** Finds or allocates host clusters for the guest clusters [first, first + count) of a slice. @returns how many got one */
async function place(
  state: WriteState,
  slice: number,
  first: number,
  count: number,
  placed: Placed[],
): Promise<number> {
  const { geometry, slices, allocator } = state.parts;
  const { clusterSize, sliceSize, entrySize } = geometry;
  const entry = new EntryView();
  const read = (index: number): void => {
    entry.read(state, slices.peek(slice) as Uint8Array, index * entrySize, slice * sliceSize);
  };
  let done = 0;
  while (done < count && placed.length < MAX_REGIONS) {
    read(first + done);
    const own = entry.copied && !entry.compressed && entry.offset !== 0;
    if (own) {
      // Its data can be written in place already: only the cluster asked for first is taken all the same.
      if (!entry.zero && done > 0) break;
      const last = placed[placed.length - 1];
      if (last !== undefined && !last.allocated && last.host + last.count * clusterSize === entry.offset) last.count++;
      else placed.push({ host: entry.offset, count: 1, fresh: false, allocated: false });
      done++;
      continue;
    }
    let wanted = 1;
    for (; done + wanted < count; wanted++) {
      read(first + done + wanted);
      if (entry.copied && !entry.compressed && entry.offset !== 0) break;
    }
    while (wanted > 0 && placed.length < MAX_REGIONS) {
      const run = await allocator.allocate(wanted);
      placed.push({ host: run.first * clusterSize, count: run.count, fresh: run.fresh, allocated: true });
      done += run.count;
      wanted -= run.count;
    }
  }
  return done;
}

/** Whether the parts of the first and last cluster that are not written hold something, here or below. */
function needsCurrent(
  state: WriteState,
  slice: number,
  first: number,
  count: number,
  head: boolean,
  tail: boolean,
): Region['fill'] {
  const { geometry, slices, hasParent } = state.parts;
  const entry = new EntryView();
  const holds = (index: number): boolean => {
    const bytes = slices.peek(slice) as Uint8Array;
    entry.read(state, bytes, index * geometry.entrySize, slice * geometry.sliceSize);
    if (entry.compressed) return true;
    if (entry.zero) return false;
    return entry.offset !== 0 || hasParent;
  };
  return (head && holds(first)) || (tail && holds(first + count - 1)) ? 'current' : 'zero';
}

async function giveBack(state: WriteState, placed: readonly Placed[]): Promise<void> {
  const { clusterSize } = state.parts.geometry;
  for (const { host, count, allocated } of placed) {
    if (allocated) await state.parts.allocator.free(host / clusterSize, count);
  }
}

class Qcow2Reservation implements Reservation {
  readonly end: number;
  readonly regions: readonly Region[];
  readonly #state: WriteState;
  readonly #slice: number;
  readonly #start: number;
  readonly #placed: readonly Placed[];
  #settled = false;

  constructor(
    state: WriteState,
    parts: { slice: number; start: number; end: number; placed: readonly Placed[]; fill: Region['fill'] },
  ) {
    const { storage, geometry } = state.parts;
    this.#state = state;
    this.#slice = parts.slice;
    this.#start = parts.start;
    this.#placed = parts.placed;
    this.end = parts.end;
    let guestOffset = parts.start;
    this.regions = parts.placed.map(({ host, count, fresh }) => {
      const length = count * geometry.clusterSize;
      const region = { storage, storageOffset: host, length, guestOffset, fill: parts.fill, fresh };
      guestOffset += length;
      return region;
    });
  }

  /** Enters the clusters into the L2 table. The slice is held, so this happens in the tick of the call. */
  async commit(): Promise<void> {
    const state = this.#state;
    this.#settle();
    try {
      state.check();
      const { geometry, slices } = state.parts;
      const { clusterSize, entrySize, sliceCoverage, sliceSize } = geometry;
      const bytes = slices.modify(this.#slice);
      const entry = new EntryView();
      let guest = this.#start;
      for (const { host, count } of this.#placed) {
        for (let i = 0; i < count; i++, guest += clusterSize) {
          const at = ((guest % sliceCoverage) / clusterSize) * entrySize;
          const target = host + i * clusterSize;
          entry.read(state, bytes, at, this.#slice * sliceSize);
          if (entry.compressed || entry.offset !== target) entry.unlink(state, guest, false);
          setEntry(bytes, at, target, COPIED, 0);
        }
      }
    } finally {
      state.parts.slices.unhold(this.#slice);
    }
  }

  async abort(): Promise<void> {
    this.#settle();
    try {
      await this.#state.parts.mutex.run(() => giveBack(this.#state, this.#placed));
    } catch {
      // Their refcounts could not be read: the clusters are leaked, which is harmless.
    } finally {
      this.#state.parts.slices.unhold(this.#slice);
    }
  }

  #settle(): void {
    if (this.#settled) throw new LunetteError('INTERNAL', 'a reservation was settled twice');
    this.#settled = true;
  }
}
