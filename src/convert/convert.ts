import path from 'node:path';
import { LunetteError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';
import type { Secrets } from '../../formats/driver.ts';
import {
  type ChainImage,
  type CreateBacking,
  type CreateValues,
  creatorOf,
  type FormatCreator,
  type Image,
  ImageHost,
  type OpenGate,
  readCreateValues,
  SharedBlockCache,
  type Storage,
  type StorageOpener,
  writeStreamOptimized,
} from '../../formats/index.ts';
import { nativeInflate } from '../io/native-inflate.ts';
import { openStorage as openNative } from '../io/open-storage.ts';
import { compareDisks } from './compare.ts';
import { type CopyOptions, copyDisk } from './copy.ts';
import { concatenate, type DiskSource, isShared, withSize } from './disk.ts';
import { WorkerEncoder } from './encoder.ts';
import { StagedTarget } from './staging.ts';
import { StreamChecksum } from './stream-checksum.ts';
import { unchangedBelow } from './unchanged.ts';

export interface ConvertOptions
  extends Pick<CopyOptions, 'sparseSize' | 'parallel' | 'memoryBytes' | 'signal' | 'progress' | 'clone'> {
  /** One or more disks, in this order. They stay open. */
  readonly sources: readonly DiskSource[];
  /** Path of the new image; what is there is replaced when all is done. */
  readonly target: string;
  readonly format: string;
  /** Options of the format, as createImage takes them. */
  readonly values?: Readonly<Record<string, unknown>> | undefined;
  /** The image that the new one stands on: clusters that it shows already are left to it. */
  readonly backing?: { readonly reference: string; readonly format?: string | undefined } | undefined;
  /**
   * With backing: the source once more, mapped so that `unchanged` knows the extents that the backing file holds as they are. Default: those
   * in files that both stand on are known.
   */
  readonly part?:
    | { readonly source: DiskSource; readonly unchanged: NonNullable<CopyOptions['unchanged']> }
    | undefined;
  readonly compress?: boolean | undefined;
  /** Make the new image durable before it gets its name. Default true. */
  readonly sync?: boolean | undefined;
  /** Read the new image back and compare it with the sources, before it gets its name. */
  readonly verify?: boolean | undefined;
  /** Called when all is written, before it gets its name: throws to keep what was there. */
  readonly settle?: (() => Promise<void>) | undefined;
  /** Work out the SHA-256 of the disk on the way. */
  readonly checksum?: boolean | undefined;
  /** Passphrases: an encrypted target gets the first. */
  readonly secrets?: Secrets | undefined;
  readonly gate?: OpenGate | undefined;
  readonly warn?: ((message: string, path: string) => void) | undefined;
  readonly openStorage?: StorageOpener | undefined;
}

export interface ConvertResult {
  /** Guest bytes of the new image. */
  readonly size: number;
  /** SHA-256 of them, hexadecimal, if it was asked for. */
  readonly checksum: string | undefined;
}

/** The target is written once and hardly read: a small cache for its tables does. */
const TARGET_CACHE = 16 * MiB;

/**
 * Writes disks into a new image. Until it is complete the target's name means what it meant before; after any failure, too.
 *
 * @throws {LunetteError} what opening, reading and writing throw; ABORTED by the signal; INVALID for options that contradict each other
 */
export async function convertImage(options: ConvertOptions): Promise<ConvertResult> {
  const { sync = true, warn, openStorage = openNative } = options;
  const creator = creatorOf(options.format);
  const values = readCreateValues(creator, options.values);
  checkOptions(options, values);
  const joined = concatenate(options.sources);
  const source = withSize(joined, creator.sizeOf(joined.size));
  const checksum = options.checksum === true ? new StreamChecksum() : undefined;
  const staged = await StagedTarget.begin(options.target, { openStorage, sync, warn });
  try {
    const backing = await lookAtBacking(options, staged);
    if (values.subformat === 'streamOptimized') {
      await writeStream(source, staged, creator, values, options, checksum);
    } else {
      await writeImage(source, staged, { creator, values, backing }, options, checksum);
    }
    if (options.verify === true) await verify(source, staged, options);
    await options.settle?.();
  } catch (error) {
    await staged.abort();
    throw error;
  }
  await staged.commit();
  return { size: source.size, checksum: checksum?.finish(source.size) };
}

function checkOptions(options: ConvertOptions, values: CreateValues): void {
  const invalid = (why: string): LunetteError => new LunetteError('INVALID', why, { path: options.target });
  const stream = values.subformat === 'streamOptimized';
  if (options.compress === true && options.format !== 'qcow2' && !stream) {
    throw invalid(
      `${options.format} images cannot be compressed: qcow2 can, and VMDK with -o subformat=streamOptimized`,
    );
  }
  if (stream && options.backing !== undefined) throw invalid('a streamOptimized disk has no backing file');
  if (options.format === 'raw' && options.backing !== undefined) throw invalid('a raw disk has no backing file');
}

async function lookAtBacking(options: ConvertOptions, staged: StagedTarget): Promise<CreateBacking | undefined> {
  if (options.backing === undefined) return undefined;
  const { reference, format } = options.backing;
  const place = path.isAbsolute(reference) ? reference : path.join(path.dirname(staged.path), reference);
  const host = hostFor(options, options.openStorage ?? openNative);
  const layer = await host.openLayer(place, { format });
  try {
    if (format === undefined && layer.format === 'raw') {
      throw new LunetteError('INVALID', `whether its backing file ${reference} is a raw disk must be said`, {
        path: options.target,
        help: 'Say -F raw.',
      });
    }
    return { reference, format: layer.format, ids: layer.ids };
  } finally {
    await layer.close();
  }
}

function hostFor(options: ConvertOptions, openStorage: StorageOpener): ImageHost {
  const { gate, warn, secrets } = options;
  return new ImageHost({
    cache: new SharedBlockCache(TARGET_CACHE),
    openStorage,
    inflate: nativeInflate,
    ...(gate === undefined ? {} : { gate }),
    ...(warn === undefined ? {} : { warn }),
    ...(secrets === undefined ? {} : { secrets }),
  });
}

interface NewImage {
  readonly creator: FormatCreator;
  readonly values: CreateValues;
  readonly backing: CreateBacking | undefined;
  readonly secrets?: Secrets | undefined;
}

/** Makes the empty image and copies the disk into it. */
async function writeImage(
  source: DiskSource,
  staged: StagedTarget,
  { creator, values, backing }: NewImage,
  options: ConvertOptions,
  checksum: StreamChecksum | undefined,
): Promise<void> {
  await createEmpty(source.size, staged, { creator, values, backing, secrets: options.secrets });
  const host = hostFor(options, staged.open);
  const image = await host.open(staged.path, { format: creator.format });
  let encoder: WorkerEncoder | undefined;
  let failed = true;
  try {
    if (options.compress === true) {
      if (image.compression === undefined) {
        throw new LunetteError('INVALID', 'an image with these options cannot be compressed', { path: staged.path });
      }
      encoder = new WorkerEncoder(image.compression);
    }
    await copyDisk(options.part?.source ?? source, image, {
      ...options,
      targetIsZero: backing === undefined,
      overBacking: backing !== undefined,
      unchanged:
        backing === undefined ? undefined : (options.part?.unchanged ?? unchangedBelow(options.sources, image)),
      encoder,
      clone: options.clone !== false && checksum === undefined && !options.sources.some(isShared),
      observe: checksum === undefined ? undefined : (offset, bytes) => checksum.update(offset, bytes),
    });
    failed = false;
  } finally {
    await encoder?.close();
    if (failed) await image.close().catch(() => undefined);
    else await image.close();
  }
}

async function createEmpty(
  size: number,
  staged: StagedTarget,
  { creator, values, backing, secrets }: NewImage,
): Promise<void> {
  const main = await staged.open(staged.path, { readOnly: false });
  const further: Storage[] = [];
  try {
    await main.lock('write');
    await creator.create(main, {
      size,
      values,
      backing,
      secret: async () => (await secrets?.())?.[0],
      async createFile(name) {
        const storage = await staged.createFile(path.resolve(path.dirname(staged.path), name));
        further.push(storage);
        return storage;
      },
    });
  } finally {
    for (const storage of [...further, main]) await storage.close();
  }
}

async function writeStream(
  source: DiskSource,
  staged: StagedTarget,
  creator: FormatCreator,
  values: CreateValues,
  options: ConvertOptions,
  checksum: StreamChecksum | undefined,
): Promise<void> {
  if (checksum !== undefined) {
    throw new LunetteError('UNSUPPORTED', `no checksum is worked out while writing ${creator.format} streams`, {
      path: options.target,
      help: 'lunette checksum IMAGE works it out afterwards.',
    });
  }
  const storage = await staged.open(staged.path, { readOnly: false });
  try {
    await storage.lock('write');
    await writeStreamOptimized(source, storage, {
      adapterType: values.adapter_type as never,
      ...(values.hwversion === undefined ? {} : { hwVersion: String(values.hwversion) }),
      ...(values.toolsversion === undefined ? {} : { toolsVersion: String(values.toolsversion) }),
      progress: (done) => {
        if (options.signal?.aborted === true)
          throw new LunetteError('ABORTED', 'interrupted', { path: options.target });
        options.progress?.(done);
      },
    });
  } finally {
    await storage.close();
  }
}

/** Reads the new image as anybody will read it. */
async function verify(source: DiskSource, staged: StagedTarget, options: ConvertOptions): Promise<void> {
  const host = hostFor(options, staged.open);
  const image: ChainImage & Image = await host.open(staged.path, { format: options.format, readOnly: true });
  try {
    const { differsAt } = await compareDisks(source, image, { signal: options.signal });
    if (differsAt !== undefined) {
      throw new LunetteError('IO', `what was written differs from the source at offset ${differsAt}`, {
        path: options.target,
        offset: differsAt,
        help: 'Memory, disk or cable are not to be trusted; the target is as it was.',
      });
    }
  } finally {
    await image.close();
  }
}
