import { open, unlink } from 'node:fs/promises';
import { errnoOf, fromSystemError } from '../core/errors.ts';
import type { Storage, StorageOpener } from './storage.ts';

/** A file that is open, locked for writing, to be written anew. */
export interface NewFile {
  readonly storage: Storage;
  /** Closes it. With `keep` false, and where it was not there before, also removes it. */
  close(keep: boolean): Promise<void>;
}

/**
 * Opens a file to write an image into it: a new one, or one that is there and that nobody else uses. Its content is left alone: formats
 * check what they are asked for first. Block devices are taken as they are.
 *
 * @throws {StorageError} LOCKED, ACCESS, NOT_FOUND for a directory that is not there, and others
 */
export async function openNewFile(path: string, openStorage: StorageOpener): Promise<NewFile> {
  const made = await makeFile(path);
  let storage: Storage | undefined;
  try {
    storage = await openStorage(path, { readOnly: false });
    await storage.lock('write');
  } catch (error) {
    await storage?.close();
    if (made) await unlink(path).catch(() => undefined);
    throw error;
  }
  const opened = storage;
  return {
    storage,
    async close(keep) {
      // Removed while it is locked: by its name somebody else could be using it a moment later.
      if (!keep && made) await unlink(path).catch(() => undefined);
      await opened.close();
    },
  };
}

/** Makes an empty file. @returns false when there is something of that name */
async function makeFile(path: string): Promise<boolean> {
  try {
    await (await open(path, 'wx')).close();
    return true;
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false;
    throw fromSystemError(error, `cannot make ${path}`, { path });
  }
}
