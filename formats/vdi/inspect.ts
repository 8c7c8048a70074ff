import { ImageError } from '../core/errors.ts';
import type { LayerContext } from '../driver.ts';
import type { Storage } from '../storage/storage.ts';
import type { BlockMap } from './block-map.ts';
import { PhysicalBlocks } from './blocks.ts';
import { Geometry } from './geometry.ts';
import type { VdiHeader } from './header.ts';

/** Holes that are used again; an image with more than that keeps the rest until it is closed. */
const MAX_FREE = 2 ** 22;

/**
 * Indexes that a map may name. Normally all are below the number of blocks; while a disk grows blocks move further out, past the
 * longest map (2 GiB in blocks of 512 bytes): see resize.ts.
 */
export function indexLimit(header: VdiHeader): number {
  return 3 * header.cBlocks + 2 ** 22;
}

/** One bit per index. */
export class IndexSet {
  readonly #bits: Uint8Array;
  /** Indexes in the set. */
  size = 0;

  constructor(capacity: number) {
    this.#bits = new Uint8Array(Math.ceil(capacity / 8));
  }

  has(index: number): boolean {
    return ((this.#bits[index >>> 3] as number) & (1 << (index & 7))) !== 0;
  }

  /** @returns false when it was in the set already */
  add(index: number): boolean {
    const bit = 1 << (index & 7);
    const old = this.#bits[index >>> 3] as number;
    if ((old & bit) !== 0) return false;
    this.#bits[index >>> 3] = old | bit;
    this.size++;
    return true;
  }

  delete(index: number): void {
    if (!this.has(index)) return;
    this.#bits[index >>> 3] = (this.#bits[index >>> 3] as number) & ~(1 << (index & 7));
    this.size--;
  }
}

/** Whether another program that believes the count would hand out places in use. @param next index behind the last in use */
export function isCountLow(header: VdiHeader, next: number): boolean {
  return header.cBlocksAllocated < Math.min(next, header.cBlocks);
}

/**
 * Reads the whole map before an image is written: which places are used is not in the header, and what is used twice or lies
 * outside the file must not be written to.
 *
 * @throws {ImageError} CORRUPT, UNSUPPORTED
 */
export async function inspectBlocks(
  storage: Storage,
  header: VdiHeader,
  map: BlockMap,
  context: LayerContext,
): Promise<PhysicalBlocks> {
  if (header.version === 0) {
    throw new ImageError('UNSUPPORTED', 'images of version 0 are read, not written', {
      path: storage.path,
      field: 'version',
      help: 'Convert it: the copy will have the current version',
    });
  }
  const geometry = new Geometry(header);
  const used = new IndexSet(indexLimit(header));
  let next = 0;
  let fault: string | undefined;
  await map.forEachAllocated((block, index) => {
    if (index >= indexLimit(header) || !geometry.isInside(block, index, storage.size))
      fault ??= `block ${block} is at index ${index}, which is past the end of the file`;
    else if (!used.add(index)) fault ??= `block ${block} shares index ${index} with another block`;
    if (index >= next) next = index + 1;
  });
  if (fault !== undefined) {
    throw new ImageError('CORRUPT', `it cannot be written: ${fault}`, {
      path: storage.path,
      field: 'block map',
      help: 'Check it with repair first, or open it read-only',
    });
  }
  if (isCountLow(header, next)) {
    context.warn(
      `its header counts ${header.cBlocksAllocated} blocks in use, but index ${next - 1} is: the count will be set right`,
      storage,
    );
  }
  const free: number[] = [];
  for (let index = 0; index < next && free.length < Math.min(MAX_FREE, next - used.size); index++) {
    if (!used.has(index)) free.push(index);
  }
  return new PhysicalBlocks(next, free, header.cBlocks);
}
