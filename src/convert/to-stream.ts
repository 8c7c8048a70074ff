import { LunetteError } from '../../formats/core/errors.ts';
import { MiB } from '../../formats/core/units.ts';
import { concatenate, type DiskSource, listOf, readDisk } from './disk.ts';
import { dataRuns } from './runs.ts';
import { StreamChecksum } from './stream-checksum.ts';

const CHUNK = 1 * MiB;

export interface ToStreamOptions {
  readonly sources: readonly DiskSource[];
  readonly checksum?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ((done: number) => void) | undefined;
}

/**
 * Writes disks as raw bytes into something that only takes them in order, as a pipe.
 *
 * @param write resolves when the bytes may be overwritten
 */
export async function convertToStream(
  write: (bytes: Uint8Array) => Promise<void>,
  options: ToStreamOptions,
): Promise<{ size: number; checksum: string | undefined }> {
  const source = concatenate(options.sources);
  const checksum = options.checksum === true ? new StreamChecksum() : undefined;
  const zeros = new Uint8Array(CHUNK);
  // Two: one is read while the other goes out.
  const buffers = [new Uint8Array(CHUNK), new Uint8Array(CHUNK)];
  let writing: Promise<void> = Promise.resolve();
  let turn = 0;
  let at = 0;
  const put = async (bytes: Uint8Array): Promise<void> => {
    if (options.signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted', { path: source.path });
    await writing;
    writing = write(bytes);
    writing.catch(() => undefined); // the next put, or the end, hears of it
    at += bytes.length;
    options.progress?.(at);
  };
  const zerosTo = async (end: number): Promise<void> => {
    while (at < end) await put(zeros.subarray(0, Math.min(CHUNK, end - at)));
  };
  for await (const run of dataRuns(source, { unit: 512 })) {
    await zerosTo(run.offset);
    for (const end = run.offset + run.length; at < end; ) {
      const buffer = buffers[turn++ % 2] as Uint8Array;
      const length = Math.min(CHUNK, end - at);
      await readDisk(source, at, listOf(buffer, length));
      const bytes = buffer.subarray(0, length);
      checksum?.update(at, bytes);
      await put(bytes);
    }
  }
  await zerosTo(source.size);
  await writing;
  return { size: source.size, checksum: checksum?.finish(source.size) };
}
