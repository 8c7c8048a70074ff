import { fstatSync, statSync } from 'node:fs';
import { ImageError } from '../../formats/core/errors.ts';
import { writerOf } from '../../formats/storage/lock-holders.ts';
import type { Storage } from '../../formats/storage/storage.ts';

/** How often a file that changes is looked at again. */
const ATTEMPTS = 5;
/** Kernels stamp changes by a clock that ticks every 1 to 10 ms: a change right after another may leave no trace. */
const CLOCK_TICK_MS = 25;
/**
 * Looks at files that others may write to, and answers only with what was there at one moment: when one of them changed meanwhile the look
 * is repeated, and given up after a few times. What the writer still has in its memory is not in the file, and not in the answer.
 *
 * @param look reads from the file only
 * @throws {ImageError} LOCKED when it changes all the time
 */
export async function lookWhileStill<T>(files: Storage | readonly Storage[], look: () => Promise<T>): Promise<T> {
  const storages: Storage[] = [];
  for (const storage of 'lock' in files ? [files] : files) {
    // Devices have no time of their last change: nothing tells that one stood still while somebody writes to it.
    const device = storage.fd !== null && !fstatSync(storage.fd).isFile();
    if (!device || (await writerOf(storage)) !== undefined) storages.push(storage);
  }
  let failure: unknown;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    // A file may have grown since it was opened: a lock reads its size again.
    for (const storage of storages) await storage.lock('shared');
    const before = await Promise.all(storages.map(settledStamp));
    if (!before.includes(undefined)) {
      let result: { value: T } | undefined;
      try {
        result = { value: await look() };
      } catch (error) {
        failure = error;
      }
      // Files that stood still are as they were read, right or wrong.
      if (storages.every((storage, i) => stampOf(storage) === before[i] && isWhole(storage, before[i] as string))) {
        if (result !== undefined) return result.value;
        throw failure;
      }
    }
    await delay(CLOCK_TICK_MS * 2 ** attempt);
  }
  let [path, writer] = [storages[0]?.path, undefined as string | undefined];
  for (const storage of storages) {
    if (writer !== undefined) break;
    writer = await writerOf(storage).catch(() => undefined);
    if (writer !== undefined) path = storage.path;
  }
  throw new ImageError(
    'LOCKED',
    `${writer ?? 'another program'} writes to it all the time: what was read may not fit together`,
    {
      path,
      help: 'Pause the machine for a moment, or compare snapshots, which do not change.',
      cause: failure,
    },
  );
}

/** The file was as long when it was looked at as when it was opened for that. */
function isWhole(storage: Storage, stamp: string): boolean {
  return Number(stamp.split(' ')[0]) === storage.size;
}

/** The stamp of a file whose last change is past; undefined when it is too fresh to tell the next one from it. */
async function settledStamp(storage: Storage): Promise<string | undefined> {
  for (let i = 0; i < 4; i++) {
    if (Date.now() - Math.max(statsOf(storage).mtimeMs, statsOf(storage).ctimeMs) >= CLOCK_TICK_MS)
      return stampOf(storage);
    await delay(CLOCK_TICK_MS);
  }
  return undefined;
}

function stampOf(storage: Storage): string {
  const { size, mtimeNs, ctimeNs } =
    storage.fd === null ? statSync(storage.path, { bigint: true }) : fstatSync(storage.fd, { bigint: true });
  return `${size} ${mtimeNs} ${ctimeNs}`;
}

function statsOf(storage: Storage): { readonly mtimeMs: number; readonly ctimeMs: number } {
  return storage.fd === null ? statSync(storage.path) : fstatSync(storage.fd);
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}
