import { LunetteError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/image/image.ts';
import type { ChainImage, ImageHost } from '../../formats/index.ts';
import { explainFormat, refuseForeign } from './host.ts';
import { isRemote, parseImageSource } from './name.ts';
import { openRemoteImage } from './remote-image.ts';

export interface OpenDiskOptions {
  /** Trust no probing. */
  readonly format?: string | undefined;
  /** Default true. */
  readonly readOnly?: boolean | undefined;
  /** An internal snapshot, by id or name. */
  readonly snapshot?: string | undefined;
  readonly forceShare?: boolean | undefined;
  readonly strict?: boolean | undefined;
  readonly parent?: string | undefined;
  readonly ignoreCid?: boolean | undefined;
  /** Files that hold a passphrase each, to be tried. QEMU gets the first. */
  readonly secretFile?: readonly string[] | undefined;
  readonly warn?: ((message: string, path: string) => void) | undefined;
}

/**
 * Opens what a person types as a disk to read from (or, unless `readOnly`, to write to): a file of any format, an export of an NBD
 * server, what QEMU opens for us.
 *
 * @throws {LunetteError} what ImageHost.open throws; UNSUPPORTED for URLs and formats that are not known
 */
export async function openDisk(host: ImageHost, text: string, options: OpenDiskOptions = {}): Promise<Image> {
  const { format, readOnly = true, forceShare } = options;
  const name = parseImageSource(text);
  if (isRemote(name)) {
    const { snapshot, secretFile, warn } = options;
    return (await openRemoteImage(name, { format, readOnly, snapshot, forceShare, secretFile, warn })).image;
  }
  if (name.kind === 'http' && !readOnly) {
    throw new LunetteError('READ_ONLY', 'what is on a web server can only be read', { path: text });
  }
  let image: ChainImage;
  try {
    image = await host.open(name.path, {
      format,
      readOnly,
      snapshot: options.snapshot,
      strict: options.strict,
      parent: options.parent,
      ignoreCid: options.ignoreCid,
      member: name.member,
      lock: forceShare === true ? 'shared' : 'default',
    });
  } catch (error) {
    throw explainFormat(error, format);
  }
  const [top] = image.layers;
  if (format !== undefined || top === undefined || top.format !== 'raw') return image;
  try {
    await refuseForeign(top.storage);
    return image;
  } catch (error) {
    await image.close();
    throw error;
  }
}
