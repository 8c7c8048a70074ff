import { writeFile } from 'node:fs/promises';
import { openFileStorage } from '../../formats/storage/file.ts';
import type { Storage } from '../../formats/storage/storage.ts';

/** A new, empty file, open for writing. */
export async function newFile(path: string): Promise<Storage> {
  await writeFile(path, '');
  return openFileStorage(path, { readOnly: false });
}
