import { codeOf, LunetteError } from '../core/errors.ts';
import { alignDown, alignUp, MiB } from '../core/units.ts';
import type { Region, Reservation } from '../image/layer.ts';
import { ALL_SUBCLUSTERS, EntryView, putEntry, touchedSubclusters } from './entry.ts';
import { isEmpty, setEntryRun } from './l2.ts';
import { ensureL2Table } from './l2-tables.ts';
import type { WriteState } from './write-state.ts';

/** Most bytes in one reservation: longer writes come again. */
const MAX_RESERVATION = 32 * MiB;
/** Most separate places in one reservation: a fragmented file costs more calls, not more memory. */
const MAX_PLACES = 64;
/** Clusters from which on it pays to look at their entries all at once. */
const SHORTEST_RUN = 4;

/** Host clusters for guest clusters that follow each other. */
interface Placed {
  readonly host: number;
  count: number;
  readonly fresh: boolean;
  /** Newly allocated: to be given back when the write fails. Clusters that have a place of their own are written there. */
  readonly allocated: boolean;
  readonly settled: boolean;
}

/** What a write asks for, inside one slice of an L2 table. */
interface Wanted {
  /** Guest offsets. */
  readonly offset: number;
  readonly end: number;
  /** Guest offset of the first cluster, how many there are, and where the first has its entry. */
  readonly start: number;
  readonly count: number;
  readonly slice: number;
  readonly firstEntry: number;
}

/**
 * Makes room for a write: clusters of their own for guest clusters that have none, or share theirs. Stays within one slice of an L2
 * table, which is held until commit or abort. Callers hold the mutex.
 *
 * @param diskSize bytes: what an external data file needs not be longer than
 */
export async function makeReservation(
  state: WriteState,
  offset: number,
  length: number,
  diskSize: number,
): Promise<Reservation> {
  const { geometry, slices } = state.parts;
  const { clusterSize, sliceSize, sliceCoverage, l2Coverage, entrySize } = geometry;
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
    const wanted = {
      offset,
      end: Math.min(offset + length, limit),
      start,
      count: (limit - start) / clusterSize,
      slice,
      firstEntry: ((start % sliceCoverage) / clusterSize) * entrySize,
    };
    const covered = await place(state, wanted, placed);
    const reached = Math.min(wanted.end, start + covered * clusterSize);
    const plan = planRegions(state, { ...wanted, end: reached, count: covered }, placed, diskSize);
    const end = alignUp(reached, geometry.subclusterSize);
    return new Qcow2Reservation(state, { slice, start, end, placed, ...plan });
  } catch (error) {
    try {
      await giveBack(state, placed);
    } catch (worse) {
      // Where refcounts cannot be read, clusters are leaked, which is harmless; where they contradict, that is the error.
      if (codeOf(worse) === 'CORRUPT') throw worse;
    } finally {
      slices.unhold(slice);
    }
    throw error;
  }
}

/** Reads the entry of the cluster number `index` of a reservation. */
function readEntry(state: WriteState, wanted: Wanted, index: number, entry: EntryView): void {
  const { geometry, slices } = state.parts;
  const bytes = slices.peek(wanted.slice) as Uint8Array;
  const at = wanted.firstEntry + index * geometry.entrySize;
  entry.read(state, bytes, at, wanted.slice * geometry.sliceSize, wanted.start + index * geometry.clusterSize);
}

/** Subclusters of the cluster number `index` that the write touches. */
function touched(state: WriteState, wanted: Wanted, index: number): number {
  const { geometry } = state.parts;
  const cluster = wanted.start + index * geometry.clusterSize;
  const to = Math.min(wanted.end - cluster, geometry.clusterSize);
  return touchedSubclusters(geometry, Math.max(0, wanted.offset - cluster), to);
}

/** Whether nothing at all is mapped from the cluster number `index` on: what a long write to a new image finds. */
function emptyFrom(state: WriteState, { slice, firstEntry, count }: Wanted, index: number): boolean {
  const { geometry, slices } = state.parts;
  if (count - index < SHORTEST_RUN) return false;
  const bytes = slices.peek(slice) as Uint8Array;
  return isEmpty(bytes, firstEntry + index * geometry.entrySize, firstEntry + count * geometry.entrySize);
}

