/** Compiles formats/ and src/ into dist/, which is emptied first: a file that was renamed must not live on in a package. */

import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');

rmSync(`${root}dist`, { recursive: true, force: true });
const done = spawnSync(process.execPath, [tsc, '-p', root], { stdio: 'inherit' });
if (done.status !== 0) process.exit(done.status ?? 1);
const program = `${root}dist/src/cli/main.js`;
if (existsSync(program)) chmodSync(program, 0o755);
