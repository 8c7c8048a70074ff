/** File systems made for one test: small ones to fill up, and kinds that the machine's own disk is not. Root only. */

import { mkdir, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run, runOk } from './process.ts';
import { findProgram } from './requires.ts';
import type { Cleanup } from './temporary.ts';

/** Mounts a tmpfs of `bytes` bytes and gives its folder; unmounted when the test ends. */
export async function mountMemory(t: Cleanup, bytes: number): Promise<string> {
  const { point } = await mountPoint(t);
  await runOk('mount', ['-t', 'tmpfs', '-o', `size=${bytes}`, 'tmpfs', point]);
  return point;
}

/**
 * Makes a file system in a sparse file of `bytes` bytes (`mkfs.xfs`, `mkfs.btrfs`) and mounts it.
 * @returns its folder; undefined when it cannot be made or mounted here
 */
export async function mountMade(t: Cleanup, make: string, bytes = 400 * 1024 * 1024): Promise<string | undefined> {
  if (findProgram(make) === undefined || process.getuid?.() !== 0) return undefined;
  const { folder, point } = await mountPoint(t);
  const image = join(folder, 'image');
  await writeFile(image, '');
  await truncate(image, bytes);
  if ((await run(make, ['-q', image])).status !== 0) return undefined;
  return (await run('mount', ['-o', 'loop', image, point])).status === 0 ? point : undefined;
}

// One hook for all, because hooks run in the order in which they were set up: the mount goes before its folder.
async function mountPoint(t: Cleanup): Promise<{ folder: string; point: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'lunette-test-'));
  const point = join(folder, 'mount');
  await mkdir(point);
  t.after(async () => {
    await run('umount', ['-l', point]);
    await rm(folder, { recursive: true, force: true });
  });
  return { folder, point };
}
