import { LunetteError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';
import { type IoVec, type StreamTarget, writeStreamOptimized } from '../../formats/index.ts';
import { checksumDisk } from './checksum.ts';
import { concatenate, type DiskSource, listOf, readDisk, withSize } from './disk.ts';
import { dataRuns } from './runs.ts';
import { StreamChecksum } from './stream-checksum.ts';
import { type StreamValues, streamOptions } from './stream-options.ts';

const CHUNK = 1 * MiB;

export interface ToStreamOptions {
  readonly sources: readonly DiskSource[];
  /** Writes VMDK's streamOptimized with these options; default: raw bytes. */
  readonly streamOptimized?: StreamValues | undefined;
  readonly checksum?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ((done: number) => void) | undefined;
}

/**
 * Writes disks into something that only takes bytes in order, as a pipe.
 *
 * @param write resolves when the bytes may be overwritten
 * @throws {LunetteError} ABORTED by the signal, also while nobody takes what was written
 */
export async function convertToStream(
  write: (bytes: Uint8Array) => Promise<void>,
  options: ToStreamOptions,
): Promise<{ size: number; checksum: string | undefined }> {
  const joined = concatenate(options.sources);
  const checksum = options.checksum === true ? new StreamChecksum(options.signal) : undefined;
  const sink = new Sink(write, options.signal, joined.path);
  if (options.streamOptimized !== undefined) {
    const source = withSize(joined, Math.ceil(joined.size / 512) * 512);
    await writeOptimized(source, sink, options.streamOptimized, options, checksum);
    return { size: source.size, checksum: await checksum?.finish(source.size) };
  }
  await writeRaw(joined, sink, options, checksum);
  return { size: joined.size, checksum: await checksum?.finish(joined.size) };
}

async function writeRaw(
  source: DiskSource,
  sink: Sink,
  options: ToStreamOptions,
  checksum: StreamChecksum | undefined,
): Promise<void> {
  const zeros = new Uint8Array(CHUNK);
  // Two: one is read while the other goes out.
  const buffers = [new Uint8Array(CHUNK), new Uint8Array(CHUNK)];
  let turn = 0;
  const put = async (bytes: Uint8Array): Promise<void> => {
    await sink.put(bytes);
    options.progress?.(sink.position);
  };
  const zerosTo = async (end: number): Promise<void> => {
    while (sink.position < end) await put(zeros.subarray(0, Math.min(CHUNK, end - sink.position)));
  };
  for await (const run of dataRuns(source, { unit: 512 })) {
    await zerosTo(run.offset);
    for (const end = run.offset + run.length; sink.position < end; ) {
      const at = sink.position;
      const buffer = buffers[turn++ % 2] as Uint8Array;
      const length = Math.min(CHUNK, end - at);
      await readDisk(source, at, listOf(buffer, length));
      const bytes = buffer.subarray(0, length);
      await checksum?.update(at, bytes);
      await put(bytes);
    }
  }
  await zerosTo(source.size);
  await sink.end();
}

async function writeOptimized(
  source: DiskSource,
  sink: Sink,
  values: StreamValues,
  options: ToStreamOptions,
  checksum: StreamChecksum | undefined,
): Promise<void> {
  // The id of the content stands before the content.
  const contentId = (await checksumDisk(source, 'blk-sha256', { signal: options.signal })).slice(0, 32);
  const target: StreamTarget = {
    path: 'disk.vmdk',
    async resize() {},
    async sync() {},
    async writev(offset: number, iov: IoVec) {
      if (offset !== sink.position) throw new LunetteError('INTERNAL', 'a stream is written in order');
      const bytes = new Uint8Array(iov.byteLength);
      iov.copyOut(0, bytes); // pipes take few large writes more quickly than many small ones
      await sink.put(bytes);
    },
  };
  await writeStreamOptimized(source, target, {
    ...streamOptions(values),
    contentId,
    observe: checksum === undefined ? undefined : (offset, bytes) => checksum.update(offset, bytes),
    progress: options.progress,
  });
  await sink.end();
}

/** Puts one piece after the other, each begun when the one before it is gone. */
class Sink {
  position = 0;
  readonly #write: (bytes: Uint8Array) => Promise<void>;
  readonly #signal: AbortSignal | undefined;
  readonly #path: string;
  #writing: Promise<void> = Promise.resolve();

  constructor(write: (bytes: Uint8Array) => Promise<void>, signal: AbortSignal | undefined, path: string) {
    this.#write = write;
    this.#signal = signal;
    this.#path = path;
  }

  async put(bytes: Uint8Array): Promise<void> {
    await this.end();
    this.#writing = this.#write(bytes);
    this.#writing.catch(() => undefined); // the next put, or the end, hears of it
    this.position += bytes.length;
  }

  /** Waits for the last piece: a reader that takes nothing any more cannot hold up an interrupt. */
  async end(): Promise<void> {
    const signal = this.#signal;
    if (signal === undefined) return this.#writing;
    // Not a race with one promise for all pieces: that would remember each of them.
    await new Promise<void>((resolve, reject) => {
      const fail = (): void => reject(new LunetteError('ABORTED', 'interrupted', { path: this.#path }));
      if (signal.aborted) return fail();
      signal.addEventListener('abort', fail, { once: true });
      const forget = (): void => signal.removeEventListener('abort', fail);
      this.#writing.finally(forget).then(resolve, reject);
    });
  }
}
