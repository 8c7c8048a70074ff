import { ImageError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/image/image.ts';
import { formatOfHead, HEAD } from './foreign.ts';

export interface NbdOpenOptions {
  /** raw, or undefined: raw, unless the content looks like another format. */
  readonly format?: string | undefined;
  readonly readOnly: boolean;
}

/**
 * Opens an export of an NBD server as a disk.
 *
 * @throws {LunetteError} UNSUPPORTED when the export holds an image file of some format; what connecting throws
 */
export async function openNbdImage(url: string, { format, readOnly }: NbdOpenOptions): Promise<Image> {
  if (format !== undefined && format !== 'raw') {
    throw new ImageError('UNSUPPORTED', `a ${format} image inside of an NBD export cannot be read`, {
      path: url,
      help: 'Let the server open the image: lunette export --transport nbd, qemu-nbd -f.',
    });
  }
  const { NbdImage } = await import('../nbd/client.ts');
  const image = await NbdImage.open(url, { readOnly });
  try {
    if (format === undefined) await refuseForeignContent(image);
    return image;
  } catch (error) {
    await image.close().catch(() => undefined);
    throw error;
  }
}

async function refuseForeignContent(image: Image): Promise<void> {
  const head = new Uint8Array(Math.min(HEAD, image.size));
  if (head.length > 0) await image.readv(0, IoVec.of(head));
  const found = formatOfHead(head);
  if (found === undefined) return;
  throw new ImageError(
    'UNSUPPORTED',
    `the export holds a ${found} image, and image files inside of exports are not read`,
    {
      path: image.path,
      help: 'Let the server open the image, or take its bytes as they are with -f raw.',
    },
  );
}
