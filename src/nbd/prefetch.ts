import { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/image/image.ts';
import { CHUNK_DATA, type Chunk } from '../wire/chunk-pool.ts';
import type { Request } from './request.ts';

/** CACHE: reads the range of a request into the chunk that it holds, again and again, so that the caches below have it. */
export async function prefetch(
  image: Image,
  { offset, length, chunks }: Request,
  stopped: () => boolean,
): Promise<void> {
  const { memory } = chunks[0] as Chunk;
  const end = offset + length;
  for (let at = offset; at < end && !stopped(); at += CHUNK_DATA) {
    await image.readv(at, IoVec.of(memory, 0, Math.min(CHUNK_DATA, end - at)));
  }
}
