import { ImageError, LunetteError } from '../../formats/core/errors.ts';
import { appendZeros, IoVec } from '../../formats/core/iov.ts';
import { alignDown, alignUp, MiB } from '../../formats/core/units.ts';
import { ABSENT, type ChainImage, DATA, ExtentBuffer, type ImageHost, ZERO } from '../../formats/index.ts';
import { isZero } from '../io/native.ts';
import { type DiskSource, listOf, readDisk, withSize } from './disk.ts';

const CHUNK = MiB;
/** Smallest piece that is written when it differs. */
const PIECE = 64 * 1024;

export interface RebaseOptions {
  readonly format?: string | undefined;
  /** The new backing file as it shall stand in the image: relative names are relative to the image. Empty: none, the image becomes whole. */
  readonly base: string;
  readonly baseFormat?: string | undefined;
  /** Only the name is changed: what the disk shows is the caller's business. Neither backing file need be there. */
  readonly unsafe?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ((done: number, total: number) => void) | undefined;
}

/**
 * Puts an image on another backing file, without a change in what its disk shows: what the new one shows differently is copied into the image first.
 *
 * The name in the header changes last, in one step, when all that was copied is durable.
 *
 * @throws {LunetteError} UNSUPPORTED by the format; INVALID when the format of the new backing file must be said; ABORTED
 */
export async function rebaseImage(host: ImageHost, path: string, options: RebaseOptions): Promise<void> {
  const { base, unsafe = false } = options;
  const image = await host.open(path, { format: options.format, alone: unsafe });
  try {
    const [top] = image.layers;
    if (top?.setParent === undefined) {
      throw new ImageError(
        'UNSUPPORTED',
        `the format ${image.format} does not name its parent by a path that can be changed`,
        {
          path,
          help: 'Only qcow2 images can be rebased. Convert it: lunette convert -O qcow2.',
        },
      );
    }
    let format = options.baseFormat;
    if (!unsafe) {
      const parent = base === '' ? undefined : await openBase(host, image, base, format);
      try {
        if (parent !== undefined) format ??= parent.format === 'raw' ? undefined : parent.format;
        if (base !== '' && format === undefined) throw formatMissing(base);
        await copyDifferences(image, parent, options);
      } finally {
        await parent?.close();
      }
      await image.flush();
    }
    if (base !== '' && format === undefined) throw formatMissing(base);
    const name = base === '' ? undefined : { path: base, format };
    await image.restructure((layer) => layer.setParent?.(name) ?? Promise.resolve());
  } finally {
    await image.close();
  }
}

/** Guessing what a guest can write into a raw file would let it choose files of the host. */
function formatMissing(base: string): LunetteError {
  return new LunetteError('INVALID', `the format of the backing file ${base} must be said`, {
    help: 'Name it with -F, as in -F qcow2.',
  });
}

async function openBase(
  host: ImageHost,
  image: ChainImage,
  base: string,
  format: string | undefined,
): Promise<ChainImage> {
  const path = (image.layers[0] as ChainImage['layers'][0]).storage.resolve(base);
  try {
    return await host.open(path, { format, readOnly: true });
  } catch (error) {
    if (error instanceof LunetteError && error.code === 'LOCKED' && error.path === image.path) {
      error.help = 'An image cannot stand on itself, nor on one that stands on it.';
    }
    throw error;
  }
}

/** An offset range in which neither side's metadata changes. */
interface Span {
  readonly offset: number;
  readonly length: number;
  readonly oldZero: boolean;
  readonly newZero: boolean;
}

