import { alignDown, alignUp } from '../../formats/core/units.ts';
import { ABSENT, DATA, ExtentBuffer, type Storage, ZERO } from '../../formats/index.ts';
import type { DiskSource } from './disk.ts';

/** A part of a disk that may hold something else than zeros. */
export interface DataRun {
  readonly offset: number;
  readonly length: number;
  /** Where its bytes lie as they are; null when they do not, or in several places. */
  readonly storage: Storage | null;
  readonly storageOffset: number;
}

export interface RunOptions {
  /** Runs begin and end at multiples of it, but for the disk's end. */
  readonly unit: number;
  /** Guest offset to begin at, a multiple of `unit`. Default 0. */
  readonly from?: number;
  /** Whether an extent may be left out although it holds data: the target shows the same there. */
  readonly skip?: (extents: ExtentBuffer, index: number) => boolean;
  /** Also what reads as zeros, as far as it is the disk's own word and not just nothing: over a backing file it must be written. */
  readonly zeros?: boolean;
  /** Longest run, a multiple of `unit`. Default: none. */
  readonly longest?: number;
}

/** The parts of a disk that hold data, in order, as its metadata has them. Holes are not read. */
export async function* dataRuns(disk: DiskSource, options: RunOptions): AsyncGenerator<DataRun> {
  const { unit, from: begin = 0, skip, zeros = false, longest = Number.POSITIVE_INFINITY } = options;
  const extents = new ExtentBuffer();
  /** Runs before it have been given out. */
  let done = begin;
  for (let at = begin; at < disk.size; at = extents.end) {
    await disk.map(at, disk.size - at, extents);
    for (let i = 0; i < extents.count; i++) {
      const kind = extents.kinds[i];
      if ((kind === ZERO || kind === ABSENT) && !zeros) continue;
      if (skip?.(extents, i) === true) continue;
      const start = extents.offsets[i] as number;
      const stop = start + (extents.lengths[i] as number);
      const first = Math.max(done, alignDown(start, unit));
      const end = Math.min(disk.size, alignUp(stop, unit));
      const storage = kind === DATA ? (extents.storages[i] ?? null) : null;
      // Only whole units lie in one place. The first and the last may go on in what is next to the extent.
      const from = Math.min(end, first >= start ? first : alignUp(start, unit));
      const to = storage === null ? from : Math.max(from, end <= stop ? end : alignDown(stop, unit));
      const storageOffset = (extents.storageOffsets[i] as number) - start;
      if (to === from) {
        yield* split(first, end, longest, null, 0);
      } else {
        yield* split(first, from, longest, null, 0);
        yield* split(from, to, longest, storage, storageOffset + from);
        yield* split(to, end, longest, null, 0);
      }
      done = Math.max(done, end);
    }
  }
}

/** A part of a disk as runs that are not too long. */
function* split(
  start: number,
  end: number,
  longest: number,
  storage: Storage | null,
  storageOffset: number,
): Generator<DataRun> {
  for (let offset = start; offset < end; offset += longest) {
    const length = Math.min(longest, end - offset);
    yield { offset, length, storage, storageOffset: storage === null ? 0 : storageOffset + offset - start };
  }
}

/** A range of guest bytes. */
export interface Chunk {
  readonly offset: number;
  readonly length: number;
}

/** Joins what touches, into chunks that end at multiples of `size`. */
export class ChunkJoiner {
  readonly #size: number;
  #offset = 0;
  #length = 0;

  constructor(size: number) {
    this.#size = size;
  }

  /** Adds a range behind those before. @returns chunks that are complete */
  *add(offset: number, length: number): Generator<Chunk> {
    if (this.#length > 0 && offset !== this.#offset + this.#length) yield* this.end();
    if (this.#length === 0) this.#offset = offset;
    this.#length += length;
    for (;;) {
      const limit = alignDown(this.#offset, this.#size) + this.#size - this.#offset;
      if (this.#length < limit) return;
      yield { offset: this.#offset, length: limit };
      this.#offset += limit;
      this.#length -= limit;
    }
  }

  /** @returns the chunk that is not full, if there is one */
  *end(): Generator<Chunk> {
    if (this.#length === 0) return;
    yield { offset: this.#offset, length: this.#length };
    this.#length = 0;
  }
}