/** Finds or allocates host clusters for the guest clusters of a write. @returns how many got one */
async function place(state: WriteState, wanted: Wanted, placed: Placed[]): Promise<number> {
  const { geometry, allocator } = state.parts;
  const { clusterSize } = geometry;
  const { count, start } = wanted;
  const entry = new EntryView();
  if (state.external) {
    for (let i = 0; i < count; i++) readEntry(state, wanted, i, entry); // none of them may be broken
    placed.push({ host: start, count, fresh: false, allocated: false, settled: false });
    return count;
  }
  let done = 0;
  while (done < count && placed.length < MAX_PLACES) {
    readEntry(state, wanted, done, entry);
    if (entry.own) {
      // Where it holds data it can be written in place already: only the cluster asked for first is taken all the same.
      if (done > 0 && (touched(state, wanted, done) & ~entry.allocated) === 0) break;
      const last = placed[placed.length - 1];
      if (last !== undefined && !last.allocated && last.host + last.count * clusterSize === entry.offset) last.count++;
      else placed.push({ host: entry.offset, count: 1, fresh: false, allocated: false, settled: false });
      done++;
      continue;
    }
    let missing = emptyFrom(state, wanted, done) ? count - done : 1;
    for (; done + missing < count; missing++) {
      readEntry(state, wanted, done + missing, entry);
      if (entry.own) break;
    }
    while (missing > 0 && placed.length < MAX_PLACES) {
      const run = await allocator.allocate(missing);
      const { first, count, fresh, settled } = run;
      placed.push({ host: first * clusterSize, count, fresh, allocated: true, settled });
      done += run.count;
      missing -= run.count;
    }
  }
  return done;
}

type GrowingRegion = { -readonly [K in keyof Region]: Region[K] };

/**
 * What has to be filled: the subclusters that the write touches, and those with data that has to move because their cluster gets another
 * place. What is left out stays as it is: zeros, or the parent's.
 */
function planRegions(
  state: WriteState,
  wanted: Wanted,
  placed: readonly Placed[],
  diskSize: number,
): { regions: Region[]; filled: Uint32Array } {
  const { clusterSize } = state.parts.geometry;
  const filled = new Uint32Array(wanted.count);
  const regions: GrowingRegion[] = [];
  const dataEnd = state.external ? Math.max(diskSize, wanted.end) : Number.POSITIVE_INFINITY;
  let index = 0;
  for (const { host, count, fresh } of placed) {
    for (let i = 0; i < count; ) {
      const guestOffset = wanted.start + index * clusterSize;
      const storageOffset = host + i * clusterSize;
      // Clusters that are written as a whole: all of a long write, but for its ends.
      const whole = Math.min(count - i, Math.floor((wanted.end - guestOffset) / clusterSize));
      if (guestOffset >= wanted.offset && whole > 0) {
        const length = whole * clusterSize;
        addRegion(regions, { storage: state.parts.payload, storageOffset, length, guestOffset, fill: 'zero', fresh });
        filled.fill(ALL_SUBCLUSTERS, index, index + whole);
        i += whole;
        index += whole;
      } else {
        filled[index] = planCluster(state, wanted, { index, target: storageOffset, fresh, dataEnd }, regions);
        i++;
        index++;
      }
    }
  }
  return { regions, filled };
}

/** Plans the cluster number `index` of a write, which covers a part of it. @returns the subclusters to fill */
function planCluster(
  state: WriteState,
  wanted: Wanted,
  { index, target, fresh, dataEnd }: { index: number; target: number; fresh: boolean; dataEnd: number },
  regions: GrowingRegion[],
): number {
  const { geometry, payload, hasParent } = state.parts;
  const { clusterSize, subclusterSize } = geometry;
  const entry = new EntryView();
  readEntry(state, wanted, index, entry);
  const cluster = wanted.start + index * clusterSize;
  const write = touched(state, wanted, index);
  const stays = entry.placed && entry.offset === target;
  const moved = stays ? 0 : entry.compressed ? ALL_SUBCLUSTERS : entry.allocated;
  const fill = (write | moved) >>> 0;
  // Subclusters of which a part is not written: what that part shows now, here or below.
  const shows = entry.compressed ? ALL_SUBCLUSTERS : hasParent ? ~entry.zeros : entry.allocated;
  const inside = write & ~partial(geometry, wanted, cluster);
  const current = (fill & ~inside & shows) >>> 0;
  for (let from = 0; from < 32; ) {
    const rest = fill >>> from;
    if (rest === 0) break;
    from += trailingZeros(rest);
    const run = Math.min(32 - from, trailingZeros(~(fill >>> from)));
    const at = geometry.extendedL2 ? from * subclusterSize : 0;
    const length = Math.min(geometry.extendedL2 ? run * subclusterSize : clusterSize, dataEnd - cluster - at);
    const kind = (current & ((ALL_SUBCLUSTERS >>> (32 - run)) << from)) !== 0 ? 'current' : 'zero';
    const [storageOffset, guestOffset] = [target + at, cluster + at];
    addRegion(regions, { storage: payload, storageOffset, length, guestOffset, fill: kind, fresh });
    from += run;
  }
  return fill;
}

