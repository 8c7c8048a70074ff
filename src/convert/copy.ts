import { LunetteError } from '../../formats/core/errors.ts';
import { alignDown, alignUp, MiB } from '../../formats/core/units.ts';
import type { EncodedUnit, ExtentBuffer, Image, Layer, Storage } from '../../formats/index.ts';
import { IoVec } from '../../formats/index.ts';
import { ChunkMemory } from './chunk-memory.ts';
import { type DiskSource, listOf, readDisk } from './disk.ts';
import type { UnitEncoder } from './encoder.ts';
import type { DigestMark } from './range-digest.ts';
import { type Chunk, ChunkJoiner, type DataRun, dataRuns } from './runs.ts';
import { SHORTEST_TRANSFER, transferRun } from './transfer.ts';
import { equalUnits, zeroParts } from './zero-parts.ts';

/** One read, and at most one write. */
const CHUNK = 1 * MiB;
/** Reads that wait for their data at the same time, unless told. */
const DEFAULT_PARALLEL = 8;
/** What stays in the CPU's cache costs least: more buffers make copying slower. */
export const DEFAULT_MEMORY = 16 * MiB;
export const DEFAULT_SPARSE_SIZE = 4096;
/** A clone is metadata only, but it holds up a thread of the I/O queue and the progress. */
const LONGEST_CLONE = 256 * MiB;
const CLONE_ALIGN = 4096;

export interface CopyOptions {
  /** The target reads as zeros all over: zeros need not be written. */
  readonly targetIsZero: boolean;
  /** What the target shows already is left out: it stands on another image. */
  readonly overBacking?: boolean | undefined;
  /** With overBacking: extents that the target's backing files hold as they are. */
  readonly unchanged?: ((extents: ExtentBuffer, index: number) => boolean) | undefined;
  /** Bytes of zeros in data that become a hole; 0: data is written as it is. Default 4 KiB. */
  readonly sparseSize?: number | undefined;
  /** Store units compressed. The target has `compression`. */
  readonly encoder?: UnitEncoder | undefined;
  /** Share space between the files where their file system can. Default true. */
  readonly clone?: boolean | undefined;
  /** Copy from file to file, by where the source's bytes lie. Default true; not for disks that others write to meanwhile. */
  readonly transfer?: boolean | undefined;
  /** Guest offset to begin at, a multiple of the target's units. Default 0. */
  readonly from?: number | undefined;
  /** Reads that wait at the same time. Default 8. */
  readonly parallel?: number | undefined;
  /** Bytes of buffers. Default 16 MiB. */
  readonly memoryBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called with the guest bytes that are done. */
  readonly progress?: ((done: number) => void) | undefined;
  /** Called in guest order with what was read, before it is written; what is between reads as zeros. @returns when that may go on */
  readonly observe?: ((offset: number, bytes: Uint8Array) => Promise<void> | undefined) | undefined;
  /** Where what is done is noted down on the way. */
  readonly checkpoints?: Checkpoints | undefined;
}

/** Notes how far a copy is. */
export interface Checkpoints {
  /** Whether it is time for one. Asked often. */
  due(): boolean;
  /** Everything before a guest offset, a multiple of the target's units, is written and was observed. The copy goes on afterwards. */
  reach(done: number): Promise<void>;
  /** Asked before a piece that begins there is observed. @returns that place, or one a little before it */
  mark(offset: number): DigestMark;
  /** The copy has failed, and nothing is in flight: everything before the mark is written. Never throws. */
  last(mark: DigestMark): Promise<void>;
}

interface Pending {
  readonly chunk: Chunk;
  readonly buffer: Uint8Array;
  /** Undefined when the data is there. */
  readonly reading: Promise<void> | undefined;
}

/**
 * Copies a disk into an image: what the source's metadata calls a hole is not read, what reads as zeros is not written where the target
 * is zeros already. Reads run ahead of writes, both in the order of the disk.
 *
 * @throws {LunetteError} what reading and writing throw; ABORTED. Nothing is in flight then
 */
export async function copyDisk(source: DiskSource, target: Image, options: CopyOptions): Promise<void> {
  await new DiskCopy(source, target, options).run();
}

