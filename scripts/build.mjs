/** Compiles formats/ and src/ into dist/, which is emptied first: a file that was renamed must not live on in a package. */

import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, rmSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');

rmSync(`${root}dist`, { recursive: true, force: true });
const done = spawnSync(process.execPath, [tsc, '-p', root], { stdio: 'inherit' });
if (done.status !== 0) process.exit(done.status ?? 1);

// npm links the programs of dependencies, not the package's own: without this link `npx lunette` in the checkout would install
// the package into a cache of npx first.
chmodSync(`${root}dist/src/cli/main.js`, 0o755);
if (existsSync(`${root}node_modules`)) {
  mkdirSync(`${root}node_modules/.bin`, { recursive: true });
  rmSync(`${root}node_modules/.bin/lunette`, { force: true });
  symlinkSync('../../dist/src/cli/main.js', `${root}node_modules/.bin/lunette`);
}