/** Adds a region, to the last one where it continues that. */
function addRegion(regions: GrowingRegion[], region: Region): void {
  const last = regions[regions.length - 1];
  if (
    last === undefined ||
    last.fresh !== region.fresh ||
    last.storageOffset + last.length !== region.storageOffset ||
    last.guestOffset + last.length !== region.guestOffset
  ) {
    regions.push({ ...region });
    return;
  }
  last.length += region.length;
  if (region.fill === 'current') last.fill = 'current';
}

/** Subclusters of a cluster that the write covers in part. */
function partial(geometry: WriteState['parts']['geometry'], wanted: Wanted, cluster: number): number {
  const { clusterSize, subclusterSize } = geometry;
  const edge = (at: number): number => {
    const within = at - cluster;
    if (within <= 0 || within >= clusterSize || within % subclusterSize === 0) return 0;
    return touchedSubclusters(geometry, within, within + 1);
  };
  return edge(wanted.offset) | edge(wanted.end);
}

/** Number of zero bits below the lowest one; 32 for 0. */
function trailingZeros(bits: number): number {
  return bits === 0 ? 32 : 31 - Math.clz32(bits & -bits);
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
  /** Subclusters of each cluster that the regions fill. */
  readonly #filled: Uint32Array;
  #settled = false;

  constructor(
    state: WriteState,
    parts: {
      slice: number;
      start: number;
      end: number;
      placed: readonly Placed[];
      regions: readonly Region[];
      filled: Uint32Array;
    },
  ) {
    this.#state = state;
    this.#slice = parts.slice;
    this.#start = parts.start;
    this.#placed = parts.placed;
    this.#filled = parts.filled;
    this.end = parts.end;
    this.regions = parts.regions;
  }

  /** Enters the clusters into the L2 table. The slice is held, so this happens in the tick of the call. */
  async commit(): Promise<void> {
    const state = this.#state;
    this.#settle();
    try {
      state.check();
      const { geometry, slices } = state.parts;
      const { clusterSize, entrySize, sliceCoverage, sliceSize } = geometry;
      const bytes = slices.modify(this.#slice, this.#isFree());
      const entry = new EntryView();
      let guest = this.#start;
      let index = 0;
      for (const { host, count } of this.#placed) {
        const first = ((guest % sliceCoverage) / clusterSize) * entrySize;
        if (!geometry.extendedL2 && count >= SHORTEST_RUN && isEmpty(bytes, first, first + count * entrySize)) {
          setEntryRun(bytes, first, host, count, clusterSize);
          guest += count * clusterSize;
          index += count;
          continue;
        }
        for (let i = 0; i < count; i++, guest += clusterSize, index++) {
          const at = ((guest % sliceCoverage) / clusterSize) * entrySize;
          const offset = host + i * clusterSize;
          entry.read(state, bytes, at, this.#slice * sliceSize, guest);
          const stays = entry.placed && entry.offset === offset;
          if (!stays) entry.unlink(state, guest, false);
          const allocated = ((stays ? entry.allocated : 0) | (this.#filled[index] as number)) >>> 0;
          putEntry(geometry, bytes, at, { offset, copied: true, allocated, zeros: (entry.zeros & ~allocated) >>> 0 });
        }
      }
    } finally {
      state.parts.slices.unhold(this.#slice);
    }
  }

  /** Whether the table may get into the file before the data does, and before anything is synced: zeros show then, as before. */
  #isFree(): boolean {
    if (!this.#placed.every(({ settled }) => settled)) return false;
    const { geometry, slices, hasParent } = this.#state.parts;
    const { clusterSize, entrySize, sliceCoverage, sliceSize } = geometry;
    const bytes = slices.peek(this.#slice) as Uint8Array;
    const entry = new EntryView();
    return this.#filled.every((filled, index) => {
      const guest = this.#start + index * clusterSize;
      const at = ((guest % sliceCoverage) / clusterSize) * entrySize;
      entry.read(this.#state, bytes, at, this.#slice * sliceSize, guest);
      if (entry.compressed || entry.placed) return false;
      return !hasParent || (filled & ~entry.zeros) === 0;
    });
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
