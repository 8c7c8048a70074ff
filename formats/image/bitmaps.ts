import { ImageError, LunetteError } from '../core/errors.ts';
import type { ChainImage } from './chain.ts';
import type { Layer } from './layer.ts';

/** A persistent dirty bitmap: which parts of a disk were written since it was cleared. */
export interface BitmapInfo {
  readonly name: string;
  /** Bytes of the disk per bit. */
  readonly granularity: number;
  /** Takes note of writes. */
  readonly enabled: boolean;
  /** Misses writes, or may: it can only be removed. */
  readonly inconsistent: boolean;
}

/** What a bitmap holds. */
export interface BitmapReader {
  readonly name: string;
  readonly granularity: number;
  /** Bytes of the disk. */
  readonly size: number;
  /**
   * Runs from `offset` on: pairs of length and 1 for dirty, 0 for clean, which alternate. Ends early after `most` pairs.
   *
   * @throws {ImageError} CORRUPT
   */
  runs(offset: number, length: number, most: number): Promise<number[]>;
}

export interface NewBitmapOptions {
  /** 512 to 2 GiB, a power of two. Default: the cluster size, within 4 to 64 KiB. */
  readonly granularity?: number | undefined;
  /** Default true. */
  readonly enabled?: boolean | undefined;
}

/** Takes note of changes of a disk. */
export interface ChangeRecorder {
  /** Notes that a range is about to change. @returns false when that takes room that must be made first: record() */
  tryRecord(offset: number, length: number): boolean;
  record(offset: number, length: number): Promise<void>;
}

/** What a format with bitmaps offers. Changes come while no write is in flight; each happens as a whole or not at all. */
export interface BitmapStore {
  list(): Promise<readonly BitmapInfo[]>;
  /** @throws {ImageError} NOT_FOUND; CORRUPT when it is inconsistent. What it reads is as of now also while the disk is written */
  open(name: string): Promise<BitmapReader>;
  add(name: string, options: NewBitmapOptions): Promise<void>;
  remove(name: string): Promise<void>;
  clear(name: string): Promise<void>;
  setEnabled(name: string, enabled: boolean): Promise<void>;
  merge(name: string, source: BitmapReader): Promise<void>;
}

/** Lists the persistent bitmaps of an image; none where the format has none. */
export async function listBitmaps(image: ChainImage): Promise<readonly BitmapInfo[]> {
  return (await image.layers[0]?.bitmaps?.list()) ?? [];
}

/** @throws {LunetteError} NOT_FOUND; CORRUPT when it is inconsistent */
export async function openBitmap(image: ChainImage, name: string): Promise<BitmapReader> {
  return storeOf(image.layers[0] as Layer).open(name);
}

/** Adds an empty bitmap. @throws {LunetteError} EXISTS, INVALID, TOO_LARGE, UNSUPPORTED by the format */
export function addBitmap(image: ChainImage, name: string, options: NewBitmapOptions = {}): Promise<void> {
  return image.restructure((top) => storeOf(top).add(name, options));
}

/** Removes a bitmap, also one that is inconsistent. @throws {LunetteError} NOT_FOUND */
export function removeBitmap(image: ChainImage, name: string): Promise<void> {
  return image.restructure((top) => storeOf(top).remove(name));
}

/** Makes a bitmap say that nothing was written. @throws {LunetteError} NOT_FOUND, CORRUPT when it is inconsistent */
export function clearBitmap(image: ChainImage, name: string): Promise<void> {
  return image.restructure((top) => storeOf(top).clear(name));
}

/** Lets a bitmap take note of writes from now on. Errors as clearBitmap. */
export function enableBitmap(image: ChainImage, name: string): Promise<void> {
  return image.restructure((top) => storeOf(top).setEnabled(name, true));
}

/** Keeps a bitmap as it is now. Errors as clearBitmap. */
export function disableBitmap(image: ChainImage, name: string): Promise<void> {
  return image.restructure((top) => storeOf(top).setEnabled(name, false));
}

/**
 * Adds to a bitmap what another one says, of this image or of another one with a disk of the same size; granularities may differ.
 *
 * @throws {LunetteError} INVALID when sizes differ; as clearBitmap
 */
export function mergeBitmap(image: ChainImage, name: string, source: BitmapReader): Promise<void> {
  return image.restructure((top) => {
    if (source.size !== top.size) {
      const why = `bitmap ${source.name} is of a disk of ${source.size} bytes, the image has ${top.size}`;
      throw new LunetteError('INVALID', why, { path: image.path });
    }
    return storeOf(top).merge(name, source);
  });
}

function storeOf(top: Layer): BitmapStore {
  if (top.bitmaps !== undefined) return top.bitmaps;
  throw new ImageError('UNSUPPORTED', `the format ${top.format} has no dirty bitmaps`, { path: top.storage.path });
}
