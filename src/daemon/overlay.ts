import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { access, open, realpath, rm, stat, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { errnoOf, fromSystemError, ImageError, LunetteError } from '../../formats/core/errors.ts';
import { formatSize } from '../../formats/core/units.ts';
import { isWebAddress } from '../../formats/image/gate.ts';
import { type ChainImage, createQcow2, type ImageHost } from '../../formats/index.ts';
import { openStorage } from '../io/open-storage.ts';

/** A directory that a temporary overlay could go to. */
interface Room {
  readonly directory: string;
  /** Bytes that this process may still use there. */
  readonly free: number;
}

/** How an overlay is opened. */
interface OverlayOptions {
  /** As in ExportRequest. */
  readonly discardNoUnref?: boolean | undefined;
}

/** An image whose writes go to an overlay. */
export interface Overlaid {
  readonly image: ChainImage;
  /** One sentence on where the writes go. */
  readonly note: string;
}

/**
 * Puts a temporary overlay on an image. It has no name once it is open, so it is gone when the process is, however that ends.
 *
 * @param base open for reading; belongs to the new image from then on
 */
export async function openEphemeral(
  host: ImageHost,
  base: ChainImage,
  { discardNoUnref }: OverlayOptions = {},
): Promise<Overlaid> {
  try {
    const { directory, free } = await roomiest(await placesFor(base.path));
    const file = path.join(directory, `.lunette-${process.pid}-${randomBytes(6).toString('hex')}.qcow2`);
    try {
      await createOverlay(file, base, 0o600);
      const image = await host.open(file, { format: 'qcow2', base, discardNoUnref });
      return {
        image,
        note: `writes go to a temporary overlay in ${directory} (${formatSize(free)} free) and are thrown away at the end`,
      };
    } finally {
      await rm(file, { force: true });
    }
  } catch (error) {
    await base.close();
    throw error;
  }
}

/**
 * Opens the overlay that a user keeps for an image, or makes it.
 *
 * @param base open for reading; belongs to the new image from then on
 * @throws {ImageError} PARENT_MISMATCH when the file is an overlay of something else
 */
export async function openOverlay(
  host: ImageHost,
  file: string,
  base: ChainImage,
  { discardNoUnref }: OverlayOptions = {},
): Promise<Overlaid> {
  try {
    const made = await createUnlessThere(file, base);
    if (!made) await checkBacking(host, file, base);
    const image = await host.open(file, { format: 'qcow2', base, discardNoUnref });
    return { image, note: `writes go to ${file}${made ? ', made for it' : ''}` };
  } catch (error) {
    await base.close();
    throw error;
  }
}

async function createUnlessThere(file: string, base: ChainImage): Promise<boolean> {
  try {
    await createOverlay(file, base, 0o644);
    return true;
  } catch (error) {
    if (error instanceof LunetteError && error.code === 'EXISTS') return false;
    throw error;
  }
}

/**
 * Makes an empty qcow2 file of the image's size that names it as its backing file.
 *
 * @throws {StorageError} EXISTS when there is a file already, and others
 */
async function createOverlay(file: string, base: ChainImage, mode: number): Promise<void> {
  try {
    await (await open(file, 'wx', mode)).close();
  } catch (error) {
    throw fromSystemError(error, 'cannot make the overlay', { path: file });
  }
  try {
    const backingFile = await referenceTo(base.path, file);
    const storage = await openStorage(file, { readOnly: false });
    try {
      await storage.lock('write');
      await createQcow2(storage, { size: base.size, backingFile, backingFormat: base.format });
    } finally {
      await storage.close();
    }
  } catch (error) {
    await rm(file, { force: true });
    throw error;
  }
}

/** How the overlay names its backing file: by name alone beside it, so that both can be moved together, else by its whole path. */
async function referenceTo(image: string, overlay: string): Promise<string> {
  if (isWebAddress(image)) return image;
  const [imageDirectory, overlayDirectory] = await Promise.all(
    [image, overlay].map((file) => realpath(path.dirname(path.resolve(file)))),
  );
  const name = path.basename(image);
  if (imageDirectory !== overlayDirectory) return path.join(imageDirectory as string, name);
  // A colon before the first slash would make it a protocol.
  return name.includes(':') ? `./${name}` : name;
}

async function checkBacking(host: ImageHost, file: string, base: ChainImage): Promise<void> {
  const layer = await host.openLayer(file);
  try {
    const { parent, storage, format, size } = layer;
    const fail = (why: string): never => {
      throw new ImageError('PARENT_MISMATCH', why, {
        path: file,
        help: `An overlay holds only what differs from the image it was made for: name another file, or serve ${file} itself.`,
      });
    };
    if (format !== 'qcow2') fail('this is no qcow2 file');
    if (parent?.path === undefined) return fail(`this is no overlay of ${base.path}: it has no backing file`);
    const named = parent.path.replace(/^file:(?!\/\/)/, '');
    const backing = isWebAddress(named) ? named : storage.resolve(named);
    if (!(await sameFile(backing, base.path))) fail(`this is an overlay of ${parent.path}, not of ${base.path}`);
    if (size < base.size) fail(`it has ${size} bytes, less than the ${base.size} of ${base.path}`);
  } finally {
    await layer.close();
  }
}

async function sameFile(a: string, b: string): Promise<boolean> {
  if (isWebAddress(a) || isWebAddress(b)) return a === b;
  try {
    const [one, other] = await Promise.all([stat(a, { bigint: true }), stat(b, { bigint: true })]);
    return one.dev === other.dev && one.ino === other.ino;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw fromSystemError(error, 'cannot find its backing file', { path: a });
  }
}

/** Beside the image, where there is room for images, or where temporary files go. */
async function placesFor(image: string): Promise<string[]> {
  // A device's directory is in memory.
  const isFile = !isWebAddress(image) && (await stat(image)).isFile();
  return [...(isFile ? [path.dirname(path.resolve(image))] : []), tmpdir()];
}

/** The directory with the most free space of those that can be written to. */
async function roomiest(directories: readonly string[]): Promise<Room> {
  const rooms: Room[] = [];
  for (const directory of directories) {
    try {
      await access(directory, constants.W_OK | constants.X_OK);
      const { bavail, bsize } = await statfs(directory);
      rooms.push({ directory, free: bavail * bsize });
    } catch {
      // Not there, or read-only: not a place for it.
    }
  }
  const best = rooms.sort((a, b) => b.free - a.free)[0];
  if (best !== undefined) return best;
  throw new LunetteError('ACCESS', `no temporary file can be made in ${directories.join(' or ')}`, {
    help: 'Set TMPDIR to a directory that can be written to, or name the overlay yourself: --overlay FILE.qcow2.',
  });
}
