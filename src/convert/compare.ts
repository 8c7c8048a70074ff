import { LunetteError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';
import { ABSENT, DATA, ExtentBuffer, OPAQUE, type Storage } from '../../formats/index.ts';
import { isZero } from '../io/native.ts';
import { ChunkMemory } from './chunk-memory.ts';
import { type DiskSource, isShared, listOf, readDisk, withSize } from './disk.ts';
import { asBuffer } from './zero-parts.ts';

const CHUNK = 1 * MiB;
/** Bytes of one native call. */
const PIECE = 4 * MiB;
/** Pieces that are being read at the same time. */
const PARALLEL = 8;

export interface CompareOptions {
  /** Also differ where one holds space for zeros and the other does not, and in size. */
  readonly strict?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ((done: number) => void) | undefined;
}

export interface CompareResult {
  /** Offset of the first byte that differs; undefined when none does. */
  readonly differsAt: number | undefined;
  /** With `strict`: where one has space and the other has not, before any byte that differs. */
  readonly allocationDiffersAt: number | undefined;
}

/** A range in which neither disk's metadata changes its mind. */
interface Span {
  readonly offset: number;
  readonly length: number;
  /** Which of both must be read: the others read as zeros. */
  readonly first: boolean;
  readonly second: boolean;
  /** Where the bytes of those lie, when that is in files whose bytes the addon can compare. */
  readonly places: { readonly a: Place; readonly b: Place | undefined } | undefined;
}

/** Bytes as they are, in a storage. */
interface Place {
  readonly storage: Storage;
  readonly offset: number;
}

/**
 * Compares two disks byte by byte; the shorter one is taken to go on with zeros. What both call a hole is not read, nor what both have in the
 * same place of the same file.
 */
export async function compareDisks(a: DiskSource, b: DiskSource, options: CompareOptions = {}): Promise<CompareResult> {
  const size = Math.max(a.size, b.size);
  const [first, second] = [withSize(a, size), withSize(b, size)];
  const memory = new ChunkMemory(CHUNK, 2 * PARALLEL * CHUNK);
  const pending: { readonly offset: number; readonly result: Promise<number | undefined> }[] = [];
  // Where others write meanwhile, what the map said does not hold for long.
  const inPlace = !isShared(a) && !isShared(b);
  let found: number | undefined;
  let allocation: number | undefined;
  const drain = async (left: number): Promise<void> => {
    while (pending.length > left && found === undefined) {
      const { offset, result } = pending.shift() as (typeof pending)[number];
      found = await result;
      options.progress?.(offset);
    }
  };
  try {
    for await (const span of spansOf(first, second, size)) {
      if (options.signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted', { path: a.path });
      if (typeof span === 'number') {
        if (options.strict !== true) continue;
        await drain(0);
        allocation = span;
        break;
      }
      const places = inPlace ? span.places : undefined;
      const step = places === undefined ? CHUNK : PIECE;
      for (let at = 0; at < span.length; at += step) {
        const part = { ...span, offset: span.offset + at, length: Math.min(step, span.length - at) };
        const result =
          places === undefined ? compareSpan(first, second, part, memory) : comparePlaces(places.a, places.b, part, at);
        result.catch(() => undefined);
        pending.push({ offset: part.offset + part.length, result });
        await drain(PARALLEL - 1);
        if (found !== undefined) break;
      }
      if (found !== undefined) break;
    }
    await drain(0);
  } finally {
    await Promise.allSettled(pending.map(({ result }) => result));
  }
  if (found === undefined) options.progress?.(size);
  return { differsAt: found, allocationDiffersAt: found === undefined ? allocation : undefined };
}

/** @param at of the part, from the places on. @returns the guest offset of the first difference */
async function comparePlaces(
  a: Place,
  b: Place | undefined,
  { offset, length }: Span,
  at: number,
): Promise<number | undefined> {
  const other = b?.storage ?? null;
  const equal = await a.storage.compareWith?.(other, (b?.offset ?? 0) + at, a.offset + at, length);
  if (equal === undefined) throw new TypeError('canCompare() without compareWith()');
  return equal === length ? undefined : offset + equal;
}

/** @returns the offset of the first difference */
async function compareSpan(
  a: DiskSource,
  b: DiskSource,
  { offset, length, first, second }: Span,
  memory: ChunkMemory,
): Promise<number | undefined> {
  const one = first ? await memory.acquire() : undefined;
  const other = second ? await memory.acquire() : undefined;
  try {
    const reads = [
      one === undefined ? undefined : readDisk(a, offset, listOf(one, length)),
      other === undefined ? undefined : readDisk(b, offset, listOf(other, length)),
    ];
    if (reads[0] !== undefined || reads[1] !== undefined) {
      for (const result of await Promise.allSettled(reads)) if (result.status === 'rejected') throw result.reason;
    }
    const at = firstDifference(one, other, length);
    return at === undefined ? undefined : offset + at;
  } finally {
    if (one !== undefined) memory.release(one);
    if (other !== undefined) memory.release(other);
  }
}

function firstDifference(a: Uint8Array | undefined, b: Uint8Array | undefined, length: number): number | undefined {
  if (a === undefined || b === undefined) {
    const bytes = a ?? b;
    if (bytes === undefined || isZero(bytes, 0, length)) return undefined;
    return bytes.findIndex((byte) => byte !== 0);
  }
  const [one, other] = [asBuffer(a), asBuffer(b)];
  if (one.compare(other, 0, length, 0, length) === 0) return undefined;
  let start = 0;
  // Halved until it is short enough to look at byte by byte.
  for (let span = length; span > 64; ) {
    const half = span >>> 1;
    if (one.compare(other, start, start + half, start, start + half) === 0) {
      start += half;
      span -= half;
    } else span = half;
  }
  while (a[start] === b[start]) start++;
  return start;
}

/** Walks both maps. Gives spans to read, and as a number where the maps first say different things. */
async function* spansOf(a: DiskSource, b: DiskSource, size: number): AsyncGenerator<Span | number> {
  const [one, other] = [new MapCursor(a), new MapCursor(b)];
  let differs = false;
  for (let at = 0; at < size; ) {
    await one.seek(at);
    await other.seek(at);
    const length = Math.min(one.left(at), other.left(at));
    if (one.status !== other.status && !differs) {
      differs = true;
      yield at;
    }
    const [first, second] = [one.holds, other.holds];
    if ((first || second) && !one.sharesWith(other, at))
      yield { offset: at, length, first, second, places: placesOf(one, other, at) };
    at += length;
  }
}

function placesOf(one: MapCursor, other: MapCursor, at: number): Span['places'] {
  const [a, b] = [one.place(at), other.place(at)];
  if ((one.holds && a === undefined) || (other.holds && b === undefined)) return undefined;
  if (a !== undefined && a.storage.canCompare?.(b?.storage ?? null) === true) return { a, b };
  return a === undefined && b?.storage.canCompare?.(null) === true ? { a: b, b: undefined } : undefined;
}

/** The extent that holds an offset, moving forward. */
class MapCursor {
  readonly #disk: DiskSource;
  readonly #extents = new ExtentBuffer();
  #index = 0;

  constructor(disk: DiskSource) {
    this.#disk = disk;
  }

  async seek(at: number): Promise<void> {
    const { offsets, lengths } = this.#extents;
    while (this.#index < this.#extents.count) {
      if (at < (offsets[this.#index] as number) + (lengths[this.#index] as number)) return;
      this.#index++;
    }
    await this.#disk.map(at, this.#disk.size - at, this.#extents);
    this.#index = 0;
  }

  left(at: number): number {
    const { offsets, lengths } = this.#extents;
    return (offsets[this.#index] as number) + (lengths[this.#index] as number) - at;
  }

  /** It may hold something else than zeros. */
  get holds(): boolean {
    const kind = this.#extents.kinds[this.#index];
    return kind === DATA || kind === OPAQUE;
  }

  /** What the map says of it, as bits: there are bytes, they are zeros, a layer says so, they lie somewhere as they are. */
  get status(): number {
    const kind = this.#extents.kinds[this.#index];
    const placed = this.#extents.storages[this.#index] !== null && kind !== OPAQUE;
    return (this.holds ? 1 : 2) | (kind === ABSENT ? 0 : 4) | (placed ? 8 : 0);
  }

  /** Both have their bytes in the same place of the same file. */
  sharesWith(other: MapCursor, at: number): boolean {
    const [one, two] = [this.place(at), other.place(at)];
    return one !== undefined && one.storage.id === two?.storage.id && one.offset === two.offset;
  }

  /** Where the byte of a guest offset lies, in the extent that holds it; undefined when it does not lie anywhere as it is. */
  place(at: number): Place | undefined {
    const { kinds, storages, storageOffsets, offsets } = this.#extents;
    const i = this.#index;
    const storage = storages[i];
    if (kinds[i] !== DATA || storage === null || storage === undefined) return undefined;
    return { storage, offset: (storageOffsets[i] as number) + at - (offsets[i] as number) };
  }
}
