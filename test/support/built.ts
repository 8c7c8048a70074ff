/** What `npm run build` makes of the sources as they are: the program and the library that tests run as users do. */

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { isFresh } from '../../scripts/freshness.mjs';
import { PROJECT_ROOT } from './process.ts';
import { findProgram } from './requires.ts';

const BUILD = [process.execPath, join(PROJECT_ROOT, 'scripts/build.mjs'), '--if-stale'];
let made = false;

/**
 * Sees to it that dist/ is made from the sources as they are. A whole run builds before its first group: then this looks, no more.
 * @throws with the compiler's output when the sources do not compile
 */
export function ensureBuilt(): void {
  made ||= isFresh();
  if (made) return;
  // Files that run at the same time: one builds, the others wait for it.
  const lock =
    findProgram('flock') === undefined ? [] : ['flock', join(PROJECT_ROOT, 'node_modules/.lunette-build.lock')];
  const [program, ...args] = [...lock, ...BUILD] as [string, ...string[]];
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`the build failed: ${error ?? ''}\n${stdout}${stderr}`);
  made = true;
}

/** A file of dist/, of the sources as they are: `built('src/cli/main.js')`. */
export function built(file: string): string {
  ensureBuilt();
  return join(PROJECT_ROOT, 'dist', file);
}

/** Arguments that make `node` run the program: `run(process.execPath, lunetteArgs('info', path))`. */
export function lunetteArgs(...args: string[]): string[] {
  return [built('src/cli/main.js'), ...args];
}
