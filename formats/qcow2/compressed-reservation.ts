import { LunetteError } from '../core/errors.ts';
import { alignDown } from '../core/units.ts';
import type { CompressedReservation } from '../image/layer.ts';
import { EntryView } from './entry.ts';
import { setCompressedEntry } from './l2.ts';
import { ensureL2Table } from './l2-tables.ts';
import type { PackedStream } from './packed-clusters.ts';
import type { WriteState } from './write-state.ts';

/** Most streams in one reservation. */
const MAX_STREAMS = 64;

/**
 * Makes room for compressed clusters. Stays within one slice of an L2 table, which is held until commit or abort. Callers hold the mutex.
 */
export async function makeCompressedReservation(
  state: WriteState,
  offset: number,
  lengths: readonly number[],
): Promise<CompressedReservation> {
  const { geometry, slices } = state.parts;
  const { clusterSize, sliceSize, sliceCoverage, l2Coverage } = geometry;
  if (offset % clusterSize !== 0 || lengths.length === 0 || lengths.some((each) => each < 1 || each >= clusterSize)) {
    throw new LunetteError('INVALID', 'a compressed cluster is shorter than a cluster and begins at one');
  }
  const inSlice = (alignDown(offset, sliceCoverage) + sliceCoverage - offset) / clusterSize;
  const table = await ensureL2Table(state, Math.floor(offset / l2Coverage));
  const slice = table / sliceSize + Math.floor((offset % l2Coverage) / sliceCoverage);
  await slices.hold(slice, 'mapping');
  try {
    const first = ((offset % sliceCoverage) / clusterSize) * geometry.entrySize;
    const count = Math.min(lengths.length, inSlice, MAX_STREAMS);
    const entry = new EntryView();
    const bytes = slices.peek(slice) as Uint8Array;
    // Before anything is taken: an entry that nothing may be changed by.
    for (let i = 0; i < count; i++) {
      entry.read(state, bytes, first + i * geometry.entrySize, slice * sliceSize, offset + i * clusterSize);
    }
    const streams = await state.packed.allocate(lengths.slice(0, count));
    return new StreamReservation(state, { slice, first, guest: offset, streams });
  } catch (error) {
    slices.unhold(slice);
    throw error;
  }
}

class StreamReservation implements CompressedReservation {
  readonly regions: CompressedReservation['regions'];
  readonly #state: WriteState;
  readonly #slice: number;
  /** Of the first entry in its slice, bytes. */
  readonly #first: number;
  readonly #guest: number;
  readonly #streams: readonly PackedStream[];
  #settled = false;

  constructor(
    state: WriteState,
    parts: { slice: number; first: number; guest: number; streams: readonly PackedStream[] },
  ) {
    this.#state = state;
    this.#slice = parts.slice;
    this.#first = parts.first;
    this.#guest = parts.guest;
    this.#streams = parts.streams;
    const { storage } = state.parts;
    const regions: { storage: typeof storage; storageOffset: number; length: number }[] = [];
    for (const { offset, length } of parts.streams) {
      const last = regions[regions.length - 1];
      if (last !== undefined && last.storageOffset + last.length === offset) last.length += length;
      else regions.push({ storage, storageOffset: offset, length });
    }
    this.regions = regions;
  }

  get count(): number {
    return this.#streams.length;
  }

  /** Enters the streams into the L2 table. The slice is held, so this happens in the tick of the call. */
  async commit(): Promise<void> {
    const state = this.#state;
    this.#settle();
    try {
      state.check();
      const { geometry, slices } = state.parts;
      const { clusterSize, entrySize, sliceSize, compressedOffsetBits } = geometry;
      const bytes = slices.modify(this.#slice);
      const entry = new EntryView();
      this.#streams.forEach(({ offset, length }, i) => {
        const at = this.#first + i * entrySize;
        const guest = this.#guest + i * clusterSize;
        entry.read(state, bytes, at, this.#slice * sliceSize, guest);
        entry.unlink(state, guest, false);
        setCompressedEntry(bytes, at, offset, length, compressedOffsetBits);
        // No subcluster bits: an extended entry's are 0 when it is compressed.
        bytes.fill(0, at + 8, at + entrySize);
      });
    } finally {
      state.parts.slices.unhold(this.#slice);
    }
  }

  async abort(): Promise<void> {
    this.#settle();
    try {
      await this.#state.parts.mutex.run(() => this.#state.packed.free(this.#streams));
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
