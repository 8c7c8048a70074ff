import { fstatSync, statSync } from 'node:fs';
import { ImageError } from '../../formats/core/errors.ts';
import { findHolder, locksOnFile } from '../../formats/storage/lock-holders.ts';
import type { Storage } from '../../formats/storage/storage.ts';

/** How often a file that changes is looked at again. */
const ATTEMPTS = 5;
/** Kernels stamp changes by a clock that ticks every 1 to 10 ms: a change right after another may leave no trace. */
const CLOCK_TICK_MS = 25;
/** QEMU's lock byte of those who write. */
const WRITES = 101;

/** Who writes to an image, as far as its locks show: `qemu-nbd (pid 1234)`; undefined when nobody does. */
export async function writerOf(storage: Storage): Promise<string | undefined> {
  if (storage.fd === null) return undefined;
  const { dev: device, ino: inode } = fstatSync(storage.fd, { bigint: true });
  const identity = { device, inode };
  const locks = (await locksOnFile(identity)) ?? [];
  const lock = locks.find(({ first, last }) => first <= WRITES && WRITES <= last);
  if (lock === undefined) return undefined;
  const { fd, path, size, id, readOnly } = storage;
  const file = { fd, path, size, id, readOnly, isDevice: false, identity };
  const holder = await findHolder(file, WRITES, lock.pid > 0 ? lock.pid : undefined);
  return holder === undefined ? 'another program' : `${holder.name} (pid ${holder.pid})`;
}

/**
 * Looks at a file that others may write to, and answers only with what was there at one moment: when the file changed meanwhile the look
 * is repeated, and given up after a few times. What the writer still has in its memory is not in the file, and not in the answer.
 *
 * @param look reads from the file only
 * @throws {ImageError} LOCKED when it changes all the time
 */
export async function lookWhileStill<T>(storage: Storage, look: () => Promise<T>): Promise<T> {
  // Devices have no time of their last change: nothing tells that one stood still while somebody writes to it.
  if (storage.fd !== null && !fstatSync(storage.fd).isFile() && (await writerOf(storage)) === undefined) return look();
  let failure: unknown;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    // The file may have grown since it was opened: a lock reads its size again.
    await storage.lock('shared');
    const before = await settledStamp(storage);
    if (before !== undefined) {
      let result: { value: T } | undefined;
      try {
        result = { value: await look() };
      } catch (error) {
        failure = error;
      }
      // A file that stood still is as it was read, right or wrong.
      if (stampOf(storage) === before && Number(before.split(' ')[0]) === storage.size) {
        if (result !== undefined) return result.value;
        throw failure;
      }
    }
    await delay(CLOCK_TICK_MS * 2 ** attempt);
  }
  const writer = await writerOf(storage).catch(() => undefined);
  throw new ImageError(
    'LOCKED',
    `${writer ?? 'another program'} writes to it all the time: what was read may not fit together`,
    {
      path: storage.path,
      help: 'Pause the machine for a moment, or compare snapshots, which do not change.',
      cause: failure,
    },
  );
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
