/** A disk to measure with: an ext4 that is half full of real files, kept between runs because making it takes a minute. */

import { existsSync } from 'node:fs';
import { copyFile, lstat, mkdir, readdir, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { runOk } from './process.ts';

/** Where the files come from, in this order. */
const SOURCES = ['/usr/bin', '/usr/share', '/usr/lib'];
/** Larger ones would be a disk of one kind of content. */
const LARGEST_FILE = 32 * 1024 * 1024;

/** The folder in which images for measuring are kept. */
export const BENCH_FOLDER = join(tmpdir(), 'lunette-bench');

/** Makes an image in the folder unless it is there: `make` writes it under another name first. @returns its path */
export async function keptImage(folder: string, name: string, make: (path: string) => Promise<void>): Promise<string> {
  const path = join(folder, name);
  if (existsSync(path)) return path;
  await mkdir(folder, { recursive: true });
  const unfinished = `${path}.unfinished`;
  await rm(unfinished, { force: true });
  await make(unfinished);
  await rename(unfinished, path);
  return path;
}

/** A raw image of `size` bytes: an ext4 with this machine's programs, half full. @returns its path in the folder */
export async function halfFullDisk(folder: string, size: number): Promise<string> {
  return keptImage(folder, `half-full-${size}.raw`, async (path) => {
    const root = `${path}.root`;
    try {
      await mkdir(root);
      await copyFiles(root, size / 2);
      await runOk('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', root, path, `${size / 1024}k`], { timeoutMs: 300_000 });
    } finally {
      await rm(root, { recursive: true, force: true });
    }
  });
}

/** Copies regular files into a folder until so many bytes are there. */
async function copyFiles(to: string, bytes: number): Promise<void> {
  let left = bytes;
  for (const source of SOURCES) {
    for (const name of (await readdir(source, { recursive: true })).sort()) {
      const from = join(source, name);
      const found = await lstat(from);
      if (!found.isFile() || found.size > Math.min(left, LARGEST_FILE)) continue;
      const path = join(to, from);
      await mkdir(dirname(path), { recursive: true });
      await copyFile(from, path);
      left -= found.size;
      if (left < bytes / 1000) return;
    }
  }
  throw new Error(`${SOURCES.join(', ')} have too few files for ${bytes} bytes`);
}
