import { existsSync, type Stats } from 'node:fs';
import { chmod, chown, open, readlink, realpath, rename, stat, unlink } from 'node:fs/promises';
import path from 'node:path';
import { codeOf, errnoOf, fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import type { Storage, StorageOpener } from '../../formats/index.ts';
import { exchangeNames } from '../io/native.ts';

/** Longest name of a file on Linux' file systems. */
const MAX_NAME = 255;

export interface StagingOptions {
  readonly openStorage: StorageOpener;
  /** Make files durable before they get their names. */
  readonly sync: boolean;
  /** Keep what an earlier attempt left, and write so that what is synced before the end outlives a cut of power. */
  readonly keep?: boolean | undefined;
  readonly warn?: ((message: string, path: string) => void) | undefined;
}

interface Staged {
  readonly final: string;
  readonly temporary: string;
  /** There was a file of the final name. */
  readonly replaces: boolean;
}

/**
 * Files that are written under other names beside their places, and get their names together when all is done. Until then what had those
 * names is as it was, and locked, so that nobody begins to use it. Links are followed; mode and owner of files that are replaced are kept.
 */
export class StagedTarget {
  /** The file itself, links followed. */
  readonly path: string;
  readonly #options: StagingOptions;
  /** The main file first. */
  readonly #files: Staged[] = [];
  readonly #locks: Storage[] = [];
  /** There was something under the main name that an earlier attempt left. */
  #found = false;

  private constructor(file: string, options: StagingOptions) {
    this.path = file;
    this.#options = options;
  }

  /**
   * Makes the main file, empty unless an earlier attempt is kept.
   *
   * @throws {StorageError} LOCKED when somebody uses the file to be replaced, or writes to it in the same way; ACCESS and others
   */
  static async begin(file: string, options: StagingOptions): Promise<StagedTarget> {
    const staged = new StagedTarget(await followLinks(file), options);
    try {
      await staged.#make(staged.path);
    } catch (error) {
      if (staged.found) await staged.release();
      else await staged.abort();
      throw error;
    }
    return staged;
  }

  /** Where the main file is until it is done. */
  get temporary(): string {
    return (this.#files[0] as Staged).temporary;
  }

  /** Whether the main file is what an earlier attempt left. */
  get found(): boolean {
    return this.#found;
  }

  /** The names of the files beside the main one. */
  get furtherFiles(): readonly string[] {
    return this.#files.slice(1).map(({ final }) => path.basename(final));
  }

  /** Opens files: those that are staged where they are now, under the names that they will have. Syncing them waits for commit. */
  readonly open: StorageOpener = async (file, options) => {
    const staged = this.#staged(file);
    if (staged === undefined) return this.#options.openStorage(file, options);
    const storage = await this.#options.openStorage(staged.temporary, { ...options, name: staged.final });
    // In which order things reach the disk matters once the file has its name; before, a cut leaves nothing that anybody uses, unless it
    // is to be gone on with.
    if (!(this.#options.keep === true && this.#options.sync)) storage.sync = async () => undefined;
    return storage;
  };

  /** Takes over a further file of an earlier attempt, or makes it where it is missing. */
  adopt(file: string): Promise<void> {
    return this.#make(file);
  }

  /** Lets go of what an earlier attempt left: the main file is empty, and the only one. */
  async restart(): Promise<void> {
    for (const { temporary } of this.#files.splice(1)) await unlink(temporary).catch(() => undefined);
    await emptyFile(this.temporary);
    this.#found = false;
  }

  /** Makes a further file, which will have its name with the others. Open and locked for writing. */
  async createFile(file: string): Promise<Storage> {
    await this.#make(file);
    const storage = await this.open(file, { readOnly: false });
    await storage.lock('write');
    await storage.resize(0);
    return storage;
  }

  /**
   * Gives all files their names, the main one last. They are closed by now.
   *
   * @throws {StorageError} when one of them cannot have its name: then all names lead where they led before, and abort() or release() is
   * still to be called
   */
  async commit(): Promise<void> {
    const { sync } = this.#options;
    const undo: (() => Promise<void>)[] = [];
    try {
      // They are closed: without a lock another attempt would take them for leftovers, and empty them.
      for (const { temporary } of this.#files) {
        const storage = await this.#options.openStorage(temporary, { readOnly: false });
        this.#locks.push(storage);
        await storage.lock('write');
      }
      if (sync) for (const { temporary } of this.#files) await syncFile(temporary);
      // Other files of the disk first: until the main one has its name, nothing leads to them.
      for (const staged of [...this.#files].reverse()) undo.push(await giveName(staged));
    } catch (error) {
      for (const back of undo.reverse()) await back().catch(() => undefined);
      throw fromSystemError(error, 'giving it its name', { path: this.path });
    }
    try {
      const folders = new Set(this.#files.map(({ final }) => path.dirname(final)));
      if (sync) for (const folder of folders) await syncFile(folder);
    } catch (error) {
      throw fromSystemError(error, 'making its name durable', { path: this.path });
    } finally {
      // What had the names before goes.
      await this.abort();
    }
  }

  /** Removes what was made. Never throws. */
  async abort(): Promise<void> {
    for (const { temporary } of this.#files) await unlink(temporary).catch(() => undefined);
    await this.#unlock();
  }

  /** Leaves what was made where it is, for another attempt. Never throws. */
  async release(): Promise<void> {
    await this.#unlock();
  }

  #staged(file: string): Staged | undefined {
    const full = path.resolve(file);
    return this.#files.find(({ final }) => path.resolve(final) === full);
  }

  async #make(final: string): Promise<void> {
    const existing = await this.#lockExisting(final);
    const temporary = temporaryName(final);
    const isMain = this.#files.length === 0;
    let made = true;
    try {
      await (await open(temporary, 'wx')).close();
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw fromSystemError(error, 'cannot write it', { path: final });
      made = false;
    }
    if (!made) {
      await this.#takeOver(temporary, final);
      made = await renewIfLinked(temporary, final);
    }
    this.#files.push({ final, temporary, replaces: existing !== undefined });
    if (isMain) this.#found = !made && this.#options.keep === true;
    if (!made && this.#options.keep !== true) await emptyFile(temporary);
    if (existing !== undefined) await this.#likeExisting(temporary, existing, final);
  }

  /** Locks what has the name now. @returns what it is like; undefined when there is nothing */
  async #lockExisting(final: string): Promise<Stats | undefined> {
    let storage: Storage;
    try {
      storage = await this.#options.openStorage(final, { readOnly: false });
    } catch (error) {
      if (codeOf(error) === 'NOT_FOUND') return undefined;
      throw error;
    }
    this.#locks.push(storage);
    await storage.lock('write');
    const found = await stat(final);
    if (found.isFile()) return found;
    throw new LunetteError('INVALID', 'is no file: a new image would take its place', {
      path: final,
      help: 'lunette convert writes into devices in place.',
    });
  }

  /** A file of the temporary name is there: an attempt that was killed left it, or one that runs has it locked. */
  async #takeOver(temporary: string, final: string): Promise<void> {
    const storage = await this.#options.openStorage(temporary, { readOnly: false });
    try {
      await storage.lock('write');
    } catch (cause) {
      throw new LunetteError('LOCKED', `another program is writing to it right now, by way of ${temporary}`, {
        path: final,
        cause,
      });
    } finally {
      await storage.close();
    }
  }

  async #likeExisting(temporary: string, existing: Stats, final: string): Promise<void> {
    const made = await stat(temporary);
    if (made.uid !== existing.uid || made.gid !== existing.gid) {
      await chown(temporary, existing.uid, existing.gid).catch(() => {
        this.#options.warn?.('its owner cannot be kept: the new file will be yours', final);
      });
    }
    await chmod(temporary, existing.mode & 0o7777);
  }

  async #unlock(): Promise<void> {
    for (const storage of this.#locks.splice(0)) await storage.close().catch(() => undefined);
  }
}

/** A hidden name beside a file: the same for every attempt, so that what a killed one leaves does not pile up. */
export function temporaryName(file: string, suffix = '.lunette-new'): string {
  const base = Buffer.from(path.basename(file));
  const room = MAX_NAME - 1 - suffix.length;
  return path.join(path.dirname(file), `.${base.subarray(0, room).toString()}${suffix}`);
}

async function followLinks(file: string): Promise<string> {
  try {
    return await realpath(file);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw fromSystemError(error, `cannot write ${file}`, { path: file });
  }
  // Not there, or a link to what is not there.
  const leads = await readlink(file).catch(() => undefined);
  return leads === undefined ? file : followLinks(path.resolve(path.dirname(file), leads));
}

/**
 * Swapped, not replaced, where something is there: it can be swapped back, and ext4 does not write the whole new file back first, as it does for
 * those that replace others.
 *
 * @returns how to undo it
 */
async function giveName({ temporary, final, replaces }: Staged): Promise<() => Promise<void>> {
  if (replaces && existsSync(final) && exchangeNames(temporary, final)) {
    return async () => {
      exchangeNames(temporary, final);
    };
  }
  await rename(temporary, final);
  return async () => {
    // What it replaced is gone: then the new file stays.
    if (!replaces) await rename(final, temporary);
  };
}

/**
 * An attempt that was killed right after it had swapped the names left what was there before: where that has another name, as in a backup of hard
 * links, nothing may be written into it.
 *
 * @returns whether there is a new file in its place
 */
async function renewIfLinked(temporary: string, final: string): Promise<boolean> {
  try {
    if ((await stat(temporary)).nlink < 2) return false;
    await unlink(temporary);
    await (await open(temporary, 'wx')).close();
    return true;
  } catch (error) {
    throw fromSystemError(error, 'cannot write it', { path: final });
  }
}

async function emptyFile(file: string): Promise<void> {
  await (await open(file, 'w')).close();
}

async function syncFile(file: string): Promise<void> {
  const handle = await open(file, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
