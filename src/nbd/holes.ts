import { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/image/image.ts';
import { CHUNK_DATA, type Chunk } from '../wire/chunk-pool.ts';
import type { ReplyWriter } from './reply-writer.ts';
import type { Request } from './request.ts';

/** Reads of this length and more are looked through for holes, in pieces of it. */
export const HOLE_UNIT = 64 * 1024;

/**
 * Which parts of a range are known to be zeros, from memory alone.
 *
 * @returns where each run ends, data and holes by turns, data first (of length 0 when a hole is first); undefined: no holes known
 */
export function holeRuns(image: Image, offset: number, length: number): number[] | undefined {
  const end = offset + length;
  const runs: number[] = [];
  let zero = false;
  for (let at = offset; at < end; ) {
    const stop = Math.min(end, at - (at % HOLE_UNIT) + HOLE_UNIT);
    if (image.readsZero?.(at, stop - at) !== zero) {
      runs.push(at);
      zero = !zero;
    }
    at = stop;
  }
  if (runs.length === 0) return undefined;
  runs.push(end);
  return runs;
}

/** Answers a read in chunks: one for each hole, one or more for each run of data, and an end. */
export async function readRuns(
  image: Image,
  writer: ReplyWriter,
  request: Request,
  runs: readonly number[],
): Promise<void> {
  let at = request.offset;
  for (const [i, stop] of runs.entries()) {
    if (i % 2 === 1 && stop > at) writer.hole(request, at, stop - at, false);
    else while (at < stop) at = await readRun(image, writer, request, at, Math.min(stop, at + CHUNK_DATA));
    at = stop;
  }
  writer.done(request, true);
}

async function readRun(image: Image, writer: ReplyWriter, request: Request, from: number, to: number): Promise<number> {
  const { output, dataHead: head } = writer;
  const length = to - from;
  const { memory, view } = output.ensure(head + length);
  const { at } = output;
  request.hold(output.setAside(head + length), at, head + length);
  const iov = IoVec.of(memory, at + head, length);
  if (!image.tryReadv(from, iov)) await image.readv(from, iov);
  writer.putDataHead(view, at, request, from, length, false);
  output.push(request.chunks[0] as Chunk, at, at + head + length);
  request.forget();
  return to;
}
