import { stat } from 'node:fs/promises';
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
import { nativeUnpack } from '../io/native-unpack.ts';
import { openStorage as openNative } from '../io/open-storage.ts';
import { compareDisks } from './compare.ts';
import { type CopyOptions, copyDisk, copyUnit } from './copy.ts';
import { concatenate, type DiskSource, isShared, withSize } from './disk.ts';
import { startEncoder, type UnitEncoder } from './encoder.ts';
import { readAhead } from './proof.ts';
import { forgetEarlier, type ResumeOptions, Resumption, wipeFrom } from './resumption.ts';
import { type DataRun, dataRuns } from './runs.ts';
import { StagedTarget } from './staging.ts';
import { StreamChecksum } from './stream-checksum.ts';
import { streamOptions } from './stream-options.ts';
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
  /** Keep a journal, leave what is done when it fails, and go on with what such a conversion left. Not for streams. */
  readonly resume?: ResumeOptions | undefined;
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
  const checksum = options.checksum === true ? new StreamChecksum(options.signal) : undefined;
  await refuseOntoItself(options);
  const isStream = values.subformat === 'streamOptimized';
  const resume = isStream ? undefined : options.resume;
  const staged = await StagedTarget.begin(options.target, { openStorage, sync, warn, keep: resume !== undefined });
  let resumption: Resumption | undefined;
  let digest: string | undefined;
  try {
    if (resume !== undefined) resumption = await prepareResumption(options, source.size, values, staged, resume);
    else await forgetJournal(options, staged);
    const backing = await lookAtBacking(options, staged);
    if (isStream) {
      await writeStream(source, staged, values, options, checksum);
    } else {
      await writeImage(source, staged, { creator, values, backing }, options, checksum, resumption);
    }
    if (options.verify === true) await verify(source, staged, options);
    digest = await checksum?.finish(source.size);
    await options.settle?.();
    await resumption?.end();
    await staged.commit();
  } catch (error) {
    await giveUp(staged, resumption, error);
    throw error;
  }
  await resumption?.remove();
  return { size: source.size, checksum: digest };
}

/** A target whose name means a file that is read would be locked by ourselves, which nobody understands. */
async function refuseOntoItself({ target, sources }: ConvertOptions): Promise<void> {
  const found = await stat(target, { bigint: true }).catch(() => undefined);
  if (found === undefined) return;
  for (const source of sources) {
    const { layers = [] } = source as Partial<ChainImage>;
    const depth = layers.findIndex(({ storage }) => storage.id === `${found.dev}:${found.ino}`);
    if (depth < 0) continue;
    const why = depth === 0 ? 'this is what is to be read' : `${source.path}, which is to be read, stands on it`;
    throw new LunetteError('INVALID', `${why}: a disk cannot be converted onto itself`, {
      path: target,
      help: 'Write into another file, and give it the name afterwards.',
    });
  }
}

function prepareResumption(
  options: ConvertOptions,
  size: number,
  values: CreateValues,
  staged: StagedTarget,
  resume: ResumeOptions,
): Promise<Resumption> {
  const { format, compress = false, backing, sparseSize, sync = true, sources, signal, gate } = options;
  const what = { format, values, compress, backing, sparseSize, size };
  return Resumption.prepare({ ...resume, what, format, sources, staged, sync, signal, gate });
}

/** What is written stays only where another attempt can go on with it. */
async function giveUp(staged: StagedTarget, resumption: Resumption | undefined, error: unknown): Promise<void> {
  const lost = resumption?.lost;
  if (resumption?.worthKeeping !== true || staged.mixed) {
    await resumption?.remove();
    await staged.abort();
    if (lost !== undefined) addHelp(error, `What was done is gone, as no checkpoint could be written: ${lost}.`);
    return;
  }
  await resumption.release();
  await staged.release();
  const since = lost === undefined ? '' : ` What came after the last checkpoint is done again: ${lost}.`;
  addHelp(error, `What is done stays in ${staged.temporary}: the same command goes on from there.${since}`);
}

function addHelp(error: unknown, text: string): void {
  if (error instanceof LunetteError) error.help = error.help === undefined ? text : `${error.help} ${text}`;
}

