import { constants } from 'node:fs';
import { type FileHandle, open, stat, unlink } from 'node:fs/promises';
import { fromSystemError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';

/** What a conversion was, as far as another one must be the same to go on with it. */
export interface JournalHead {
  readonly lunette: typeof JOURNAL_VERSION;
  /** Format, options, backing file and sizes, as one text. */
  readonly options: string;
  /** What the sources are called. */
  readonly sources: readonly string[];
  /** What says that each source is what it was; null where nothing does. */
  readonly identities: readonly (string | null)[];
  /** Files of the target beside the main one. */
  readonly files: readonly string[];
}

/** Everything before a guest offset is written; what came since the point before has this digest (RangeDigest). */
export interface JournalPoint {
  readonly done: number;
  readonly digest: string;
}

/** All was written: the file that is to have the target's name (inodeOf). */
interface JournalEnd {
  readonly whole: string;
}

export interface JournalText {
  readonly head: JournalHead;
  readonly points: readonly JournalPoint[];
  /** The file that was about to have the target's name when all was written. */
  readonly whole: string | undefined;
}

export const JOURNAL_VERSION = 1;
/** A journal that is larger is none of ours: one point a second makes a megabyte in three hours. */
const MAX_JOURNAL = 256 * 1024 * 1024;

/**
 * Bytes that are kept free behind the last line, for lines to come and for what a full disk must take so that the last one is true: the tables of
 * an image since the checkpoint before, some hundred KiB.
 */
const RESERVE = 1 * MiB;
/** What stays of that for a last line. */
const LAST_LINE = 4096;

/** A file of JSON lines beside a target: how far its conversion is. What follows the last whole line does not count. */
export class Journal {
  readonly path: string;
  readonly #handle: FileHandle;
  readonly #sync: boolean;
  #length: number;

  private constructor(path: string, handle: FileHandle, sync: boolean, length: number) {
    this.path = path;
    this.#handle = handle;
    this.#sync = sync;
    this.#length = length;
  }

  /** Begins a journal anew, with what was proven of one before. Durable where `sync`. What of an old one still holds is not written again. */
  static async begin(
    path: string,
    head: JournalHead,
    points: readonly JournalPoint[],
    sync: boolean,
  ): Promise<Journal> {
    try {
      const text = [head, ...points].map((each) => `${JSON.stringify(each)}\n`).join('');
      // On a full disk an old one that is cut first might not come back.
      const length = (await readText(path))?.startsWith(text) === true ? Buffer.byteLength(text) : 0;
      // What is cut first is never taken for whole lines of the new one.
      const journal = new Journal(path, await openNew(path, length), sync, length);
      try {
        if (length === 0) await journal.#append(text);
        await journal.#reserve();
      } catch (error) {
        await journal.#handle.close().catch(() => undefined);
        throw error;
      }
      return journal;
    } catch (error) {
      throw fromSystemError(error, 'cannot keep a journal', { path });
    }
  }

  async add(point: JournalPoint): Promise<void> {
    try {
      await this.#append(`${JSON.stringify(point)}\n`);
    } catch (error) {
      throw fromSystemError(error, 'cannot keep a journal', { path: this.path });
    }
  }

  /** Notes that the image is whole, and which file it is: once that has its name, the journal is one of a conversion that has ended. */
  async end(inode: string): Promise<void> {
    try {
      await this.#append(`${JSON.stringify({ whole: inode } satisfies JournalEnd)}\n`);
    } catch (error) {
      throw fromSystemError(error, 'cannot keep a journal', { path: this.path });
    }
  }

  /** Gives the disk back what was reserved, but for a last line. Never throws. */
  async makeRoom(): Promise<void> {
    await this.#handle.truncate(this.#length + LAST_LINE).catch(() => undefined);
  }

  async close(): Promise<void> {
    await this.#handle.truncate(this.#length).catch(() => undefined);
    await this.#handle.close();
  }

  /** Zeros behind the last line are no line. A disk without so much room may still take the image. */
  async #reserve(): Promise<void> {
    try {
      await this.#handle.write(new Uint8Array(RESERVE), 0, RESERVE, this.#length);
    } catch {
      await this.#handle.truncate(this.#length);
    }
  }

  async #append(text: string): Promise<void> {
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; ) {
      at += (await this.#handle.write(bytes, at, bytes.length - at, this.#length + at)).bytesWritten;
    }
    if (this.#sync) await this.#handle.datasync();
    this.#length += bytes.length;
  }
}

/** What a journal says. @returns undefined when there is none that can be understood; the points then mean nothing either */
export async function readJournal(path: string): Promise<JournalText | undefined> {
  const text = await readText(path);
  const [first, ...lines] = (text ?? '').split('\n').slice(0, -1).map(parseLine);
  if (!isHead(first)) return undefined;
  const points: JournalPoint[] = [];
  let whole: string | undefined;
  for (const line of lines) {
    if (isEnd(line)) whole = line.whole;
    // A cut of power may leave anything at the end.
    if (!isPoint(line) || line.done <= (points.at(-1)?.done ?? 0)) break;
    points.push(line);
  }
  return { head: first, points, whole };
}

/** Only of a file, and one that is not too large: what is in its place may be a link or a pipe that somebody put there. */
async function readText(path: string): Promise<string | undefined> {
  let handle: FileHandle;
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch {
    return undefined;
  }
  try {
    const found = await handle.stat();
    if (!found.isFile() || found.size > MAX_JOURNAL) return undefined;
    return await handle.readFile('utf8');
  } catch {
    return undefined;
  } finally {
    await handle.close();
  }
}

/** Which file of its file system a path leads to, whatever its name will be: its inode; undefined when there is none. */
export async function inodeOf(path: string): Promise<string | undefined> {
  const found = await stat(path, { bigint: true }).catch(() => undefined);
  return found === undefined ? undefined : String(found.ino);
}

/**
 * Opens a file for writing, and leaves so many bytes of what is there. What is there and no file, as a link that somebody put there, is not
 * written through.
 */
async function openNew(path: string, length: number): Promise<FileHandle> {
  const { O_WRONLY, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = constants;
  const handle = await open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o600);
  try {
    if ((await handle.stat()).isFile()) await handle.truncate(length);
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Removes a journal. @returns whether there was one */
export async function removeJournal(path: string): Promise<boolean> {
  return unlink(path).then(
    () => true,
    () => false,
  );
}

function parseLine(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

function isHead(value: unknown): value is JournalHead {
  const head = value as Partial<JournalHead> | null | undefined;
  const texts = (list: unknown): boolean => Array.isArray(list) && list.every((each) => typeof each === 'string');
  return (
    head?.lunette === JOURNAL_VERSION &&
    typeof head.options === 'string' &&
    texts(head.sources) &&
    texts(head.files) &&
    Array.isArray(head.identities) &&
    head.identities.every((each) => each === null || typeof each === 'string')
  );
}

function isEnd(value: unknown): value is JournalEnd {
  return typeof (value as Partial<JournalEnd> | null | undefined)?.whole === 'string';
}

function isPoint(value: unknown): value is JournalPoint {
  const point = value as Partial<JournalPoint> | null | undefined;
  return Number.isSafeInteger(point?.done) && /^[0-9a-f]{64}$/.test(String(point?.digest));
}
