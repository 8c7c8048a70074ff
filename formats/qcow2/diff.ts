import { ImageError } from '../core/errors.ts';
import { divideUp } from '../core/units.ts';
import type { SnapshotReference } from '../image/layer.ts';
import type { Storage } from '../storage/storage.ts';
import { readHeader } from './driver.ts';
import type { Qcow2Header } from './header.ts';
import { COMPRESSED_BIT, COPIED, getU32, hostOffset, OFFSET_HIGH, OFFSET_LOW, ZERO_BIT } from './l2.ts';
import { PointerTable } from './pointer-table.ts';
import { readBytes } from './refcount.ts';
import { checkSnapshotL1, readSnapshotTable } from './snapshot.ts';
import { selectSnapshot } from './snapshot-editor.ts';

/** Where the bytes of a part of a disk come from. `absent`: from below, or zeros; `outside`: past the disk's end. */
export type MappingState = 'data' | 'compressed' | 'zero' | 'absent' | 'outside';

/** A part of the disk that comes from somewhere else. Guest bytes. */
export interface MappingDifference {
  readonly start: number;
  readonly length: number;
  readonly from: MappingState;
  readonly to: MappingState;
}

export interface MappingDiff {
  readonly fromSize: number;
  readonly toSize: number;
  /** In guest order, in batches. Bytes that are in none of them are the same; those in one may be. */
  readonly differences: AsyncIterable<readonly MappingDifference[]>;
}

/** Bytes of L2 tables that are read at once. */
const READ_AT_ONCE = 4 * 1024 * 1024;
const SUBCLUSTERS = 32;

/** States as numbers, while extents are put together. */
const ABSENT = 0;
const DATA = 1;
const COMPRESSED = 2;
const ZERO = 3;
const OUTSIDE = 4;
const NAMES: readonly MappingState[] = ['absent', 'data', 'compressed', 'zero', 'outside'];

/**
 * Finds where two states of one disk differ, by comparing their tables: no data is read, and no table that both have.
 *
 * @param from, to a snapshot, or undefined for the disk as it is now
 * @throws {ImageError} NOT_FOUND for a snapshot; CORRUPT
 */
export async function diffQcow2(
  storage: Storage,
  from: SnapshotReference | undefined,
  to: SnapshotReference | undefined,
): Promise<MappingDiff> {
  return (await openDiffs(storage))(from, to);
}

/** As diffQcow2, for several pairs: the list of snapshots, which may be long, is read once. Nobody writes to the file meanwhile. */
export async function openDiffs(
  storage: Storage,
): Promise<(from: SnapshotReference | undefined, to: SnapshotReference | undefined) => Promise<MappingDiff>> {
  const header = await readHeader(storage);
  const { snapshots } = await readSnapshotTable(storage, header);
  const load = async (reference: SnapshotReference | undefined): Promise<State> => {
    const snapshot = reference === undefined ? undefined : selectSnapshot(snapshots, reference);
    const { clusterSize } = header.geometry;
    if (snapshot !== undefined) checkSnapshotL1(snapshot, clusterSize);
    const size = snapshot?.diskSize ?? header.size;
    if (!Number.isSafeInteger(size)) throw new ImageError('TOO_LARGE', 'the disk of the snapshot is larger than 8 PiB');
    const l1 = await PointerTable.load(storage, {
      name: 'L1 table',
      offset: snapshot?.l1TableOffset ?? header.l1TableOffset,
      entries: snapshot?.l1Size ?? header.l1Size,
      clusterSize,
    });
    return { l1, size: size - (size % 512) };
  };
  return async (from, to) => {
    const [a, b] = [await load(from), await load(to)];
    return { fromSize: a.size, toSize: b.size, differences: differences(storage, header, a, b) };
  };
}

interface State {
  readonly l1: PointerTable;
  readonly size: number;
}

async function* differences(
  storage: Storage,
  header: Qcow2Header,
  a: State,
  b: State,
): AsyncGenerator<readonly MappingDifference[]> {
  const { clusterSize, l2Coverage } = header.geometry;
  const tables = divideUp(Math.max(a.size, b.size), l2Coverage);
  const atOnce = Math.max(1, Math.floor(READ_AT_ONCE / (2 * clusterSize)));
  const table = async (offset: number): Promise<Uint8Array | undefined> =>
    offset === 0 ? undefined : readBytes(storage, offset, clusterSize);
  const comparison = new TableComparison(header, a.size, b.size);
  for (let next = 0; next < tables; ) {
    const pairs: { index: number; from: number; to: number }[] = [];
    for (; next < tables && pairs.length < atOnce; next++) {
      const [from, to] = [a.l1.checkedTarget(next), b.l1.checkedTarget(next)];
      const end = (next + 1) * l2Coverage;
      // Where one disk ends inside, one table shows different things.
      const endsInside = a.size !== b.size && end > Math.min(a.size, b.size);
      if (from !== to || endsInside) pairs.push({ index: next, from, to });
    }
    const read = await Promise.all(pairs.map(({ from, to }) => Promise.all([table(from), table(to)])));
    for (const [i, { index }] of pairs.entries()) {
      const [from, to] = read[i] as [Uint8Array | undefined, Uint8Array | undefined];
      comparison.compare(index, from, to);
    }
    const found = comparison.take();
    if (found.length > 0) yield found;
  }
  const rest = comparison.finish();
  if (rest.length > 0) yield rest;
}

