import { existsSync, type Stats } from 'node:fs';
import { chmod, chown, open, readlink, realpath, rename, stat, unlink } from 'node:fs/promises';
import path from 'node:path';
import { codeOf, errnoOf, fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import type { Storage, StorageOpener } from '../../formats/index.ts';
import { exchangeNames } from '../io/native.ts';
import { type Change, endNameChange, NameChange } from './name-change.ts';
import { syncFile, temporaryName } from './staged-names.ts';

export interface StagingOptions {
  readonly openStorage: StorageOpener;
  /** Make files durable before they get their names. */
  readonly sync: boolean;
  /** Keep what an earlier attempt left, and write so that what is synced before the end outlives a cut of power. */
  readonly keep?: boolean | undefined;
  readonly warn?: ((message: string, path: string) => void) | undefined;
  /** Swaps two names in one step; false where that cannot be done. Default: the kernel does it. */
  readonly exchange?: ((one: string, other: string) => boolean) | undefined;
  /** Makes the names in a folder durable. Default: fsync. */
  readonly syncFolder?: ((folder: string) => Promise<void>) | undefined;
  /** Does what changes names or empties files, one step at a time. Default: just that. */
  readonly change?: Change | undefined;
}

interface Staged {
  readonly final: string;
  readonly temporary: string;
  /** The file that has the final name now, locked; undefined when there is none. */
  readonly replaces: Storage | undefined;
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
  #tookOver = false;
  /** What goes when all files have their names. */
  #naming: NameChange | undefined;
  /** A commit failed, and not all of it could be undone: whatever is there may be of worth. */
  #mixed = false;

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
      await staged.#endEarlier();
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

  /** Whether an earlier attempt left a main file. */
  get tookOver(): boolean {
    return this.#tookOver;
  }

  /** Whether the main file is what an earlier attempt left. */
  get found(): boolean {
    return this.#tookOver && this.#options.keep === true;
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
    for (const { temporary, replaces } of this.#files.splice(1)) {
      await this.#change(() => unlink(temporary)).catch(() => undefined);
      if (replaces === undefined) continue;
      this.#locks.splice(this.#locks.indexOf(replaces), 1);
      await replaces.close();
    }
    await this.#change(() => emptyFile(this.temporary));
    this.#tookOver = false;
  }

  /** Removes what an earlier attempt left of a further file; not while somebody writes to it. Never throws. */
  async discard(file: string): Promise<void> {
    const temporary = temporaryName(file);
    if (!existsSync(temporary)) return;
    await this.#takeOver(temporary, file)
      .then(() => this.#change(() => unlink(temporary)))
      .catch(() => undefined);
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
   * @throws {StorageError} when one of them cannot have its name, or that cannot be made durable: then all names lead where they led before,
   * and abort() or release() is still to be called
   */
  async commit(): Promise<void> {
    const { sync, syncFolder = syncFile } = this.#options;
    const undo: (() => Promise<void>)[] = [];
    let doing = 'giving it its name';
    try {
      // They are closed: without a lock another attempt would take them for leftovers, and empty them.
      for (const { temporary } of this.#files) {
        const storage = await this.#options.openStorage(temporary, { readOnly: false });
        this.#locks.push(storage);
        await storage.lock('write');
      }
      if (sync) for (const { temporary } of this.#files) await syncFile(temporary);
      await this.#giveNames(undo);
      doing = 'making its name durable';
      const folders = new Set(this.#files.map(({ final }) => path.dirname(final)));
      if (sync) for (const folder of folders) await syncFolder(folder);
    } catch (cause) {
      const error = fromSystemError(cause, doing, { path: this.path });
      if (!(await this.#undo(undo))) error.help ??= this.#whatIsMixed();
      throw error;
    }
    // What had the names before goes.
    await this.#naming?.end();
    await this.abort();
  }

  /** Whether a commit failed and could not be undone: nothing is removed then, and an attempt cannot go on from it. */
  get mixed(): boolean {
    return this.#mixed;
  }

  /** Removes what was made. Never throws. */
  async abort(): Promise<void> {
    if (!this.#mixed) {
      for (const { temporary } of this.#files) await this.#change(() => unlink(temporary)).catch(() => undefined);
    }
    await this.#unlock();
  }

  /** @param undo gets how to undo what was done, in the order in which it was done */
  async #giveNames(undo: (() => Promise<void>)[]): Promise<void> {
    const replaced = this.#files.filter(({ replaces, final }) => replaces !== undefined && existsSync(final));
    const [main, ...further] = this.#files as [Staged, ...Staged[]];
    if (further.length > 0 && replaced.length > 0) {
      const replaces = (final: string): boolean => replaced.some((staged) => staged.final === final);
      const finals = this.#files.map(({ final }) => final);
      this.#naming = new NameChange(finals, replaces, (step) => this.#change(step));
      return this.#naming.run(undo, this.#options.sync);
    }
    // Until the main one has its name, nothing leads to the others.
    for (const { temporary, final } of further.reverse()) {
      await this.#change(() => rename(temporary, final));
      undo.push(() => this.#change(() => rename(final, temporary)));
    }
    await this.#nameMain(main, replaced.length > 0, undo);
  }

  async #nameMain({ temporary, final }: Staged, replacing: boolean, undo: (() => Promise<void>)[]): Promise<void> {
    const { exchange = exchangeNames } = this.#options;
    // Swapped, not replaced, where something is there: it can be swapped back, and ext4 does not write the whole new file back first, as it
    // does for those that replace others.
    if (replacing && (await this.#change(async () => exchange(temporary, final)))) {
      undo.push(async () => {
        if (!(await this.#change(async () => exchange(temporary, final)))) this.#mixed = true;
      });
      return;
    }
    await this.#change(() => rename(temporary, final));
    undo.push(async () => {
      if (replacing) this.#mixed = true;
      else await this.#change(() => rename(final, temporary));
    });
  }

  #change<T>(step: () => Promise<T>): Promise<T> {
    const { change } = this.#options;
    return change === undefined ? step() : change(step);
  }

  /** @returns whether all names lead where they led */
  async #undo(steps: (() => Promise<void>)[]): Promise<boolean> {
    for (const back of steps.reverse()) {
      await back().catch(() => {
        this.#mixed = true;
      });
    }
    return !this.#mixed;
  }

  #whatIsMixed(): string {
    if (this.#files.length === 1)
      return 'The new image is whole and has its name; only whether a cut of power would undo that is unknown.';
    return `Its files have their new names in part: new and old ones stay in ${path.dirname(this.path)}, hidden ones as .*.lunette-new and .*.lunette-old.`;
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
      await this.#change(() => makeFile(temporary));
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw fromSystemError(error, 'cannot write it', { path: final });
      made = false;
    }
    if (!made) {
      await this.#takeOver(temporary, final);
      made = await this.#change(() => renewIfLinked(temporary, final));
    }
    this.#files.push({ final, temporary, replaces: existing?.lock });
    if (isMain) this.#tookOver = !made;
    if (!made && this.#options.keep !== true) await this.#change(() => emptyFile(temporary));
    if (existing !== undefined) await this.#likeExisting(temporary, existing.like, final);
  }

  /** An attempt that was killed between two names may have left old files aside. */
  async #endEarlier(): Promise<void> {
    // One that runs has its files locked.
    if (existsSync(temporaryName(this.path))) await this.#takeOver(temporaryName(this.path), this.path);
    const claim = (file: string, final: string): Promise<void> => this.#takeOver(file, final);
    await endNameChange(this.path, this.#options.keep === true, claim, (step) => this.#change(step));
  }

  /** Locks what has the name now. @returns what it is like, and the lock; undefined when there is nothing */
  async #lockExisting(final: string): Promise<{ like: Stats; lock: Storage } | undefined> {
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
    if (found.isFile()) return { like: found, lock: storage };
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
 * An attempt that was killed right after it had swapped the names left what was there before: where that has another name, as in a backup of hard
 * links, nothing may be written into it.
 *
 * @returns whether there is a new file in its place
 */
async function renewIfLinked(temporary: string, final: string): Promise<boolean> {
  try {
    if ((await stat(temporary)).nlink < 2) return false;
    await unlink(temporary);
    await makeFile(temporary);
    return true;
  } catch (error) {
    throw fromSystemError(error, 'cannot write it', { path: final });
  }
}

async function makeFile(file: string): Promise<void> {
  await (await open(file, 'wx')).close();
}

async function emptyFile(file: string): Promise<void> {
  await (await open(file, 'w')).close();
}
