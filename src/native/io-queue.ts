import type { IoVec } from '../../formats/core/iov.ts';
import { type QueueHandle, type QueueOperations, requireNative } from './binding.ts';
import { addressOf } from './memory.ts';

/** Threads of a queue unless told. On few cores more threads make cached data slower, not faster. */
export const DEFAULT_IO_THREADS = 4;
/** Most threads of a queue. */
export const MAX_IO_THREADS = 256;

const REQUEST_WORDS = 8;
const COMPLETION_WORDS = 3;
const COMPLETION_BATCH = 256;
const FIRST_BATCH_WORDS = 4096;

/** Hears how long an operation took on its thread, before the operation's promise resolves. */
export interface OperationClock {
  note(elapsedUs: number): void;
}

/** One request in flight. Reused: nothing but the promise is made per request. */
class Slot {
  resolve: (result: number) => void = unused;
  clock: OperationClock | undefined;
  /** Keeps the memory of the request from being collected while native code uses it. */
  readonly pinned: Uint8Array[] = [];
  pinnedCount = 0;
}

/**
 * File operations on a pool of native threads. Requests of one tick cross to native code in one call, completions come back in batches.
 *
 * All calls resolve to what the operation says, or to a negative errno; they reject only when the queue is closed.
 */
export class IoQueue {
  readonly operations: QueueOperations;
  readonly #handle: QueueHandle;
  readonly #completions = new Float64Array(COMPLETION_BATCH * COMPLETION_WORDS);
  readonly #slots: Slot[] = [];
  readonly #free: number[] = [];
  #batch = new Float64Array(FIRST_BATCH_WORDS);
  #batchWords = 0;
  #inFlight = 0;
  #closed: Promise<void> | undefined;
  #idle: (() => void) | undefined;
  #threads: number;
  readonly #flush = (): void => this.#submit();

  constructor(options: { threads?: number } = {}) {
    const binding = requireNative();
    const threads = options.threads ?? DEFAULT_IO_THREADS;
    checkThreads(threads);
    this.operations = binding.operations;
    this.#handle = binding.queueCreate(threads, this.#completions, (count) => this.#complete(count));
    this.#threads = threads;
  }

  get threads(): number {
    return this.#threads;
  }

  /** Changes the number of threads; fewer take effect as threads become idle. */
  setThreads(threads: number): void {
    checkThreads(threads);
    this.#threads = requireNative().queueSetThreads(this.#handle, threads);
  }

  /** Requests that have not completed. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Reads until iov is full or the file ends. @returns bytes read */
  readv(fd: number, offset: number, iov: IoVec): Promise<number> {
    return this.#push(this.operations.read, fd, offset, 0, iov);
  }

  /** Writes all of iov. @returns its length. After an error the range holds old or new bytes */
  writev(fd: number, offset: number, iov: IoVec, clock?: OperationClock): Promise<number> {
    return this.#push(this.operations.write, fd, offset, 0, iov, -1, 0, clock);
  }

  /** An operation on the range [offset, offset + length) that moves no memory; by its code from `operations`. */
  range(operation: number, fd: number, offset: number, length: number): Promise<number> {
    return this.#push(operation, fd, offset, length);
  }

  /**
   * cloneRange, copyRange or copySparse: moves [sourceOffset, sourceOffset + length) of `source` to `offset` of `fd`.
   *
   * @param unit copySparse only, a number of 8 bytes: units of so many zeros are not written, the target reads as zeros there
   * @returns bytes
   */
  copy(
    operation: number,
    source: number,
    sourceOffset: number,
    fd: number,
    offset: number,
    length: number,
    unit?: IoVec,
  ): Promise<number> {
    return this.#push(operation, fd, offset, length, unit, source, sourceOffset);
  }

  /** Says of each unit of a range whether it is zeros (1) or not (0). @param out a byte for each. @returns 0 */
  findZeros(fd: number, offset: number, length: number, unit: number, out: IoVec): Promise<number> {
    const { findZeros } = this.operations;
    if (findZeros === undefined) throw new TypeError('this addon cannot look for zeros');
    return this.#push(findZeros, fd, offset, length, out, -1, unit);
  }

  /**
   * Compares a range of `fd` with one of `other`, or with zeros where that is -1. Behind the end of a file there are zeros.
   *
   * @returns bytes from the start that are equal
   */
  compare(fd: number, offset: number, other: number, otherOffset: number, length: number): Promise<number> {
    const { compare } = this.operations;
    if (compare === undefined) throw new TypeError('this addon cannot compare');
    return this.#push(compare, fd, offset, length, undefined, other, otherOffset);
  }

  /**
   * Unpacks a deflate stream: `iov` is two pieces, the stream and room for the output, neither empty; `form` is the number of a DeflateForm (native/inflate.h). Only where `operations.inflate` is there.
   *
   * @returns bytes of output
   */
  inflate(form: number, iov: IoVec): Promise<number> {
    const { inflate } = this.operations;
    if (inflate === undefined) return Promise.reject(new TypeError('this Node has no zlib to be called'));
    return this.#push(inflate, -1, form, 0, iov);
  }

