#!/usr/bin/env node
/**
 * What `lunette` starts, as dist/src/cli/main.js: the program in one file (scripts/build.mjs), with the code that V8 made of it beforehand
 * (scripts/code-cache.mjs). Code of another version of Node is not taken: then it is compiled now, which costs a tenth of a second at most.
 */

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
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
// Commands that leave the bytes to native code are over before optimized code has paid for itself, and V8's compiling threads take the cores
// from the copying. What is really hot is optimized all the same, some milliseconds later. Behind the Script: other flags, no cached code.
const brief = ['convert', 'compare', 'checksum'].some((command) => process.argv.includes(command, 2));
if (brief && /^v(20|22|24)\./.test(process.version)) setFlagsFromString('--interrupt-budget=2000000');
program.runInThisContext()(createRequire(filename), { exports: {} });
