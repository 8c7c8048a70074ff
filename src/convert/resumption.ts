import path from 'node:path';
import { codeOf, ImageError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';
import {
  type ChainImage,
  checkImage,
  DATA,
  ExtentBuffer,
  type Image,
  IoVec,
  OPAQUE,
  type OpenGate,
  type StorageOpener,
} from '../../formats/index.ts';
import type { Checkpoints } from './copy.ts';
import type { DiskSource } from './disk.ts';
import {
  inodeOf,
  JOURNAL_VERSION,
  Journal,
  type JournalHead,
  type JournalPoint,
  type JournalText,
  readJournal,
  removeJournal,
} from './journal.ts';
import { countProven, type ProofOptions } from './proof.ts';
import { type DigestMark, RangeDigest } from './range-digest.ts';
import type { DataRun } from './runs.ts';
import { identityOf } from './source-identity.ts';
import { temporaryName } from './staged-names.ts';
import type { StagedTarget } from './staging.ts';

const EVERY_MS = 1000;
/** A checkpoint waits for the disk: no more than a fifth of the time goes there. */
const PAUSE = 4;

/** How a conversion is made one that can be continued. */
export interface ResumeOptions {
  /** What each source is, for people and as a key: path, format, snapshot. Another text is another disk. */
  readonly names: readonly string[];
  /** Told what came of an earlier attempt: one sentence. */
  readonly say?: ((message: string) => void) | undefined;
  /** Time between two checkpoints at least, milliseconds; 0: after each piece that is written. Default 1000. */
  readonly everyMs?: number | undefined;
}

export interface ResumptionSettings extends ResumeOptions, ProofOptions {
  readonly staged: StagedTarget;
  readonly sources: readonly DiskSource[];
  /** All that decides about the target's bytes, but for the sources'. */
  readonly what: unknown;
  readonly format: string;
  readonly sync: boolean;
  readonly gate?: OpenGate | undefined;
}

/** An image that an earlier attempt has begun, and up to where it is proven. */
export interface Begun {
  readonly image: ChainImage;
  readonly from: number;
}

/** The parts of a disk that are to be proven: see `DiskCopy`, which observed the same ones. */
type RunsOf = (image: ChainImage) => { readonly disk: DiskSource; readonly runs: AsyncIterable<DataRun> };

export function journalName(file: string): string {
  return temporaryName(file, '.lunette-journal');
}

/**
 * A conversion that can be continued: it keeps a journal of what is done beside its target, and begins where that of an earlier attempt
 * ends, as far as the target still holds what the journal says.
 */
export class Resumption implements Checkpoints {
  readonly #settings: ResumptionSettings;
  readonly #path: string;
  readonly #head: JournalHead;
  #journal: Journal | undefined;
  #points = 0;
  /** Guest offset of the last point. */
  #done = 0;
  #lost: unknown;
  #digest = new RangeDigest();
  #image: Image | undefined;
  #next = 0;

  private constructor(settings: ResumptionSettings, head: JournalHead) {
    this.#settings = settings;
    this.#path = journalName(settings.staged.path);
    this.#head = head;
  }

  static async prepare(settings: ResumptionSettings): Promise<Resumption> {
    const { sources, what, names } = settings;
    const identities: (string | null)[] = [];
    for (const source of sources) identities.push((await identityOf(source)) ?? null);
    return new Resumption(settings, {
      lunette: JOURNAL_VERSION,
      options: JSON.stringify(what),
      sources: names,
      identities,
      files: [],
    });
  }

  /** Whether another attempt could go on from what is there. */
  get worthKeeping(): boolean {
    return this.#points > 0;
  }

  /** Why what was done since the last checkpoint is lost. */
  get lost(): string | undefined {
    return this.#lost instanceof Error ? this.#lost.message : undefined;
  }

  /**
   * Takes up what an earlier attempt left, where it is one of the same conversion, checks it, and proves it by the journal's digests.
   *
   * @param open opens the target for writing
   * @param targetRuns what is to be proven of the target; @param sourceRuns of a source of which nothing else says that it is the same
   * @returns undefined: there is nothing of use; the target is empty then
   */
  async takeUp(open: () => Promise<ChainImage>, targetRuns: RunsOf, sourceRuns: RunsOf): Promise<Begun | undefined> {
    const { staged, say } = this.#settings;
    const journal = await readJournal(this.#path);
    if (!staged.found || (await hasEnded(staged, journal))) {
      await forget(staged, journal);
      return undefined;
    }
    const why = journal === undefined ? 'it has no journal that says what is done' : this.#differs(journal.head);
    if (journal === undefined || why !== undefined || journal.points.length === 0) {
      return this.#startOver(why ?? 'it had hardly begun', journal);
    }
    this.#points = journal.points.length; // whatever goes wrong from here on: another attempt may have better luck
    for (const file of filesOf(staged, journal)) await staged.adopt(file);
    if (!(await this.#isSound())) return this.#startOver('its metadata is damaged');
    const image = await open().catch((error: unknown) => {
      if (error instanceof ImageError) return undefined;
      throw error;
    });
    if (image === undefined) return this.#startOver('its metadata is damaged');
    try {
      let { points } = journal;
      const { disk, runs } = targetRuns(image);
      points = points.slice(0, await this.#proven(disk, runs, points));
      if (points.length > 0 && this.#head.identities.includes(null)) {
        const source = sourceRuns(image);
        const same = await this.#proven(source.disk, source.runs, points);
        if (same < points.length) points = [];
      }
      const from = points.at(-1)?.done ?? 0;
      if (from === 0) {
        await image.close();
        return this.#startOver('it does not hold what its journal says, or the source has changed');
      }
      const percent = Math.floor((from / image.size) * 100);
      say?.(`goes on where an earlier conversion ended, at ${percent} %: what that wrote has been checked`);
      await this.#begin(points, image);
      return { image, from };
    } catch (error) {
      await image.close().catch(() => undefined);
      throw error;
    }
  }

  /** A new image is there, and empty: its journal begins. */
  begin(image: Image): Promise<void> {
    return this.#begin([], image);
  }

  async #begin(points: readonly JournalPoint[], image: Image): Promise<void> {
    const { sync, staged } = this.#settings;
    await this.#journal?.close();
    this.#image = image;
    this.#points = points.length;
    this.#done = points.at(-1)?.done ?? 0;
    this.#journal = await Journal.begin(this.#path, { ...this.#head, files: staged.furtherFiles }, points, sync);
    this.#next = this.#due(0);
  }

  observe(offset: number, bytes: Uint8Array): void {
    this.#digest.update(offset, bytes);
  }

  due(): boolean {
    return performance.now() >= this.#next;
  }

  async reach(done: number): Promise<void> {
    const start = performance.now();
    await this.#note({ done, digest: () => this.#digest.finish() });
    this.#next = this.#due(performance.now() - start);
  }

  mark(offset: number): DigestMark {
    return this.#digest.mark(offset);
  }

  /** The copy failed: what of it is whole is noted, where the disk takes it. Never throws. */
  async last(mark: DigestMark): Promise<void> {
    if (mark.done <= this.#done) return;
    await this.#journal?.makeRoom();
    try {
      await this.#note(mark);
    } catch (error) {
      this.#lost = error;
    }
  }

  /**
   * All is written: it is noted before the image is closed, so that whatever fails from here on costs little.
   *
   * @throws {LunetteError} what flushing throws
   */
  async finish(size: number): Promise<void> {
    if (size <= this.#done) return;
    await this.#journal?.makeRoom();
    try {
      await this.#note({ done: size, digest: () => this.#digest.finish() });
    } catch (error) {
      this.#lost = error;
      throw error;
    }
  }

  async #note(mark: DigestMark): Promise<void> {
    await this.#image?.flush();
    await this.#journal?.add({ done: mark.done, digest: mark.digest() });
    this.#done = mark.done;
    this.#points++;
    this.#digest = new RangeDigest();
  }

  #due(lasted: number): number {
    const { everyMs = EVERY_MS } = this.#settings;
    return performance.now() + (everyMs === 0 ? 0 : Math.max(everyMs, PAUSE * lasted));
  }

  /** All is written, and about to have its name: whoever finds the journal with an image of that name knows that it has ended. */
  async end(): Promise<void> {
    const inode = await inodeOf(this.#settings.staged.temporary);
    if (inode !== undefined) await this.#journal?.end(inode);
  }

  /** The journal stays, for another attempt. */
  async release(): Promise<void> {
    await this.#journal?.close().catch(() => undefined);
    this.#journal = undefined;
  }

  /** The journal has served. */
  async remove(): Promise<void> {
    await this.release();
    await removeJournal(this.#path);
  }

  #differs(head: JournalHead): string | undefined {
    const { options, sources, identities } = this.#head;
    if (head.options !== options) return 'it had other options';
    if (head.sources.join('\n') !== sources.join('\n')) return 'it had other sources';
    for (const [i, identity] of identities.entries()) {
      if (identity !== head.identities[i]) return `its source ${sources[i]} has changed since`;
    }
    return undefined;
  }

  async #startOver(why: string, journal?: JournalText): Promise<undefined> {
    const { staged, say } = this.#settings;
    say?.(`an earlier conversion to it cannot be continued, ${why}: starts over`);
    this.#points = 0;
    await forget(staged, journal);
  }

  async #isSound(): Promise<boolean> {
    const { staged, format, gate } = this.#settings;
    const openStorage: StorageOpener = (file, options) => staged.open(file, options);
    try {
      const result = await checkImage(staged.path, { format, openStorage, gate, repair: 'leaks' });
      return result.corruptions === 0 && result.checkErrors === 0;
    } catch (error) {
      if (codeOf(error) === 'LOCKED' || codeOf(error) === 'NO_SPACE') throw error;
      return false;
    }
  }

  #proven(disk: DiskSource, runs: AsyncIterable<DataRun>, points: readonly JournalPoint[]): Promise<number> {
    const { signal, progress } = this.#settings;
    return countProven(disk, runs, points, { signal, progress });
  }
}

/**
 * A conversion that is not one to be continued: what an earlier one left beside the target goes.
 *
 * @returns whether another one could have gone on from there
 */
export async function forgetEarlier(staged: StagedTarget): Promise<boolean> {
  const file = journalName(staged.path);
  const journal = await readJournal(file);
  const useful = staged.tookOver && !(await hasEnded(staged, journal));
  await forget(staged, journal);
  return useful && journal !== undefined && journal.points.length > 0;
}

/** Whether a conversion was killed when its image had its name already: what has the hidden name is what it replaced. */
async function hasEnded(staged: StagedTarget, journal: JournalText | undefined): Promise<boolean> {
  return journal?.whole !== undefined && journal.whole === (await inodeOf(staged.path));
}

/** The files of the target beside the main one: in its folder, whatever the journal says. */
function filesOf(staged: StagedTarget, { head }: JournalText): string[] {
  return head.files.map((file) => path.join(path.dirname(staged.path), path.basename(file)));
}

/** Removes a journal, and all that its conversion had made: the main file is empty. */
async function forget(staged: StagedTarget, journal: JournalText | undefined): Promise<void> {
  await removeJournal(journalName(staged.path));
  await staged.restart();
  if (journal !== undefined) for (const file of filesOf(staged, journal)) await staged.discard(file);
}

/** Makes an image read as zeros from an offset on: what an attempt wrote behind its last checkpoint is not believed. */
export async function wipeFrom(image: Image, from: number, unmap: boolean): Promise<void> {
  const extents = new ExtentBuffer();
  for (let at = from; at < image.size; at = extents.end) {
    await image.map(at, image.size - at, extents);
    for (let i = 0; i < extents.count; i++) {
      const kind = extents.kinds[i];
      if (kind !== DATA && kind !== OPAQUE) continue;
      const [offset, length] = [extents.offsets[i] as number, extents.lengths[i] as number];
      // A VMDK file never uses again what was given back: it is kept for what comes there.
      if (image.format === 'vmdk') await overwrite(image, offset, length);
      else await image.writeZeroes(offset, length, unmap);
    }
  }
}

async function overwrite(image: Image, offset: number, length: number): Promise<void> {
  const zeros = new Uint8Array(Math.min(length, 1 * MiB));
  for (let at = 0; at < length; at += zeros.length) {
    await image.writev(offset + at, IoVec.of(zeros, 0, Math.min(zeros.length, length - at)));
  }
}