  /**
   * Unpacks many streams: `iov` is three 32-bit numbers for each (where it begins, bytes at most, and room for what came of it), the packed
   * bytes, and one piece of memory for each output; `form` is the number of a StreamForm (native/streams.h).
   *
   * @returns 0
   */
  unpack(form: number, iov: IoVec): Promise<number> {
    const { unpack } = this.operations;
    if (unpack === undefined) return Promise.reject(new TypeError('this addon cannot unpack streams'));
    return this.#push(unpack, -1, form, 0, iov);
  }

  /**
   * Packs units into streams: `iov` is a 32-bit number for each (room for the lengths), the units, and room for as many whole ones;
   * `how` is as Packing in native/streams.h.
   *
   * @returns bytes of output
   */
  pack(how: { form: number; level: number; windowBits: number }, unit: number, iov: IoVec): Promise<number> {
    const { pack } = this.operations;
    if (pack === undefined) return Promise.reject(new TypeError('this addon cannot pack streams'));
    return this.#push(pack, -1, how.form, unit, iov, how.level, how.windowBits);
  }

  /** Waits for what is in flight and ends the threads. Later requests reject. Safe to call twice. */
  close(): Promise<void> {
    this.#closed ??= this.#finish();
    return this.#closed;
  }

  async #finish(): Promise<void> {
    if (this.#inFlight > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    requireNative().queueClose(this.#handle);
  }

  #push(
    operation: number,
    fd: number,
    offset: number,
    length: number,
    iov?: IoVec,
    source = -1,
    sourceOffset = 0,
    clock?: OperationClock,
  ): Promise<number> {
    if (this.#closed !== undefined) return Promise.reject(new TypeError('the I/O queue is closed'));
    const segments = iov === undefined ? 0 : iov.count;
    const words = this.#room(REQUEST_WORDS + 2 * segments);
    const index = this.#free.pop() ?? this.#slots.push(new Slot()) - 1;
    const slot = this.#slots[index] as Slot;
    let at = this.#batchWords + REQUEST_WORDS;
    for (let i = 0; i < segments; i++) {
      const { memory, offsets, lengths } = iov as IoVec;
      const view = memory[i] as Uint8Array;
      const start = offsets[i] as number;
      const size = lengths[i] as number;
      // Native code takes addresses: what is out of bounds here would be somebody else's memory there.
      if (!(start >= 0 && start + size <= view.length)) {
        this.#release(index, slot);
        return Promise.reject(new RangeError('a segment is not inside its memory'));
      }
      slot.pinned[i] = view;
      slot.pinnedCount = i + 1;
      words[at++] = addressOf(view) + start;
      words[at++] = size;
    }
    const head = this.#batchWords;
    words[head] = operation;
    words[head + 1] = index;
    words[head + 2] = fd;
    words[head + 3] = offset;
    words[head + 4] = length;
    words[head + 5] = source;
    words[head + 6] = sourceOffset;
    words[head + 7] = segments;
    if (head === 0) queueMicrotask(this.#flush);
    this.#batchWords = at;
    this.#inFlight++;
    slot.clock = clock;
    return new Promise((resolve) => {
      slot.resolve = resolve;
    });
  }

  /** The batch, with room for so many more words. */
  #room(words: number): Float64Array {
    if (this.#batchWords + words > this.#batch.length) {
      const larger = new Float64Array(Math.max(this.#batch.length * 2, this.#batchWords + words));
      larger.set(this.#batch.subarray(0, this.#batchWords));
      this.#batch = larger;
    }
    return this.#batch;
  }

  #submit(): void {
    const words = this.#batchWords;
    this.#batchWords = 0;
    requireNative().queueSubmit(this.#handle, this.#batch, words);
    if (this.#batch.length > 64 * FIRST_BATCH_WORDS) this.#batch = new Float64Array(FIRST_BATCH_WORDS);
  }

  #complete(count: number): void {
    const completions = this.#completions;
    for (let at = 0; at < count * COMPLETION_WORDS; at += COMPLETION_WORDS) {
      const index = completions[at] as number;
      const slot = this.#slots[index] as Slot;
      slot.clock?.note(completions[at + 2] as number);
      const { resolve } = slot;
      this.#release(index, slot);
      this.#inFlight--;
      resolve(completions[at + 1] as number);
    }
    if (this.#inFlight === 0) this.#idle?.();
  }

  #release(index: number, slot: Slot): void {
    for (let i = 0; i < slot.pinnedCount; i++) slot.pinned[i] = NOTHING;
    slot.pinnedCount = 0;
    slot.resolve = unused;
    slot.clock = undefined;
    this.#free.push(index);
  }
}

const NOTHING = new Uint8Array(0);

function unused(): void {}

function checkThreads(threads: number): void {
  if (!Number.isInteger(threads) || threads < 1 || threads > MAX_IO_THREADS) {
    throw new RangeError(`${threads} I/O threads: 1 to ${MAX_IO_THREADS} make sense`);
  }
}

let shared: IoQueue | undefined;
let sharedThreads = DEFAULT_IO_THREADS;

/** The queue of the process, made at first use. Does not keep the process alive while it is idle. */
export function sharedIoQueue(): IoQueue {
  shared ??= new IoQueue({ threads: sharedThreads });
  return shared;
}

/** Sets the threads of the process's queue, now or for when it is made. */
export function setIoThreads(threads: number): void {
  checkThreads(threads);
  sharedThreads = threads;
  shared?.setThreads(threads);
}

/** Threads of the process's queue. */
export function ioThreads(): number {
  return shared?.threads ?? sharedThreads;
}
