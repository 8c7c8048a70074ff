import {
  ABSENT,
  ALLOCATED,
  BEHIND_PARENT,
  COMPRESSED,
  DATA,
  ENCRYPTED,
  ExtentBuffer,
  type Image,
  type Layer,
  OPAQUE,
  type Storage,
  ZERO,
} from '../../formats/index.ts';

/** A part of a disk, in the terms of `qemu-img map`. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  /** Which file of the chain decides, 0 the top one. */
  readonly depth: number;
  /** The file at `depth` says what is there; else no file of the chain does. */
  readonly present: boolean;
  /** Reads as zeros. */
  readonly zero: boolean;
  /** There are bytes to be read. */
  readonly data: boolean;
  readonly compressed: boolean;
  /** Where the bytes lie in `filename`, when they lie there as they are. */
  readonly offset: number | undefined;
  readonly filename: string | undefined;
}

/**
 * What is where, in order, as the metadata of the whole chain has it. What is alike and lies side by side is one entry.
 *
 * @param range guest bytes
 */
export async function* mapEntries(
  image: Image,
  range: { readonly start: number; readonly end: number },
): AsyncGenerator<MapEntry> {
  const layers = (image as { layers?: readonly Layer[] }).layers;
  const extents = new ExtentBuffer();
  const withHoles = new Set<Layer>();
  for (const layer of layers ?? []) if (await mayHaveHoles(layer)) withHoles.add(layer);
  let last: MapEntry | undefined;
  for (let at = range.start; at < range.end; at = extents.end) {
    await image.map(at, range.end - at, extents);
    for (let i = 0; i < extents.count; i++) {
      for await (const entry of entriesOf(extents, i, layers, (layer) => withHoles.has(layer))) {
        const joined: MapEntry | undefined = last && join(last, entry);
        if (joined === undefined && last !== undefined) yield last;
        last = joined ?? entry;
      }
    }
  }
  if (last !== undefined) yield last;
}

async function* entriesOf(
  extents: ExtentBuffer,
  i: number,
  layers: readonly Layer[] | undefined,
  holed: (layer: Layer) => boolean,
): AsyncGenerator<MapEntry> {
  const kind = extents.kinds[i];
  const flags = extents.flags[i] as number;
  const depth = extents.depths[i] as number;
  const start = extents.offsets[i] as number;
  const length = extents.lengths[i] as number;
  const storage = extents.storages[i] ?? null;
  const placed = storage !== null && (kind === DATA || (kind === ZERO && (flags & ALLOCATED) !== 0));
  const shown = placed && (flags & ENCRYPTED) === 0;
  const entry: MapEntry = {
    start,
    length,
    depth,
    present: (kind !== ABSENT || layers?.[depth]?.format === 'vdi') && (flags & BEHIND_PARENT) === 0,
    zero: kind === ZERO || kind === ABSENT,
    data: kind === DATA || kind === OPAQUE || (placed && isFlat(layers?.[depth], storage)),
    compressed: kind === OPAQUE && (flags & COMPRESSED) !== 0,
    // Of encrypted bytes nobody can make anything without the key.
    offset: shown ? (extents.storageOffsets[i] as number) : undefined,
    filename: shown ? storage.path : undefined,
  };
  const layer = layers?.[depth];
  const split = kind === DATA && storage !== null && layer !== undefined && holed(layer);
  if (split) yield* splitAtHoles(entry, storage);
  else yield entry;
}

/** Extents that are laid out from the start: what was never written there is data to QEMU, that reads as zeros. */
function isFlat(layer: Layer | undefined, storage: Storage): boolean {
  return layer?.format === 'vmdk' && storage !== layer.storage;
}

/** The space of the image was given out beforehand, and the file may have holes there: QEMU looks for those, too. */
async function mayHaveHoles(layer: Layer): Promise<boolean> {
  if (layer.format !== 'qcow2' && layer.format !== 'vdi') return false;
  const { actualSize, clusterSize = 0, specific } = await layer.describe();
  if (layer.format === 'vdi') return specific?.['image-type'] === 'fixed';
  if (actualSize === undefined || clusterSize === 0) return false;
  // QEMU's rule: a tenth of the clusters, and more than two of them, are not there.
  const there = Math.floor(actualSize / clusterSize);
  return Math.floor(layer.storage.size / clusterSize) > Math.max((there * 10) / 9, there + 2);
}

async function* splitAtHoles(entry: MapEntry, storage: Storage): AsyncGenerator<MapEntry> {
  const base = entry.offset as number;
  const end = base + entry.length;
  for (let at = base; at < end; ) {
    const data = Math.min(end, await storage.nextData(at));
    const stop = data > at ? data : Math.max(at + 1, Math.min(end, await storage.nextHole(at)));
    yield { ...entry, start: entry.start + at - base, length: stop - at, offset: at, zero: data > at };
    at = stop;
  }
}

function join(a: MapEntry, b: MapEntry): MapEntry | undefined {
  const alike =
    a.depth === b.depth &&
    a.present === b.present &&
    a.zero === b.zero &&
    a.data === b.data &&
    a.compressed === b.compressed &&
    a.filename === b.filename &&
    (a.offset === undefined ? b.offset === undefined : a.offset + a.length === b.offset);
  return alike ? { ...a, length: a.length + b.length } : undefined;
}