class DiskCopy {
  readonly #source: DiskSource;
  readonly #target: Image;
  readonly #options: CopyOptions;
  readonly #memory: ChunkMemory;
  readonly #unit: number;
  readonly #sparseSize: number;
  readonly #parallel: number;
  readonly #reads: Pending[] = [];
  readonly #writes = new Set<Promise<void>>();
  /** Compressed units are stored in the order of the disk. */
  #stored: Promise<void> = Promise.resolve();
  #clones: boolean;
  #transfers: boolean;
  /** The last write of each turn. */
  readonly #written: (Promise<void> | undefined)[];
  #turn = 0;
  #failure: unknown;
  /** What was observed ends there. */
  #observed = 0;
  /** Where the last piece begins that was observed. */
  #lastMark: DigestMark | undefined;
  /** Where the first piece begins that was observed and not written. */
  #failedAt: DigestMark | undefined;

  constructor(source: DiskSource, target: Image, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    const { sparseSize = DEFAULT_SPARSE_SIZE, memoryBytes = DEFAULT_MEMORY } = options;
    this.#sparseSize = sparseSize;
    this.#unit = copyUnit(target, sparseSize);
    this.#parallel = options.parallel ?? DEFAULT_PARALLEL;
    // A file takes one write at a time: several would spin for its lock.
    this.#written = new Array(isLocalFile(target) ? 1 : this.#parallel).fill(undefined);
    this.#memory = new ChunkMemory(Math.max(CHUNK, this.#unit), memoryBytes);
    this.#clones =
      options.clone !== false &&
      options.encoder === undefined &&
      !options.overBacking &&
      target.cloneFrom !== undefined;
    this.#transfers =
      options.transfer !== false &&
      options.encoder === undefined &&
      !options.overBacking &&
      // Both are told of bytes that pass through here.
      options.observe === undefined &&
      options.checkpoints === undefined &&
      target.copyFrom !== undefined;
  }

