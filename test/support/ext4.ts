/** Guest file systems made without a guest: mke2fs writes one into a file, debugfs puts files in and reads them. */

import { mkdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { run, runOk } from './process.ts';
import type { Random } from './random.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

/** Files by their path in the file system, without a leading slash. */
export type Files = ReadonlyMap<string, Uint8Array>;

/** Files and directories as a system has them: many small ones, some large, compressible and not. */
export function randomFiles(random: Random, count: number, largest: number): Files {
  const files = new Map<string, Uint8Array>();
  for (let at = 0; at < count; at++) {
    const size = Math.floor(largest ** random.fraction());
    const bytes = new Uint8Array(size);
    random.fill(random.chance(0.5) ? bytes : bytes.subarray(0, size >>> 2));
    files.set(`dir${random.below(8)}/sub${random.below(4)}/file${at}`, bytes);
  }
  return files;
}

/** Makes a raw image of `size` bytes that is an ext4 file system with these files. */
export async function makeExt4(t: Cleanup, size: number, files: Files): Promise<string> {
  const folder = await temporaryDirectory(t);
  const root = join(folder, 'root');
  await mkdir(root);
  for (const [name, bytes] of files) {
    const path = join(root, name);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, bytes);
  }
  const image = join(folder, 'ext4.raw');
  await writeFile(image, '');
  await truncate(image, size);
  await runOk('mke2fs', ['-q', '-F', '-t', 'ext4', '-E', 'root_owner=0:0', '-d', root, image]);
  return image;
}

/** Adds files with debugfs, which writes the way a guest's file system driver lays things out. */
export async function addFiles(t: Cleanup, image: string, files: Files): Promise<void> {
  const folder = await temporaryDirectory(t);
  const commands: string[] = [];
  let at = 0;
  for (const [name, bytes] of files) {
    const source = join(folder, String(at++));
    await writeFile(source, bytes);
    const parts = name.split('/');
    for (let depth = 1; depth < parts.length; depth++) commands.push(`mkdir /${parts.slice(0, depth).join('/')}`);
    commands.push(`write ${source} /${name}`);
  }
  await runOk('debugfs', ['-w', '-f', '-', image], { input: `${commands.join('\n')}\n` });
}

/** Fails unless e2fsck finds nothing at all to repair. */
export async function assertFilesystemClean(image: string): Promise<void> {
  const { status, stdout, stderr } = await run('e2fsck', ['-f', '-n', image]);
  if (status !== 0) throw new Error(`e2fsck -fn ${image}: status ${status}\n${stdout}${stderr}`);
}

/** The names of the files whose content in the file system is not this one. */
export async function differingFiles(t: Cleanup, image: string, files: Files): Promise<string[]> {
  const folder = await temporaryDirectory(t);
  const commands = [...files.keys()].map((name, at) => `dump /${name} ${join(folder, String(at))}`);
  await runOk('debugfs', ['-f', '-', image], { input: `${commands.join('\n')}\n` });
  const differing: string[] = [];
  let at = 0;
  for (const [name, bytes] of files) {
    const found = await readFile(join(folder, String(at++))).catch(() => undefined);
    if (found === undefined || Buffer.compare(found, bytes) !== 0) differing.push(name);
  }
  return differing;
}
