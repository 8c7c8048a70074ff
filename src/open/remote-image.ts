import { ImageError, LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/image/image.ts';
import { formatOfHead, HEAD } from './foreign.ts';
import type { RemoteSource } from './name.ts';

export interface RemoteOptions {
  /**
   * NBD: raw, or undefined: raw, unless the content looks like another format. For QEMU the name says it, but for a protocol's, where it may be
   * any of QEMU's formats.
   */
  readonly format?: string | undefined;
  readonly readOnly: boolean;
  /** An internal snapshot: of images that QEMU opens. */
  readonly snapshot?: string | undefined;
  /** Take no locks: for images that QEMU opens. */
  readonly forceShare?: boolean | undefined;
  /** Files that hold a passphrase each, to be tried. QEMU gets the first. */
  readonly secretFile?: readonly string[] | undefined;
  /** Something is odd but not fatal. */
  readonly warn?: ((message: string, path: string) => void) | undefined;
}

/** An image that somebody else opens for us. */
export interface RemoteImage {
  readonly image: Image;
  /** The content is known not to be another image file, or was said not to matter: nobody needs to guard it. */
  readonly certain: boolean;
  /** The program in between; undefined for an NBD server that was there. */
  readonly bridge:
    | { readonly program: 'qemu-nbd'; readonly version: string; readonly file: string | undefined }
    | undefined;
}

/**
 * Opens what is behind a URL as a disk.
 *
 * @throws {LunetteError} UNSUPPORTED when an export holds an image file of some format; UNAVAILABLE without qemu-nbd; what connecting throws
 */
export async function openRemoteImage(source: RemoteSource, options: RemoteOptions): Promise<RemoteImage> {
  if (source.kind === 'nbd') {
    const image = await openNbdImage(source.url, options);
    return { image, certain: options.format !== undefined, bridge: undefined };
  }
  const { openBridge } = await import('../qemu/bridge.ts');
  const { secretFile, ...others } = options;
  const { image, version, file, formatSaid } = await openBridge(source.url, { ...others, secretFile: secretFile?.[0] });
  if (!formatSaid) await closeUnless(image, () => refuseForeignContent(image));
  return { image, certain: formatSaid, bridge: { program: 'qemu-nbd', version, file } };
}

async function openNbdImage(url: string, options: RemoteOptions): Promise<Image> {
  const { format, readOnly } = options;
  if (format !== undefined && format !== 'raw') {
    throw new ImageError('UNSUPPORTED', `a ${format} image inside of an NBD export cannot be read`, {
      path: url,
      help: 'Let the server open the image: lunette export --transport nbd, qemu-nbd -f.',
    });
  }
  if (options.snapshot !== undefined) {
    throw new LunetteError('UNSUPPORTED', 'a snapshot of an NBD export cannot be opened', {
      path: url,
      help: 'Servers give snapshots as exports of their own: lunette has them under NAME@SNAPSHOT.',
    });
  }
  const { NbdImage } = await import('../nbd/client.ts');
  const image = await NbdImage.open(url, { readOnly });
  if (format === undefined) await closeUnless(image, () => refuseForeignContent(image));
  return image;
}

async function closeUnless(image: Image, check: () => Promise<void>): Promise<void> {
  try {
    await check();
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
  throw new ImageError('UNSUPPORTED', `it holds a ${found} image, and image files inside of it are not read`, {
    path: image.path,
    help: 'Let the server open the image, or take its bytes as they are with -f raw.',
  });
}
