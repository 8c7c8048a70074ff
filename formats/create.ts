import path from 'node:path';
import { LunetteError } from './core/errors.ts';
import { parseSize } from './core/units.ts';
import type { CreateBacking, CreateOption, CreateValue, CreateValues, FormatCreator, Secrets } from './driver.ts';
import type { ImageHost } from './open.ts';
import { qcow2Creator } from './qcow2/creator.ts';
import { rawCreator } from './raw/creator.ts';
import { openFileStorage } from './storage/file.ts';
import { openNewFile } from './storage/new-file.ts';
import type { Storage, StorageOpener } from './storage/storage.ts';
import { vdiCreator } from './vdi/creator.ts';
import { vmdkCreator } from './vmdk/creator.ts';

/** All formats that new images can have. */
export const CREATORS: readonly FormatCreator[] = [qcow2Creator, vmdkCreator, vdiCreator, rawCreator];

/** How images of a format are made. @throws {LunetteError} UNSUPPORTED naming those there are */
export function creatorOf(format: string): FormatCreator {
  const creator = CREATORS.find((candidate) => candidate.format === format);
  if (creator !== undefined) return creator;
  throw new LunetteError('UNSUPPORTED', `images of format ${format} cannot be made`, {
    help: `Formats: ${CREATORS.map((candidate) => candidate.format).join(', ')}`,
  });
}

/**
 * Reads values as they are typed, and adds the defaults of those that are not given.
 *
 * @param given by name: text, or values of the option's kind
 * @throws {LunetteError} INVALID for an unknown option or a value that is none
 */
export function readCreateValues(creator: FormatCreator, given: Readonly<Record<string, unknown>> = {}): CreateValues {
  const values: Record<string, CreateValue> = {};
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    const option = creator.options.find((candidate) => candidate.name === name);
    if (option === undefined) {
      throw new LunetteError('INVALID', `${creator.format} images have no option ${name}`, {
        help: `Options: ${creator.options.map((known) => known.name).join(', ')}; -o help says what they do.`,
      });
    }
    values[name] = readValue(option, value);
  }
  for (const { name, default: initial } of creator.options) {
    if (initial !== undefined) values[name] ??= initial;
  }
  return values;
}

const WORDS: Readonly<Record<string, boolean>> = {
  on: true,
  yes: true,
  true: true,
  y: true,
  off: false,
  no: false,
  false: false,
  n: false,
};

function readValue(option: CreateOption, value: unknown): CreateValue {
  const bad = (what: string): LunetteError =>
    new LunetteError('INVALID', `${option.name}=${value}: ${option.name} is ${what}`);
  switch (option.kind) {
    case 'size': {
      const size = typeof value === 'number' ? value : parseSize(String(value));
      if (size === undefined) throw bad('a number of bytes, or one with k, M, G or T');
      return size;
    }
    case 'number': {
      const number = typeof value === 'number' ? value : Number(value);
      if (!Number.isSafeInteger(number) || number < 0 || value === '') throw bad('a number');
      return number;
    }
    case 'boolean': {
      const word = typeof value === 'boolean' ? value : WORDS[String(value)];
      if (word === undefined) throw bad('on or off');
      return word;
    }
    case 'choice':
      if (!(option.choices ?? []).includes(String(value))) throw bad(`one of ${option.choices?.join(', ')}`);
      return String(value);
    default:
      return String(value);
  }
}

export interface CreateImageOptions {
  readonly path: string;
  readonly format: string;
  /** Guest bytes. Default: the backing file's. */
  readonly size?: number | undefined;
  /** Options of the format, see FormatCreator.options; those that are left out have their defaults. */
  readonly values?: Readonly<Record<string, unknown>> | undefined;
  readonly backing?:
    | {
        /** As it shall stand in the image: a relative name is relative to the image. */
        readonly reference: string;
        /** Default: found by probing; a raw one must be called so. */
        readonly format?: string | undefined;
        /** Do not look at it: it may not be there yet. Needs a size. Default false. */
        readonly unchecked?: boolean | undefined;
      }
    | undefined;
  /** Opens backing files to look at them. Needed with `backing`, unless that is unchecked. */
  readonly host?: ImageHost | undefined;
  /** Passphrases: an encrypted image gets the first. */
  readonly secrets?: Secrets | undefined;
  /** How files are opened. Default: plain Node. */
  readonly openStorage?: StorageOpener | undefined;
  /** Called before anything is written, with what will be made. */
  readonly announce?: ((image: CreatedImage) => void) | undefined;
}