  async run(): Promise<void> {
    try {
      await this.#copy();
      await this.#settle();
    } catch (error) {
      await this.#end();
      await this.#lastCheckpoint();
      throw error;
    } finally {
      await this.#end();
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Waits for all that is in flight, whatever comes of it. */
  async #end(): Promise<void> {
    await Promise.allSettled([...this.#reads.map(({ reading }) => reading), ...this.#writes]);
  }

  /** What is whole of a copy that failed is of use. */
  async #lastCheckpoint(): Promise<void> {
    const { checkpoints } = this.#options;
    if (checkpoints === undefined || this.#lastMark === undefined) return;
    let mark = this.#failedAt ?? checkpoints.mark(this.#observed);
    // At the disk's end a mark may lie within a unit, from which no copy can go on.
    if (mark.done % this.#unit !== 0) mark = this.#lastMark;
    await checkpoints.last(mark);
  }

  async #copy(): Promise<void> {
    const { from = 0, unchanged, overBacking = false } = this.#options;
    const { size } = this.#source;
    const joiner = new ChunkJoiner(this.#memory.size);
    const runs = dataRuns(this.#source, {
      unit: this.#unit,
      from,
      zeros: overBacking,
      longest: LONGEST_CLONE,
      ...(unchanged === undefined ? {} : { skip: unchanged }),
    });
    let at = from;
    for await (const run of runs) {
      this.#check();
      await this.#gap(at, run.offset);
      at = run.offset + run.length;
      const cloned = this.#clones && run.storage !== null ? await this.#clone(run, run.storage) : 0;
      const done = run.storage === null ? cloned : await this.#transfer(run, run.storage, cloned);
      if (done === run.length) continue;
      for (const chunk of joiner.add(run.offset + done, run.length - done)) await this.#read(chunk);
    }
    await this.#drain(joiner);
    await this.#gap(at, size);
  }

  /** Begins all writes of what was read or is to be. */
  async #drain(joiner: ChunkJoiner): Promise<void> {
    for (const chunk of joiner.end()) await this.#read(chunk);
    while (this.#reads.length > 0) await this.#write(this.#reads.shift() as Pending);
  }

  /** What the source does not have: zeros, which a target may have to be told. */
  async #gap(start: number, end: number): Promise<void> {
    const { targetIsZero, overBacking = false } = this.#options;
    if (start >= end || targetIsZero || overBacking) return;
    await this.#target.writeZeroes(start, end - start, true);
  }

  /** @returns bytes from the run's start that share the source's space now */
  async #clone({ offset, length, storageOffset }: DataRun, storage: Storage): Promise<number> {
    const take = alignDown(length, Math.max(this.#unit, CLONE_ALIGN));
    if (take === 0 || offset % CLONE_ALIGN !== 0 || storageOffset % CLONE_ALIGN !== 0) return 0;
    if (!(await this.#target.cloneFrom?.(offset, take, storage, storageOffset))) {
      this.#clones = false; // the file system's first word on that holds for this copy
      return 0;
    }
    this.#options.progress?.(offset + take);
    return take;
  }

  /** @param from bytes from the run's start that are done. @returns bytes that are done then */
  async #transfer(run: DataRun, storage: Storage, from: number): Promise<number> {
    const length = run.length - from;
    if (!this.#transfers || length < SHORTEST_TRANSFER) return from;
    const { progress, targetIsZero } = this.#options;
    const rest = { offset: run.offset + from, length, storage, storageOffset: run.storageOffset + from };
    const done = await transferRun(rest, this.#target, {
      unit: this.#sparseSize === 0 ? 0 : this.#unit,
      targetIsZero,
      check: () => this.#check(),
      done: (offset) => {
        progress?.(offset);
      },
    });
    // Files that cannot do it at all are not asked again.
    if (done === 0) this.#transfers = false;
    return from + done;
  }

  async #read(chunk: Chunk): Promise<void> {
    this.#check();
    let buffer = this.#memory.acquire();
    if (buffer instanceof Promise) {
      // The oldest reads first: their buffers are what comes back.
      while (this.#reads.length > 0) await this.#write(this.#reads.shift() as Pending);
      buffer = await buffer;
      this.#check();
    }
    const reading = readDisk(this.#source, chunk.offset, listOf(buffer, chunk.length));
    reading?.catch(() => undefined); // whoever takes it from the queue hears of it
    this.#reads.push({ chunk, buffer, reading });
    while (this.#reads.length > this.#parallel || this.#reads[0]?.reading === undefined) {
      const first = this.#reads.shift();
      if (first === undefined) break;
      await this.#write(first);
    }
  }

  /** Begins writing what was read. */
  async #write({ chunk, buffer, reading }: Pending): Promise<void> {
    if (reading !== undefined) await reading;
    this.#check();
    const { observe, checkpoints } = this.#options;
    const mark = checkpoints?.mark(chunk.offset);
    this.#lastMark = mark;
    let work: Promise<void> | undefined;
    try {
      this.#observed = chunk.offset + chunk.length;
      await observe?.(chunk.offset, buffer.subarray(0, chunk.length));
      work = this.#store(chunk, buffer);
    } catch (error) {
      this.#failed(mark);
      throw error;
    }
    if (work === undefined) {
      this.#finished(chunk, buffer);
    } else {
      const tracked: Promise<void> = work
        .catch((error: unknown) => {
          this.#failure ??= error;
          this.#failed(mark);
        })
        .finally(() => {
          this.#writes.delete(tracked);
          this.#finished(chunk, buffer);
        });
      this.#writes.add(tracked);
    }
    if (checkpoints?.due() !== true) return;
    await this.#settle();
    await checkpoints.reach(chunk.offset + chunk.length);
  }

  /** @returns undefined when it is stored already */
  #store(chunk: Chunk, buffer: Uint8Array): Promise<void> | undefined {
    const { encoder, overBacking, targetIsZero } = this.#options;
    if (encoder !== undefined) return this.#storeCompressed(chunk, buffer, encoder);
    if (overBacking === true) return this.#storeChanges(chunk, buffer);
    return this.#storeParts(chunk, buffer, targetIsZero);
  }

  #failed(mark: DigestMark | undefined): void {
    if (mark !== undefined && mark.done < (this.#failedAt?.done ?? Number.POSITIVE_INFINITY)) this.#failedAt = mark;
  }

  #finished(chunk: Chunk, buffer: Uint8Array): void {
    this.#memory.release(buffer);
    if (this.#failure === undefined) this.#options.progress?.(chunk.offset + chunk.length);
  }

  /** Writes the parts that are not zeros, and zeros where they must be. @returns undefined when that was done at once */
  #storeParts(chunk: Chunk, buffer: Uint8Array, zerosAreThere: boolean): Promise<void> | undefined {
    const target = this.#target;
    const pending: Promise<void>[] = [];
    const unit = this.#sparseSize === 0 ? 0 : this.#unit;
    for (const { at, length, zero } of zeroParts(buffer, chunk.length, unit)) {
      if (zero) {
        if (!zerosAreThere) pending.push(target.writeZeroes(chunk.offset + at, length, true));
        continue;
      }
      const list = IoVec.of(buffer, at, length);
      if (!target.tryWritev(chunk.offset + at, list)) pending.push(this.#writeInTurn(chunk.offset + at, list));
    }
    return pending.length === 0 ? undefined : all(pending);
  }

  /** Begins a write when one before it has ended. */
  async #writeInTurn(offset: number, list: IoVec): Promise<void> {
    const turn = this.#written[this.#turn % this.#written.length];
    let done: () => void = () => undefined;
    this.#written[this.#turn++ % this.#written.length] = new Promise((resolve) => {
      done = resolve;
    });
    try {
      await turn;
      await this.#target.writev(offset, list);
    } finally {
      done();
    }
  }

