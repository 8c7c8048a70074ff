import { constants, existsSync } from 'node:fs';
import { open, rename, unlink } from 'node:fs/promises';
import path from 'node:path';
import { fromSystemError } from '../../formats/core/errors.ts';
import { asideName, syncFile, temporaryName } from './staged-names.ts';

/** A record that is larger is none of ours: a disk has some thousand files at most. */
const MAX_RECORD = 16 * 1024 * 1024;

/** How names are changed: whoever must know of each change passes it on. */
export type Change = <T>(step: () => Promise<T>) => Promise<T>;

interface NamedFile {
  readonly final: string;
  /** Something had the name, and goes aside. */
  readonly replaced: boolean;
}

/**
 * Files that get their names together, of which some have others in their places. What is there goes aside before the first new file gets its
 * name, the main one first, which comes last: a set of which one half is old and the other new is found by nobody. A record beside the main
 * file says which files they are, until all is done: whoever finds it brings all of them back, or has all of them, however often
 * that is interrupted.
 */
export class NameChange {
  readonly #files: readonly NamedFile[];
  readonly #record: string;
  readonly #change: Change;

  /** @param finals the main one first */
  constructor(finals: readonly string[], replaces: (final: string) => boolean, change: Change) {
    this.#files = finals.map((final) => ({ final: path.resolve(final), replaced: replaces(final) }));
    this.#record = recordName(finals[0] as string);
    this.#change = change;
  }

  /** @param undo gets how to undo what was done, in the order in which it was done */
  async run(undo: (() => Promise<void>)[], sync: boolean): Promise<void> {
    await this.#change(() => writeRecord(this.#record, this.#files, sync));
    undo.push(() => this.#change(() => unlink(this.#record)));
    for (const { final, replaced } of this.#files) {
      if (!replaced) continue;
      await this.#change(() => rename(final, asideName(final)));
      undo.push(() => this.#change(() => rename(asideName(final), final)));
    }
    for (const { final } of [...this.#files].reverse()) {
      await this.#change(() => rename(temporaryName(final), final));
      undo.push(() => this.#change(() => rename(final, temporaryName(final))));
    }
  }

  /** All have their names, and keep them: what had them goes. Never throws: what stays is found by the next. */
  async end(): Promise<void> {
    try {
      await removeAside(this.#files, this.#change);
      await this.#change(() => unlink(this.#record));
    } catch {
      // The record stays with what it is about.
    }
  }
}

/**
 * Ends what an attempt that was killed began with a set of files: where its main file has a name all have theirs, and else the old ones come
 * back, the main one last, and the new ones go back to their hidden names.
 *
 * @param keep whether another attempt may go on with the new ones
 * @param claim throws when somebody has a file locked; asked before anything is changed
 */
export async function endNameChange(
  main: string,
  keep: boolean,
  claim: (file: string, final: string) => Promise<void>,
  change: Change,
): Promise<void> {
  const record = recordName(main);
  const files = await readRecord(record);
  if (files === undefined) return;
  for (const { final } of files) if (existsSync(asideName(final))) await claim(asideName(final), final);
  try {
    if (existsSync(main)) await removeAside(files, change);
    else for (const file of [...files].reverse()) await bringBack(file, change);
    for (const { final } of keep ? [] : files.slice(1)) {
      if (existsSync(temporaryName(final))) await change(() => unlink(temporaryName(final)));
    }
    await change(() => unlink(record));
  } catch (error) {
    throw fromSystemError(error, 'cannot bring back what an earlier attempt moved aside', { path: main });
  }
}

async function removeAside(files: readonly NamedFile[], change: Change): Promise<void> {
  for (const { final } of files) {
    if (existsSync(asideName(final))) await change(() => unlink(asideName(final)));
  }
}

async function bringBack({ final, replaced }: NamedFile, change: Change): Promise<void> {
  const [aside, temporary] = [asideName(final), temporaryName(final)];
  const isNew = replaced ? existsSync(aside) : true;
  if (isNew && existsSync(final) && !existsSync(temporary)) await change(() => rename(final, temporary));
  if (existsSync(aside)) await change(() => rename(aside, final));
}

function recordName(main: string): string {
  return temporaryName(main, '.lunette-names');
}

async function writeRecord(record: string, files: readonly NamedFile[], sync: boolean): Promise<void> {
  // Half a record is none: nothing has been moved then.
  await unlink(record).catch(() => undefined);
  const handle = await open(record, 'wx', 0o600);
  try {
    // Beside it: a folder may be moved before the next attempt.
    const beside = files.map(({ final, replaced }) => ({
      final: path.relative(path.dirname(record), final),
      replaced,
    }));
    await handle.writeFile(`${JSON.stringify(beside)}\n`);
    if (sync) await handle.sync();
  } finally {
    await handle.close();
  }
  if (sync) await syncFile(path.dirname(record));
}

/**
 * @returns no files for half a record; undefined when there is none, or what is there is none of ours: anybody may put a file into a folder
 *   like /tmp
 */
async function readRecord(record: string): Promise<readonly NamedFile[] | undefined> {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
  const handle = await open(record, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch(() => undefined);
  if (handle === undefined) return undefined;
  try {
    const found = await handle.stat();
    if (!found.isFile() || found.size > MAX_RECORD || found.uid !== process.geteuid?.()) return undefined;
    const text = await handle.readFile('utf8');
    const files: unknown = text.endsWith('\n') ? JSON.parse(text) : [];
    if (!Array.isArray(files) || !files.every(isNamedFile)) return [];
    const folder = path.resolve(path.dirname(record));
    return files.map(({ final, replaced }) => ({ final: path.join(folder, final), replaced }));
  } catch {
    return [];
  } finally {
    await handle.close();
  }
}

function isNamedFile(value: unknown): value is NamedFile {
  const file = value as Partial<NamedFile> | null | undefined;
  return typeof file?.final === 'string' && !path.isAbsolute(file.final) && typeof file.replaced === 'boolean';
}
