/** Whether dist/ is what the sources make. build.mjs leaves a digest of them in it; tests run what is built, and build anew when they differ. */

import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const MARK = '.sources';
const BESIDE = [
  'package.json',
  'package-lock.json',
  'tsconfig.json',
  'scripts/build.mjs',
  'scripts/whole-packages.mjs',
  'scripts/code-cache.mjs',
];

/** A digest of all that dist/ is made from. */
export function digestOfSources() {
  const hash = createHash('sha256').update(process.version);
  const below = (folder) =>
    readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
      .sort();
  const files = [...below('formats'), ...below('src'), ...BESIDE.map((name) => join(root, name))];
  for (const file of files) hash.update(`\0${file.slice(root.length)}\0`).update(readFileSync(file));
  return hash.digest('hex');
}

/** True when dist/ was built, to its end, from the sources as they are. */
export function isFresh() {
  try {
    return readFileSync(join(root, 'dist', MARK), 'utf8') === digestOfSources();
  } catch {
    return false; // Not built, or not to its end.
  }
}

/** @param digest of the sources before they were compiled @param folder what was made of them */
export function markFresh(digest, folder) {
  writeFileSync(join(folder, MARK), digest);
}
