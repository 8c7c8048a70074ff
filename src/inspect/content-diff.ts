import { IoVec } from '../../formats/core/iov.ts';
import type { Image, MappingDifference } from '../../formats/index.ts';

/** Bytes that are read at once from each side. */
const CHUNK = 1024 * 1024;
/** Differences are told in units of this many bytes. */
const BLOCK = 4096;
const AT_ONCE = 4;

/**
 * Reads what may differ on both sides, and keeps what does: in blocks of 4 KiB.
 *
 * @param progress is told how many bytes have been compared so far
 */
export async function* keepDifferentContent(
  from: Image,
  to: Image,
  differences: AsyncIterable<readonly MappingDifference[]>,
  progress?: (compared: number) => void,
): AsyncGenerator<readonly MappingDifference[]> {
  const buffers = Array.from({ length: AT_ONCE }, () => ({ a: Buffer.alloc(CHUNK), b: Buffer.alloc(CHUNK) }));
  let compared = 0;
  for await (const batch of differences) {
    const found: MappingDifference[] = [];
    for (const pieces of groups(batch)) {
      await Promise.all(
        pieces.map(async ({ start, length }, i) => {
          const { a, b } = buffers[i] as { a: Buffer; b: Buffer };
          await Promise.all([readTo(from, start, a, length), readTo(to, start, b, length)]);
        }),
      );
      for (const [i, piece] of pieces.entries()) {
        const { a, b } = buffers[i] as { a: Buffer; b: Buffer };
        addBlocks(found, piece, a, b);
        compared += piece.length;
      }
      progress?.(compared);
    }
    if (found.length > 0) yield found;
  }
}

/** The extents in pieces that fit the buffers, a few at a time. */
function* groups(batch: readonly MappingDifference[]): Generator<MappingDifference[]> {
  let group: MappingDifference[] = [];
  for (const each of batch) {
    for (let at = each.start; at < each.start + each.length; ) {
      const length = Math.min(CHUNK - (at % CHUNK), each.start + each.length - at);
      group.push({ ...each, start: at, length });
      at += length;
      if (group.length === AT_ONCE) {
        yield group;
        group = [];
      }
    }
  }
  if (group.length > 0) yield group;
}

/** Past the end of a disk are zeros. */
async function readTo(image: Image, start: number, buffer: Buffer, length: number): Promise<void> {
  const inside = Math.max(0, Math.min(length, image.size - start));
  if (inside > 0) await image.readv(start, IoVec.of(buffer, 0, inside));
  buffer.fill(0, inside, length);
}

function addBlocks(found: MappingDifference[], piece: MappingDifference, a: Buffer, b: Buffer): void {
  for (let at = 0; at < piece.length; ) {
    const size = Math.min(BLOCK - ((piece.start + at) % BLOCK), piece.length - at);
    if (a.compare(b, at, at + size, at, at + size) !== 0) {
      const last = found.at(-1);
      const start = piece.start + at;
      if (
        last !== undefined &&
        last.start + last.length === start &&
        last.from === piece.from &&
        last.to === piece.to
      ) {
        found[found.length - 1] = { ...last, length: last.length + size };
      } else found.push({ ...piece, start, length: size });
    }
    at += size;
  }
}
