#!/usr/bin/env node
/**
 * What `lunette` starts, as dist/src/cli/main.js: the program in one file (scripts/build.mjs), with the code that V8 made of it beforehand
 * (scripts/code-cache.mjs). Code of another version of Node is not taken: then it is compiled now, which costs a tenth of a second at most.
 */

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { Script, type ScriptOptions } from 'node:vm';

const filename = fileURLToPath(new URL('../../program/lunette.cjs', import.meta.url));
const options: ScriptOptions = { filename };
try {
  options.cachedData = readFileSync(filename.replace(/cjs$/, 'cache'));
} catch {
  // It works as well without.
}
// All of it is ASCII, which latin1 need not look for.
const program = new Script(readFileSync(filename, 'latin1'), options);
program.runInThisContext()(createRequire(filename), { exports: {} });