/** Compares L2 tables entry by entry, and joins what differs alike into extents. */
class TableComparison {
  readonly #header: Qcow2Header;
  readonly #aSize: number;
  readonly #bSize: number;
  readonly #end: number;
  /** Without anything below, what is absent reads as zeros. */
  readonly #absentIsZero: boolean;
  readonly #empty: Uint8Array;
  #found: MappingDifference[] = [];
  #start = 0;
  #length = 0;
  #from = ABSENT;
  #to = ABSENT;

  constructor(header: Qcow2Header, aSize: number, bSize: number) {
    this.#header = header;
    this.#aSize = aSize;
    this.#bSize = bSize;
    this.#end = Math.max(aSize, bSize);
    this.#absentIsZero = header.backingFile === undefined;
    this.#empty = new Uint8Array(header.geometry.clusterSize);
  }

  /** @param a, b tables of the same guest range; undefined when there is none */
  compare(index: number, a: Uint8Array = this.#empty, b: Uint8Array = this.#empty): void {
    const { clusterSize, entrySize, l2Coverage, extendedL2 } = this.#header.geometry;
    const base = index * l2Coverage;
    const ends = this.#aSize !== this.#bSize && base + l2Coverage > Math.min(this.#aSize, this.#bSize);
    if (!ends && Buffer.compare(a, b) === 0) return;
    const [wordsA, wordsB] = [wordsOf(a), wordsOf(b)];
    const perEntry = entrySize / 4;
    for (let at = 0, word = 0; at < clusterSize; at += entrySize, word += perEntry) {
      // As they are in memory: whether they are the same does not depend on the order of bytes.
      if (!ends && wordsA[word] === wordsB[word] && wordsA[word + 1] === wordsB[word + 1]) {
        if (!extendedL2) continue;
        if (wordsA[word + 2] === wordsB[word + 2] && wordsA[word + 3] === wordsB[word + 3]) continue;
      }
      const start = base + (at / entrySize) * clusterSize;
      if (start >= this.#end) return;
      if (extendedL2) this.#subclusters(start, a, b, at);
      else this.#entry(start, a, b, at);
    }
  }

  #entry(start: number, a: Uint8Array, b: Uint8Array, at: number): void {
    const { clusterSize } = this.#header.geometry;
    const from = start >= this.#aSize ? OUTSIDE : stateOf(a, at);
    const to = start >= this.#bSize ? OUTSIDE : stateOf(b, at);
    if (this.#same(from, to, a, b, at)) return;
    this.#add(start, Math.min(clusterSize, this.#end - start), from, to);
  }

  #subclusters(start: number, a: Uint8Array, b: Uint8Array, at: number): void {
    const { subclusterSize } = this.#header.geometry;
    for (let i = 0; i < SUBCLUSTERS; i++) {
      const offset = start + i * subclusterSize;
      if (offset >= this.#end) return;
      const from = offset >= this.#aSize ? OUTSIDE : subclusterState(a, at, i);
      const to = offset >= this.#bSize ? OUTSIDE : subclusterState(b, at, i);
      if (this.#same(from, to, a, b, at)) continue;
      this.#add(offset, Math.min(subclusterSize, this.#end - offset), from, to);
    }
  }

  /** Whether two entries give the same bytes, as far as entries tell. */
  #same(from: number, to: number, a: Uint8Array, b: Uint8Array, at: number): boolean {
    if (from === to) {
      if (from !== DATA && from !== COMPRESSED) return true;
      const [highA, highB] = [getU32(a, at), getU32(b, at)];
      const [lowA, lowB] = [getU32(a, at + 4), getU32(b, at + 4)];
      // The flags of a plain entry say nothing about its bytes.
      if (from === DATA) return hostOffset(highA, lowA) === hostOffset(highB, lowB);
      return (highA & ~COPIED) === (highB & ~COPIED) && lowA === lowB;
    }
    const zeros = (state: number): boolean =>
      state === ZERO || state === OUTSIDE || (state === ABSENT && this.#absentIsZero);
    return zeros(from) && zeros(to);
  }

  #add(start: number, length: number, from: number, to: number): void {
    if (this.#length > 0 && this.#start + this.#length === start && this.#from === from && this.#to === to) {
      this.#length += length;
      return;
    }
    this.#close();
    [this.#start, this.#length, this.#from, this.#to] = [start, length, from, to];
  }

  #close(): void {
    if (this.#length === 0) return;
    this.#found.push({
      start: this.#start,
      length: this.#length,
      from: NAMES[this.#from] as MappingState,
      to: NAMES[this.#to] as MappingState,
    });
    this.#length = 0;
  }

  /** Extents that are complete; the last one may still become longer. */
  take(): MappingDifference[] {
    const found = this.#found;
    this.#found = [];
    return found;
  }

  finish(): MappingDifference[] {
    this.#close();
    return this.take();
  }
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

function stateOf(bytes: Uint8Array, at: number): number {
  const high = getU32(bytes, at);
  const low = getU32(bytes, at + 4);
  if ((high & COMPRESSED_BIT) !== 0) return COMPRESSED;
  if ((low & ZERO_BIT) !== 0) return ZERO;
  return (high & OFFSET_HIGH) === 0 && (low & OFFSET_LOW) === 0 ? ABSENT : DATA;
}

function subclusterState(bytes: Uint8Array, at: number, index: number): number {
  if ((getU32(bytes, at) & COMPRESSED_BIT) !== 0) return COMPRESSED;
  if (((getU32(bytes, at + 8) >>> index) & 1) !== 0) return ZERO;
  return ((getU32(bytes, at + 12) >>> index) & 1) !== 0 ? DATA : ABSENT;
}