async function copyDifferences(
  image: ChainImage,
  parent: ChainImage | undefined,
  options: RebaseOptions,
): Promise<void> {
  const shown = parent === undefined ? undefined : withSize(parent, image.size);
  const extents = new ExtentBuffer();
  const buffers = [new Uint8Array(CHUNK), new Uint8Array(CHUNK)] as const;
  for (let at = 0; at < image.size; at = extents.end) {
    await image.map(at, image.size - at, extents);
    for (let i = 0; i < extents.count; i++) {
      // What the image holds itself shows over any backing file.
      if (extents.kinds[i] !== ABSENT && extents.depths[i] === 0 && isOwn(image, extents, i)) continue;
      for await (const span of spans(extents, i, shown)) {
        for (let done = 0; done < span.length; done += CHUNK) {
          if (options.signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted', { path: image.path });
          const length = Math.min(CHUNK, span.length - done);
          await copyPart(image, shown, { ...span, offset: span.offset + done, length }, buffers);
        }
      }
    }
    options.progress?.(extents.end, image.size);
  }
}

/** Zeros behind the end of a shorter parent count as the upper layer's, but show only over that parent. */
function isOwn(image: ChainImage, extents: ExtentBuffer, index: number): boolean {
  const [, below] = image.layers;
  if (extents.kinds[index] !== ZERO || below === undefined) return true;
  return (extents.offsets[index] as number) + (extents.lengths[index] as number) <= below.size;
}

/** The parts of an extent of the old chain that the new one may show differently. */
async function* spans(old: ExtentBuffer, index: number, shown: DiskSource | undefined): AsyncGenerator<Span> {
  const start = old.offsets[index] as number;
  const end = start + (old.lengths[index] as number);
  const oldZero = old.kinds[index] === ZERO || old.kinds[index] === ABSENT;
  if (shown === undefined) {
    if (!oldZero) yield { offset: start, length: end - start, oldZero, newZero: true };
    return;
  }
  const place = (extents: ExtentBuffer, i: number, at: number): number =>
    (extents.storageOffsets[i] as number) - (extents.offsets[i] as number) + at;
  const extents = new ExtentBuffer();
  for (let at = start; at < end; at = extents.end) {
    await shown.map(at, end - at, extents);
    for (let i = 0; i < extents.count; i++) {
      const newZero = extents.kinds[i] === ZERO || extents.kinds[i] === ABSENT;
      if (oldZero && newZero) continue;
      const offset = extents.offsets[i] as number;
      const same =
        old.kinds[index] === DATA &&
        extents.kinds[i] === DATA &&
        old.storages[index]?.id === extents.storages[i]?.id &&
        place(old, index, offset) === place(extents, i, offset);
      if (!same) yield { offset, length: extents.lengths[i] as number, oldZero, newZero };
    }
  }
}

async function copyPart(
  image: ChainImage,
  shown: DiskSource | undefined,
  { offset, length, oldZero, newZero }: Span,
  [oldBytes, newBytes]: readonly [Uint8Array, Uint8Array],
): Promise<void> {
  await Promise.all([
    oldZero ? undefined : readDisk(image, offset, listOf(oldBytes, length)),
    newZero || shown === undefined ? undefined : readDisk(shown, offset, listOf(newBytes, length)),
  ]);
  const differs = (at: number, size: number): boolean => {
    const before = oldBytes.subarray(at, at + size);
    const after = newBytes.subarray(at, at + size);
    if (oldZero) return !isZero(after, 0, size);
    return newZero ? !isZero(before, 0, size) : Buffer.compare(before, after) !== 0;
  };
  // Pieces that follow each other go in one write.
  for (let at = 0; at < length; ) {
    const size = Math.min(PIECE, length - at);
    if (!differs(at, size)) {
      at += size;
      continue;
    }
    let end = at + size;
    while (end < length && differs(end, Math.min(PIECE, length - end))) end += Math.min(PIECE, length - end);
    if (oldZero) await holdZeros(image, offset + at, end - at);
    else await image.writev(offset + at, listOf(oldBytes.subarray(at, end), end - at));
    at = end;
  }
}

/**
 * Lets the image itself hold zeros where it shows some already, by its present backing file: writing zeros leaves alone what reads as zeros,
 * except for whole clusters in formats that can say so.
 */
async function holdZeros(image: ChainImage, offset: number, length: number): Promise<void> {
  const end = offset + length;
  const unit = Math.max(1, image.limits.zeroUnit);
  let start = Math.min(end, alignUp(offset, unit));
  let stop = end === image.size ? end : Math.max(start, alignDown(end, unit));
  if (start < stop) {
    await image.writeZeroes(start, stop - start, false);
    if (!(await holds(image, start, stop - start))) start = stop = end;
  }
  for (const [from, to] of [
    [offset, start],
    [stop, end],
  ] as const) {
    const list = new IoVec();
    appendZeros(list, to - from);
    if (from < to) await image.writev(from, list);
  }
}

/** Whether the image itself decides what a range shows. */
async function holds(image: ChainImage, offset: number, length: number): Promise<boolean> {
  const extents = new ExtentBuffer();
  for (let at = offset; at < offset + length; at = extents.end) {
    await image.layers[0]?.map(at, offset + length - at, extents);
    for (let i = 0; i < extents.count; i++) if (extents.kinds[i] === ABSENT) return false;
  }
  return true;
}