/** A conversion that could have been continued, and is not to be: its files are taken over, and emptied. */
async function forgetJournal(options: ConvertOptions, staged: StagedTarget): Promise<void> {
  const useful = await forgetEarlier(staged);
  const lost = 'what an earlier conversion to it had done is thrown away';
  if (options.resume !== undefined) {
    const why = 'a stream cannot be continued, and is written from its beginning';
    options.warn?.(useful ? `${lost}: ${why}` : `--resume does nothing for it: ${why}`, staged.path);
  } else if (useful) {
    options.warn?.(`${lost}: with --resume it would have been continued`, staged.path);
  }
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
    unpack: nativeUnpack,
    readsOnce: true,
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

/** Makes the empty image, or takes up what an earlier attempt left, and copies the disk into it. */
async function writeImage(
  source: DiskSource,
  staged: StagedTarget,
  made: NewImage,
  options: ConvertOptions,
  checksum: StreamChecksum | undefined,
  resumption: Resumption | undefined,
): Promise<void> {
  const { creator, values, backing } = made;
  const host = hostFor(options, staged.open);
  const open = (): Promise<ChainImage> => host.open(staged.path, { format: creator.format });
  const from = options.part?.source ?? source;
  // What is left out is not observed: a checksum needs all of it.
  const unchangedIn = (image: ChainImage) =>
    backing === undefined || checksum !== undefined
      ? undefined
      : (options.part?.unchanged ?? unchangedBelow(options.sources, image));
  const begun = await resumption?.takeUp(
    open,
    (image) =>
      backing === undefined
        ? { disk: image, runs: dataRuns(image, { unit: 1 * MiB }) }
        : { disk: image, runs: copiedRuns(from, image, options, unchangedIn(image)) },
    (image) => ({ disk: from, runs: copiedRuns(from, image, options, unchangedIn(image)) }),
  );
  if (begun === undefined) await createEmpty(source.size, staged, { ...made, secrets: options.secrets });
  const image = begun?.image ?? (await open());
  let encoder: UnitEncoder | undefined;
  let failed = true;
  try {
    if (options.compress === true) {
      if (image.compression === undefined) {
        throw new LunetteError('INVALID', 'an image with these options cannot be compressed', { path: staged.path });
      }
      encoder = startEncoder(image.compression);
    }
    if (begun === undefined) {
      await resumption?.begin(image);
    } else {
      // Over a backing file everything is compared with what the target shows, and written where it differs.
      if (backing === undefined) await wipeFrom(image, begun.from, (values.preallocation ?? 'off') === 'off');
      if (checksum !== undefined) {
        const done = dataRuns(withSize(image, begun.from), { unit: 1 * MiB });
        for await (const { offset, bytes } of readAhead(image, done, options.signal))
          await checksum.update(offset, bytes);
      }
    }
    const observers = checksum !== undefined || resumption !== undefined;
    await copyDisk(from, image, {
      ...options,
      from: begun?.from,
      targetIsZero: backing === undefined,
      overBacking: backing !== undefined,
      unchanged: unchangedIn(image),
      encoder,
      clone: options.clone !== false && !observers && !options.sources.some(isShared),
      transfer: !options.sources.some(isShared),
      observe: !observers
        ? undefined
        : (offset, bytes) => {
            resumption?.observe(offset, bytes);
            return checksum?.update(offset, bytes);
          },
      checkpoints: resumption,
    });
    await resumption?.finish(source.size);
    failed = false;
  } finally {
    await encoder?.close();
    if (failed) await image.close().catch(() => undefined);
    else await image.close();
  }
}

/** The parts of a disk that copying it over a backing file observes. */
function copiedRuns(
  source: DiskSource,
  target: Image,
  { sparseSize }: ConvertOptions,
  skip: CopyOptions['unchanged'],
): AsyncIterable<DataRun> {
  return dataRuns(source, {
    unit: copyUnit(target, sparseSize),
    zeros: true,
    ...(skip === undefined ? {} : { skip }),
  });
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
  values: CreateValues,
  options: ConvertOptions,
  checksum: StreamChecksum | undefined,
): Promise<void> {
  const storage = await staged.open(staged.path, { readOnly: false });
  try {
    await storage.lock('write');
    await writeStreamOptimized(source, storage, {
      ...streamOptions(values),
      observe: checksum === undefined ? undefined : (offset, bytes) => checksum.update(offset, bytes),
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
