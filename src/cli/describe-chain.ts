import { stat } from 'node:fs/promises';
import { ImageError } from '../../formats/core/errors.ts';
import { isWebAddress } from '../../formats/image/gate.ts';
import type { Layer } from '../../formats/image/layer.ts';
import { createGate, createHost, explainFormat, type HostOptions, refuseForeign } from '../open/host.ts';
import { isRemote, parseImageName, parseImageSource, type RemoteSource } from '../open/name.ts';
import { openRemoteImage } from '../open/remote-image.ts';
import { combine, type ImageInfo, imageInfo } from './image-info.ts';

/** QEMU has no limit on the length of a chain; a file that is written for it can make one of any length. */
const MAX_DEPTH = 200;

export interface DescribeOptions extends HostOptions {
  readonly format?: string | undefined;
  readonly forceShare?: boolean | undefined;
  readonly strict?: boolean | undefined;
  /** Also the image's backing file, and that one's, in turn. */
  readonly backingChain?: boolean | undefined;
  /** List the files below each image, as QEMU does since 8.0. */
  readonly children: boolean;
}

interface ToDescribe {
  /** What is printed, in qemu-img's spelling. */
  readonly filename: string;
  /** What is opened. */
  readonly path: string;
  readonly format: string | undefined;
  /** The disk, where the file is an archive of several. */
  readonly member?: string | undefined;
}

/** What an image is, and with `backingChain` what is below it, top first. Each file is opened alone, and closed again. */
export async function describeChain(image: string, options: DescribeOptions): Promise<ImageInfo[]> {
  const name = parseImageSource(image);
  if (isRemote(name)) return [await describeRemote(name, options)];
  const gate = createGate(options);
  const host = createHost(options);
  const chain: ImageInfo[] = [];
  const seen = new Set<string>();
  let next: ToDescribe | undefined = {
    filename: image,
    path: name.path,
    format: options.format,
    member: name.member,
  };
  while (next !== undefined) {
    const current: ToDescribe = next;
    const { filename, path, format, member } = current;
    next = undefined;
    const lock = options.forceShare === true ? 'shared' : 'default';
    const layer = await host
      .openLayer(path, { format, member, lock, strict: options.strict })
      .catch((error: unknown) => {
        throw explainFormat(error, format);
      });
    try {
      const { storage } = layer;
      if (seen.has(storage.id) || chain.length === MAX_DEPTH) {
        throw new ImageError('CORRUPT', 'its chain of backing files comes back to itself or never ends', {
          path: image,
        });
      }
      seen.add(storage.id);
      if (format === undefined && layer.format === 'raw') await refuseForeign(storage);
      const described = await layer.describe();
      chain.push(imageInfo(filename, described, storage.size, options));
      if (options.backingChain === true && described.backingFile !== undefined) {
        const reference = fileReference(described.backingFile, path);
        const below = isWebAddress(reference) ? reference : storage.resolve(reference);
        gate.admit(below, path, 'backing file');
        next = { filename: combine(filename, reference), path: below, format: described.backingFormat };
      }
    } finally {
      await closeQuietly(layer);
    }
  }
  return chain;
}

/** What another program opens: size and format are all that it tells. */
async function describeRemote(source: RemoteSource, options: DescribeOptions): Promise<ImageInfo> {
  const { format, forceShare, secretFile, warn } = options;
  const { image, bridge } = await openRemoteImage(source, { format, readOnly: true, forceShare, secretFile, warn });
  try {
    const specific = bridge && { bridge: bridge.program, 'bridge-version': bridge.version };
    const allocated = bridge?.file === undefined ? undefined : (await stat(bridge.file)).blocks * 512;
    const layer = {
      format: image.format,
      virtualSize: image.size,
      dirty: false,
      ...(allocated === undefined ? {} : { actualSize: allocated }),
      ...(specific === undefined ? {} : { specific }),
    };
    return imageInfo(source.url, layer, image.size, options);
  } finally {
    await image.close().catch(() => undefined);
  }
}

/** The file that a backing reference means. @throws {ImageError} UNSUPPORTED when it means something else than a file */
function fileReference(reference: string, from: string): string {
  try {
    return isWebAddress(reference) ? reference : parseImageName(reference).path;
  } catch (cause) {
    throw new ImageError('UNSUPPORTED', `its backing file ${reference} is not a file`, { path: from, cause });
  }
}

/** Nothing was written, so nothing is lost when closing fails. */
async function closeQuietly(layer: Layer): Promise<void> {
  await layer.close().catch(() => undefined);
}
