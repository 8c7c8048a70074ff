import { COMPRESSED, DATA, ExtentBuffer, OPAQUE, ZERO } from '../../formats/image/extent.ts';
import { type Image, visitOwnClusters } from '../../formats/index.ts';
import type { Storage } from '../../formats/storage/storage.ts';

/** What a part of a disk is made of. What is none of these is not allocated anywhere, and reads as zeros. */
export const ALLOCATION_KINDS = ['data', 'shared', 'compressed', 'zero', 'below'] as const;
export type AllocationKind = (typeof ALLOCATION_KINDS)[number];

/** A disk in equal cells, with the bytes of each kind in each. */
export interface Allocation {
  /** Guest bytes. */
  readonly size: number;
  /** Guest bytes of a cell; the last one may be shorter. */
  readonly cellSize: number;
  readonly cells: number;
  /**
   * Bytes by kind and cell. `data`: in the image itself; `shared`: of that, with a snapshot; `compressed`; `zero`: marked as zeros; `below`: in
   * a file that the image stands on.
   */
  readonly bytes: Readonly<Record<AllocationKind, Float64Array>>;
  /** Sums over all cells. */
  readonly totals: Readonly<Record<AllocationKind | 'unallocated', number>>;
}

/** Cells of a picture: rows of 64, as many as there is room for on a page. */
export const MAP_CELLS = 1280;

const STEP = 1024 * 1024 * 1024;
const CELL_ALIGN = 64 * 1024;

/**
 * Maps a disk into at most `maxCells` cells. Reads metadata only.
 *
 * @param qcow2 the file of the live qcow2 image, to tell what it shares with its snapshots
 */
export async function mapAllocation(
  image: Image,
  options: { readonly maxCells: number; readonly qcow2?: Storage | undefined },
): Promise<Allocation> {
  const cellSize = cellSizeFor(image.size, options.maxCells);
  const cells = Math.ceil(image.size / cellSize);
  const bytes = Object.fromEntries(ALLOCATION_KINDS.map((kind) => [kind, new Float64Array(cells)])) as Record<
    AllocationKind,
    Float64Array
  >;
  const extents = new ExtentBuffer(1024);
  for (let at = 0; at < image.size; at = extents.end) {
    await image.map(at, Math.min(STEP, image.size - at), extents);
    for (let i = 0; i < extents.count; i++) {
      const kind = kindOf(extents, i);
      if (kind === undefined) continue;
      spread(bytes[kind], extents.offsets[i] as number, extents.lengths[i] as number, cellSize);
    }
  }
  if (options.qcow2 !== undefined) {
    const own = new Float64Array(cells);
    await visitOwnClusters(options.qcow2, (start, length) => spread(own, start, length, cellSize));
    for (let i = 0; i < cells; i++) {
      const mine = Math.min(own[i] as number, bytes.data[i] as number);
      bytes.shared[i] = (bytes.data[i] as number) - mine;
      bytes.data[i] = mine;
    }
  }
  const totals = Object.fromEntries(
    ALLOCATION_KINDS.map((kind) => [kind, bytes[kind].reduce((sum, each) => sum + each, 0)]),
  ) as Record<AllocationKind, number>;
  const allocated = Object.values(totals).reduce((sum, each) => sum + each, 0);
  return { size: image.size, cellSize, cells, bytes, totals: { ...totals, unallocated: image.size - allocated } };
}

/** Size of cells so that at most `maxCells` make up the disk: a whole number of blocks of 64 KiB. */
export function cellSizeFor(size: number, maxCells: number): number {
  return Math.max(CELL_ALIGN, Math.ceil(size / maxCells / CELL_ALIGN) * CELL_ALIGN);
}

function kindOf(extents: ExtentBuffer, i: number): AllocationKind | undefined {
  const kind = extents.kinds[i];
  if (kind !== DATA && kind !== OPAQUE && kind !== ZERO) return undefined;
  if (kind === ZERO) return (extents.depths[i] as number) > 0 ? undefined : 'zero';
  if ((extents.depths[i] as number) > 0) return 'below';
  return ((extents.flags[i] as number) & COMPRESSED) !== 0 ? 'compressed' : 'data';
}

/** Adds the bytes of a range to the cells that it lies in. */
export function spread(cells: Float64Array, start: number, length: number, cellSize: number): void {
  const end = start + length;
  for (let at = start; at < end; ) {
    const cell = Math.floor(at / cellSize);
    const next = Math.min(end, (cell + 1) * cellSize);
    if (cell < cells.length) cells[cell] = (cells[cell] as number) + next - at;
    at = next;
  }
}