  /** Writes the units that differ from what the target shows. */
  async #storeChanges(chunk: Chunk, buffer: Uint8Array): Promise<void> {
    const shown = await this.#shown(chunk);
    const pending: Promise<void>[] = [];
    for (const { at, length, equal } of equalUnits(buffer, shown, chunk.length, this.#unit)) {
      if (equal) continue;
      const part = { offset: chunk.offset + at, length };
      const work = this.#storeParts(part, buffer.subarray(at, at + length), false);
      if (work !== undefined) pending.push(work);
    }
    await all(pending);
  }

  async #shown(chunk: Chunk): Promise<Uint8Array> {
    const bytes = new Uint8Array(chunk.length);
    await readDisk(this.#target, chunk.offset, IoVec.of(bytes));
    return bytes;
  }

  async #storeCompressed(chunk: Chunk, buffer: Uint8Array, encoder: UnitEncoder): Promise<void> {
    // Of a target that goes on behind the source, the last unit keeps what it has there: it is not made anew.
    const end = chunk.offset + chunk.length;
    const whole = end < this.#target.size ? Math.max(chunk.offset, alignDown(end, encoder.unit)) : end;
    if (whole > chunk.offset) await this.#storeWhole({ ...chunk, length: whole - chunk.offset }, buffer, encoder);
    if (whole < end) {
      const rest = { offset: whole, length: end - whole };
      await this.#storeParts(rest, buffer.subarray(whole - chunk.offset), this.#options.targetIsZero);
    }
  }

  async #storeWhole(chunk: Chunk, buffer: Uint8Array, encoder: UnitEncoder): Promise<void> {
    const encoding = encoder.encode(buffer, chunk.length);
    encoding.catch(() => undefined);
    const turn = this.#stored;
    const stored = (async () => {
      try {
        const equal = await this.#unitsShown(chunk, buffer, encoder.unit);
        const { units } = await encoding;
        await turn;
        this.#check();
        await this.#storeUnits(chunk.offset, units, encoder.unit, equal);
      } finally {
        // The buffer is the encoder's until then, whatever has failed.
        (await encoding.catch(() => undefined))?.release();
      }
    })();
    this.#stored = stored.catch(() => undefined);
    return stored;
  }

  /** Which units of a chunk the target shows already. */
  async #unitsShown(chunk: Chunk, buffer: Uint8Array, unit: number): Promise<ReadonlySet<number>> {
    const shown = new Set<number>();
    if (this.#options.overBacking !== true) return shown;
    for (const part of equalUnits(buffer, await this.#shown(chunk), chunk.length, unit)) {
      if (!part.equal) continue;
      for (let at = part.at; at < part.at + part.length; at += unit) shown.add(at / unit);
    }
    return shown;
  }

  /** Stores units that follow each other, without those that the target shows. */
  async #storeUnits(
    offset: number,
    units: readonly EncodedUnit[],
    unit: number,
    shown: ReadonlySet<number>,
  ): Promise<void> {
    const leftOut = (i: number): boolean => shown.has(i) || (this.#options.targetIsZero && units[i] === null);
    for (let i = 0; i < units.length; ) {
      if (leftOut(i)) {
        i++;
        continue;
      }
      let end = i + 1;
      while (end < units.length && !leftOut(end)) end++;
      await this.#target.writeCompressed?.(offset + i * unit, units.slice(i, end));
      i = end;
    }
  }

  /** Waits for all writes. @throws the first failure */
  async #settle(): Promise<void> {
    while (this.#writes.size > 0) await Promise.all(this.#writes);
    this.#check();
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#options.signal?.aborted === true) {
      throw new LunetteError('ABORTED', 'interrupted', { path: this.#target.path });
    }
  }
}

/** Bytes of what is read and written as a whole. */
export function copyUnit(target: Image, sparseSize = DEFAULT_SPARSE_SIZE): number {
  const least = Math.max(target.limits.allocationUnit, target.compression?.unit ?? 1, 512);
  return Math.max(least, alignUp(Math.min(sparseSize, CHUNK), least));
}

async function all(pending: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(pending)) {
    if (result.status === 'rejected') throw result.reason;
  }
}

function isLocalFile(target: Image): boolean {
  const [top] = (target as { layers?: readonly Layer[] }).layers ?? [];
  return top !== undefined && top.storage.fd !== null && top.storage.growsZeroed;
}
