import { ImageError } from '../../formats/core/errors.ts';
import type { BitmapReader } from '../../formats/image/bitmaps.ts';
import type { Image } from '../../formats/image/image.ts';
import type { Layer } from '../../formats/index.ts';

/** Bitmaps of one export that are shown unasked. */
const MAX_BITMAPS = 256;

/**
 * The dirty bitmaps that an export shows. Those that take note of writes are not shown of an image that is written to: what a client reads
 * would change under its hands.
 *
 * @param names those that were asked for, also of images below; undefined: all of the image's own that can be had
 * @throws {LunetteError} for one that was asked for and cannot be had: NOT_FOUND, CORRUPT, INVALID
 */
export async function exportedBitmaps(
  image: Image,
  names: readonly string[] | undefined,
  readOnly: boolean,
): Promise<readonly BitmapReader[]> {
  const layers = (image as { layers?: readonly Layer[] }).layers ?? [];
  if (names !== undefined) return Promise.all(names.map((name) => openNamed(image, layers, name, readOnly)));
  const store = layers[0]?.bitmaps;
  const listed = (await store?.list().catch(() => [])) ?? [];
  const found: BitmapReader[] = [];
  for (const { name, enabled, inconsistent } of listed) {
    if (inconsistent || (enabled && !readOnly) || found.length === MAX_BITMAPS) continue;
    const bitmap = await store?.open(name).catch(() => undefined); // a damaged one is none
    if (bitmap !== undefined) found.push(bitmap);
  }
  return found;
}

async function openNamed(
  image: Image,
  layers: readonly Layer[],
  name: string,
  readOnly: boolean,
): Promise<BitmapReader> {
  for (const { bitmaps, storage } of layers) {
    const info = (await bitmaps?.list())?.find((each) => each.name === name);
    if (bitmaps === undefined || info === undefined) continue;
    if (info.enabled && !readOnly && bitmaps === layers[0]?.bitmaps) {
      throw new ImageError(
        'INVALID',
        `bitmap ${JSON.stringify(name)} takes note of writes: it changes with the image`,
        {
          path: storage.path,
          help: 'Serve the image with --read-only, or disable the bitmap first.',
        },
      );
    }
    const bitmap = await bitmaps.open(name);
    if (bitmap.size === image.size) return bitmap;
    throw new ImageError('INVALID', `bitmap ${JSON.stringify(name)} is of a disk of another size`, {
      path: storage.path,
    });
  }
  throw new ImageError('NOT_FOUND', `there is no bitmap ${JSON.stringify(name)}`, { path: image.path });
}
