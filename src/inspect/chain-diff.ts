import { ABSENT, DATA, ExtentBuffer, OPAQUE, ZERO } from '../../formats/image/extent.ts';
import type { Layer } from '../../formats/index.ts';
import { ChainImage, type MappingDiff, type MappingDifference, type MappingState } from '../../formats/index.ts';

/** An open image as one side of a comparison. */
export interface DiffSide {
  readonly image: ChainImage;
  /** The top layer is an internal snapshot: another mapping of its file than others may have open. */
  readonly isSnapshot: boolean;
}

/** Guest bytes that are mapped at once. */
const STEP = 256 * 1024 * 1024;
const BATCH = 1024;

/**
 * Finds where two images differ in what they are made of. What both stand on is left out: of an overlay and its base only the overlay's
 * tables are read.
 *
 * @param from, to stay open until the differences have been taken; closing is the caller's
 */
export function diffChains(from: DiffSide, to: DiffSide): MappingDiff {
  const common = commonLayers(from, to);
  const [a, b] = [new Cursor(from.image, common), new Cursor(to.image, common)];
  return { fromSize: a.size, toSize: b.size, differences: differences(a, b) };
}

/** How many layers at the bottom are the same files. */
function commonLayers(a: DiffSide, b: DiffSide): number {
  const [layersA, layersB] = [a.image.layers, b.image.layers];
  const usable = (side: DiffSide, index: number): Layer | undefined =>
    index === 0 && side.isSnapshot ? undefined : side.image.layers[index];
  let count = 0;
  for (;;) {
    const [layerA, layerB] = [usable(a, layersA.length - 1 - count), usable(b, layersB.length - 1 - count)];
    if (layerA === undefined || layerB === undefined || layerA.storage.id !== layerB.storage.id) return count;
    count++;
  }
}

async function* differences(a: Cursor, b: Cursor): AsyncGenerator<readonly MappingDifference[]> {
  const end = Math.max(a.size, b.size);
  let batch: MappingDifference[] = [];
  let open: { start: number; length: number; from: MappingState; to: MappingState } | undefined;
  for (let at = 0; at < end; ) {
    await a.seek(at);
    await b.seek(at);
    const length = Math.min(a.length, b.length, end - at);
    if (!same(a, b)) {
      if (open !== undefined && open.start + open.length === at && open.from === a.state && open.to === b.state) {
        open.length += length;
      } else {
        if (open !== undefined) batch.push(open);
        open = { start: at, length, from: a.state, to: b.state };
        if (batch.length >= BATCH) {
          yield batch;
          batch = [];
        }
      }
    }
    at += length;
  }
  if (open !== undefined) batch.push(open);
  if (batch.length > 0) yield batch;
}

/** Whether two places give the same bytes, as far as mappings tell. */
function same(a: Cursor, b: Cursor): boolean {
  if (a.readsZero && b.readsZero) return true;
  if (a.state !== b.state) return false;
  // What neither has is in the layers that both stand on.
  if (a.state === 'absent') return true;
  return a.storageId === b.storageId && a.storageOffset === b.storageOffset;
}

/** Walks the layers of an image above the common ones. */
class Cursor {
  readonly size: number;
  /** Where the common layers end, seen through this side: behind it what is absent reads as zeros. */
  readonly #visible: number;
  readonly #upper: ChainImage | undefined;
  readonly #extents = new ExtentBuffer(256);
  #index = 0;
  #at = 0;
  state: MappingState = 'absent';
  /** Bytes from the current place on that are alike. */
  length = 0;
  readsZero = false;
  storageId = '';
  storageOffset = 0;

  constructor(image: ChainImage, common: number) {
    this.size = image.size;
    const layers = image.layers.slice(0, image.layers.length - common);
    this.#upper = layers.length === 0 ? undefined : new ChainImage(layers, { release: async () => undefined });
    const below = common === 0 ? [0] : [image.layers[layers.length]?.size ?? 0];
    this.#visible = Math.min(...below, ...layers.map(({ size }) => size));
  }

  /** Looks at the place `at`, which never goes back. */
  async seek(at: number): Promise<void> {
    this.storageId = '';
    this.storageOffset = 0;
    if (at >= this.size) return this.#be('outside', Number.POSITIVE_INFINITY, true);
    if (this.#upper === undefined) return this.#absent(at, this.size - at);
    const extents = this.#extents;
    if (at >= extents.end || extents.count === 0 || at < (extents.offsets[0] as number)) {
      await this.#upper.map(at, Math.min(STEP, this.size - at), extents);
      this.#index = 0;
    }
    while (at >= this.#endOf(this.#index)) this.#index++;
    this.#at = at;
    this.#enter(this.#upper);
  }

  #endOf(index: number): number {
    return (this.#extents.offsets[index] as number) + (this.#extents.lengths[index] as number);
  }

  #enter(upper: ChainImage): void {
    const { kinds, storageOffsets, offsets, depths } = this.#extents;
    const i = this.#index;
    const within = this.#at - (offsets[i] as number);
    const left = this.#endOf(i) - this.#at;
    const storage = upper.layers[depths[i] as number]?.storage;
    switch (kinds[i]) {
      case DATA:
        this.#be('data', left, false);
        this.storageId = this.#extents.storages[i]?.id ?? '';
        this.storageOffset = (storageOffsets[i] as number) + within;
        break;
      case OPAQUE:
        this.#be('compressed', left, false);
        this.storageId = storage?.id ?? '';
        this.storageOffset = storageOffsets[i] as number;
        break;
      case ZERO:
        this.#be('zero', left, true);
        break;
      case ABSENT:
        this.#absent(this.#at, left);
        break;
    }
  }

  #absent(at: number, length: number): void {
    if (at >= this.#visible) this.#be('absent', length, true);
    else this.#be('absent', Math.min(length, this.#visible - at), false);
  }

  #be(state: MappingState, length: number, readsZero: boolean): void {
    this.state = state;
    this.length = length;
    this.readsZero = readsZero;
  }
}
