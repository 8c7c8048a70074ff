import { open } from 'node:fs/promises';
import path from 'node:path';

/** Longest name of a file on Linux' file systems. */
const MAX_NAME = 255;

/** A hidden name beside a file: the same for every attempt, so that what a killed one leaves does not pile up. */
export function temporaryName(file: string, suffix = '.lunette-new'): string {
  const base = Buffer.from(path.basename(file));
  const room = MAX_NAME - 1 - suffix.length;
  return path.join(path.dirname(file), `.${base.subarray(0, room).toString()}${suffix}`);
}

/** Where a file is while others get their names. */
export function asideName(file: string): string {
  return temporaryName(file, '.lunette-old');
}

/** Makes a file, or the names in a folder, durable. */
export async function syncFile(file: string): Promise<void> {
  const handle = await open(file, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
