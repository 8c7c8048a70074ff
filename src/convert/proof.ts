import { LunetteError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';
import { type DiskSource, listOf, readDisk } from './disk.ts';
import type { JournalPoint } from './journal.ts';
import { RangeDigest } from './range-digest.ts';
import { type Chunk, ChunkJoiner, type DataRun } from './runs.ts';

const CHUNK = 1 * MiB;
/** Reads that wait for their data at the same time. */
const PARALLEL = 8;

export interface ProofOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called with the guest bytes that are proven. */
  readonly progress?: ((done: number) => void) | undefined;
}

/**
 * Reads a disk up to the last point of a journal, and holds it against the digests there.
 *
 * @param runs the parts of it that may hold something, in order; the rest counts as zeros
 * @returns how many of the points hold, from the first on
 */
export async function countProven(
  disk: DiskSource,
  runs: AsyncIterable<DataRun>,
  points: readonly JournalPoint[],
  options: ProofOptions = {},
): Promise<number> {
  let proven = 0;
  let digest = new RangeDigest();
  const holdsTo = (offset: number): boolean => {
    for (let point = points[proven]; point !== undefined && point.done <= offset; point = points[proven]) {
      if (digest.finish() !== point.digest) return false;
      digest = new RangeDigest();
      proven++;
      options.progress?.(point.done);
    }
    return true;
  };
  for await (const { offset, bytes } of readAhead(disk, runs, options.signal)) {
    for (let at = 0; at < bytes.length; ) {
      if (!holdsTo(offset + at)) return proven;
      const next = points[proven];
      if (next === undefined) return proven;
      const take = Math.min(bytes.length - at, next.done - offset - at);
      digest.update(offset + at, bytes.subarray(at, at + take));
      at += take;
    }
  }
  holdsTo(Number.POSITIVE_INFINITY);
  return proven;
}

/** Reads runs of a disk in order, some ahead. The bytes are the caller's until it asks for the next. */
export async function* readAhead(
  disk: DiskSource,
  runs: AsyncIterable<DataRun>,
  signal?: AbortSignal,
): AsyncGenerator<{ offset: number; bytes: Uint8Array }> {
  const free: Uint8Array[] = Array.from({ length: PARALLEL }, () => new Uint8Array(CHUNK));
  const reads: { chunk: Chunk; buffer: Uint8Array; reading: Promise<void> | undefined }[] = [];
  const begin = (chunk: Chunk): void => {
    if (signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted', { path: disk.path });
    const buffer = free.pop() as Uint8Array;
    const reading = readDisk(disk, chunk.offset, listOf(buffer, chunk.length));
    reading?.catch(() => undefined); // whoever takes it from the queue hears of it
    reads.push({ chunk, buffer, reading });
  };
  async function* take(left: number): AsyncGenerator<{ offset: number; bytes: Uint8Array }> {
    while (reads.length > left) {
      const { chunk, buffer, reading } = reads.shift() as (typeof reads)[number];
      await reading;
      yield { offset: chunk.offset, bytes: buffer.subarray(0, chunk.length) };
      free.push(buffer);
    }
  }
  const joiner = new ChunkJoiner(CHUNK);
  try {
    for await (const { offset, length } of runs) {
      for (const chunk of joiner.add(offset, length)) {
        yield* take(PARALLEL - 1);
        begin(chunk);
      }
    }
    for (const chunk of joiner.end()) {
      yield* take(PARALLEL - 1);
      begin(chunk);
    }
    yield* take(0);
  } finally {
    await Promise.allSettled(reads.map(({ reading }) => reading));
  }
}
