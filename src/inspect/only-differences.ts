import { ABSENT, ExtentBuffer } from '../../formats/image/extent.ts';
import type { Image, MappingDifference } from '../../formats/index.ts';

/** The depth of what is the same in the other state: no chain is that long. */
const SAME_DEPTH = 0xffff;

/** A disk of which only what differs from another state is mapped: the rest is marked as being the same there. */
export class OnlyDifferences implements Pick<Image, 'path' | 'size' | 'map' | 'tryReadv' | 'readv'> {
  readonly path: string;
  readonly size: number;
  readonly tryReadv: Image['tryReadv'];
  readonly readv: Image['readv'];
  readonly #image: Image;
  readonly #starts: Float64Array;
  readonly #ends: Float64Array;
  readonly #piece = new ExtentBuffer(64);

  private constructor(image: Image, starts: readonly number[], ends: readonly number[]) {
    this.path = image.path;
    this.size = image.size;
    this.#image = image;
    this.tryReadv = image.tryReadv.bind(image);
    this.readv = image.readv.bind(image);
    this.#starts = Float64Array.from(starts);
    this.#ends = Float64Array.from(ends);
  }

  /** Bytes that differ. */
  get bytes(): number {
    return this.#starts.reduce((sum, start, i) => sum + (this.#ends[i] as number) - start, 0);
  }

  /** @param differences of `image` from the other state, in guest order */
  static async of(image: Image, differences: AsyncIterable<readonly MappingDifference[]>): Promise<OnlyDifferences> {
    const starts: number[] = [];
    const ends: number[] = [];
    for await (const batch of differences) {
      for (const { start, length } of batch) {
        const end = Math.min(start + length, image.size);
        if (end <= start) continue;
        if (ends[ends.length - 1] === start) ends[ends.length - 1] = end;
        else {
          starts.push(start);
          ends.push(end);
        }
      }
    }
    return new OnlyDifferences(image, starts, ends);
  }

  /** Whether an extent of map() is the same in the other state. */
  static isSame(extents: ExtentBuffer, index: number): boolean {
    return extents.depths[index] === SAME_DEPTH;
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    out.begin(offset);
    const end = offset + length;
    for (let i = this.#firstEndingAfter(offset), at = offset; at < end; ) {
      const start = this.#starts[i] ?? Number.POSITIVE_INFINITY;
      if (at < start) {
        const until = Math.min(start, end);
        if (!out.append(ABSENT, until - at, null, 0, 0, SAME_DEPTH)) break;
        at = until;
        continue;
      }
      const until = Math.min(this.#ends[i] as number, end);
      const piece = this.#piece;
      await this.#image.map(at, until - at, piece);
      for (let k = 0; k < piece.count; k++) {
        const added = out.append(
          piece.kinds[k] as 0,
          piece.lengths[k] as number,
          piece.storages[k] ?? null,
          piece.storageOffsets[k] as number,
          piece.flags[k] as number,
          piece.depths[k] as number,
        );
        if (!added) return out.count;
      }
      at = piece.end;
      if (at === this.#ends[i]) i++;
    }
    return out.count;
  }

  #firstEndingAfter(offset: number): number {
    let [low, high] = [0, this.#ends.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ends[middle] as number) > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