/** What was made, or is about to be. */
export interface CreatedImage {
  readonly format: string;
  readonly size: number;
  /** Every option that has a value. */
  readonly values: CreateValues;
  readonly backing: CreateBacking | undefined;
}

/**
 * Makes a new image. A file that is there is overwritten, unless somebody uses it. When it fails nothing new is left behind; what was there
 * before is lost once writing has begun.
 *
 * @throws {LunetteError} INVALID, UNSUPPORTED, LOCKED, NO_SPACE and others, with the path
 */
export async function createImage(options: CreateImageOptions): Promise<CreatedImage> {
  const { format, openStorage = openFileStorage } = options;
  const creator = creatorOf(format);
  const values = readCreateValues(creator, options.values);
  const found = await lookAtBacking(options);
  const asked = options.size ?? found?.size;
  if (asked === undefined) {
    throw new LunetteError('INVALID', 'a new image needs a size', { path: options.path });
  }
  const image: CreatedImage = { format, size: creator.sizeOf(asked), values, backing: found?.backing };
  options.announce?.(image);
  const secret = async (): Promise<Uint8Array | undefined> => (await options.secrets?.())?.[0];
  await writeEmptyImage(options.path, creator, image, openStorage, secret);
  return image;
}

async function writeEmptyImage(
  file: string,
  creator: FormatCreator,
  { size, values, backing }: CreatedImage,
  openStorage: StorageOpener,
  secret: () => Promise<Uint8Array | undefined>,
): Promise<void> {
  const main = await openNewFile(file, openStorage);
  const made = [main];
  let done = false;
  try {
    await creator.create(main.storage, {
      size,
      values,
      backing,
      secret,
      async createFile(name) {
        const further = await openNewFile(path.resolve(path.dirname(file), name), openStorage);
        made.push(further);
        await further.storage.resize(0);
        return further.storage;
      },
    });
    done = true;
  } catch (error) {
    if (error instanceof LunetteError) error.path ??= file;
    throw error;
  } finally {
    for (const each of made.reverse()) await each.close(done);
  }
}

async function lookAtBacking(
  options: CreateImageOptions,
): Promise<{ backing: CreateBacking; size: number | undefined } | undefined> {
  const { backing, host, openStorage = openFileStorage } = options;
  if (backing === undefined) return undefined;
  const { reference, format, unchecked = false } = backing;
  if (unchecked) return { backing: { reference, format }, size: undefined };
  if (host === undefined) throw new LunetteError('INVALID', 'looking at a backing file needs a host to open it');
  const place = path.isAbsolute(reference) ? reference : path.join(path.dirname(options.path), reference);
  const layer = await host.openLayer(place, { format });
  try {
    if (await isSameFile(options.path, layer.storage, openStorage)) {
      throw new LunetteError('INVALID', 'an image cannot be its own backing file', { path: options.path });
    }
    if (format === undefined && layer.format === 'raw') {
      throw new LunetteError('INVALID', `whether its backing file ${reference} is a raw disk must be said`, {
        path: options.path,
        help: 'A guest that writes to a raw disk can make it look like another format: say -F raw.',
      });
    }
    // Not layer.size: of a disk in several files only the first is open here.
    const { virtualSize } = await layer.describe();
    return { backing: { reference, format: layer.format, ids: layer.ids }, size: virtualSize };
  } finally {
    await layer.close();
  }
}

async function isSameFile(file: string, other: Storage, openStorage: StorageOpener): Promise<boolean> {
  let storage: Storage;
  try {
    storage = await openStorage(file, { readOnly: true });
  } catch {
    return false; // not there, most likely; if it is something else, opening it for writing says so
  }
  const same = storage.id === other.id;
  await storage.close();
  return same;
}
