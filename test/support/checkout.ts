/** A copy of this checkout for what compiles it or takes packages away: others run what is here meanwhile. */

import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { PROJECT_ROOT, runOk } from './process.ts';

const LEFT_OUT = /^(\.git|dist.*)$/;

/** Makes DIRECTORY/checkout, with packages and addon, without what was compiled of the TypeScript. @returns its path */
export async function copyCheckout(directory: string): Promise<string> {
  const copy = join(directory, 'checkout');
  await mkdir(copy);
  const entries = (await readdir(PROJECT_ROOT)).filter((name) => !LEFT_OUT.test(name));
  await runOk('cp', ['-a', '--reflink=auto', ...entries, copy], { cwd: PROJECT_ROOT });
  return copy;
}
