import { IoVec } from '../core/iov.ts';
import { MiB } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';

/** Most bytes of one read, unless a table is larger. */
const READ = MiB;
/** Reads in flight. */
const DEPTH = 4;
/** Tables at most this many of their own size apart are read together with what is between them. */
const MAX_STEP = 4;
/** Cached tables are looked at without waiting; others on the event loop get their turn this often. */
const TURN_MS = 5;

interface Group {
  readonly first: number;
  readonly end: number;
  readonly buffer: Uint8Array;
  readonly pending: Promise<void> | undefined;
}

export interface TableScan {
  /** Called for one table after the other; the bytes are its until it returns, or until what it returns resolves. */
  visit(bytes: Uint8Array, offset: number, index: number): Promise<void> | undefined;
  /** Called in place of visit() for a table that cannot be read; without it the scan fails. */
  unreadable?(error: unknown, offset: number, index: number): void;
}

/**
 * Reads many tables of the same size, in the order given: neighbours with one read, several reads ahead where they have to wait for the disk.
 * Memory: at most 4 MiB, or four tables.
 *
 * @param offsets where the tables are, ascending. What lies behind the end of the file is zeros
 */
export async function scanTables(
  storage: Storage,
  offsets: ArrayLike<number>,
  size: number,
  scan: TableScan,
): Promise<void> {
  const groups: Group[] = [];
  const free: Uint8Array[] = [];
  let next = 0;
  const begin = (): Group => {
    const first = next;
    const start = offsets[first] as number;
    let end = first + 1;
    while (
      end < offsets.length &&
      (offsets[end] as number) + size - start <= READ &&
      (offsets[end] as number) - (offsets[end - 1] as number) <= MAX_STEP * size
    ) {
      end++;
    }
    next = end;
    const buffer = free.pop() ?? new Uint8Array(Math.max(READ, size));
    const iov = IoVec.of(buffer, 0, (offsets[end - 1] as number) + size - start);
    if (storage.tryReadv(start, iov)) return { first, end, buffer, pending: undefined };
    const pending = storage.readv(start, iov);
    pending.catch(() => undefined); // heard when its turn comes
    return { first, end, buffer, pending };
  };
  let turn = performance.now();
  try {
    for (;;) {
      while (groups.length < DEPTH && next < offsets.length) {
        const group = begin();
        groups.push(group);
        if (group.pending === undefined) break; // in the page cache: nothing to be ahead of
      }
      const group = groups.shift();
      if (group === undefined) return;
      await visitGroup(storage, offsets, size, scan, group);
      free.push(group.buffer);
      if (performance.now() - turn < TURN_MS) continue;
      await new Promise((resolve) => setImmediate(resolve));
      turn = performance.now();
    }
  } finally {
    // Nobody may still read into memory that is given up.
    await Promise.allSettled(groups.map(({ pending }) => pending));
  }
}

async function visitGroup(
  storage: Storage,
  offsets: ArrayLike<number>,
  size: number,
  scan: TableScan,
  { first, end, buffer, pending }: Group,
): Promise<void> {
  const start = offsets[first] as number;
  let failed = false;
  if (pending !== undefined) {
    try {
      await pending;
    } catch (error) {
      if (scan.unreadable === undefined) throw error;
      failed = true;
    }
  }
  for (let index = first; index < end; index++) {
    const offset = offsets[index] as number;
    if (failed) {
      // One of several that were read at once: each by itself tells which.
      try {
        await storage.readv(offset, IoVec.of(buffer, offset - start, size));
      } catch (error) {
        scan.unreadable?.(error, offset, index);
        continue;
      }
    }
    const waiting = scan.visit(buffer.subarray(offset - start, offset - start + size), offset, index);
    if (waiting !== undefined) await waiting;
  }
}
