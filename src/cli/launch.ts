#!/usr/bin/env node
/**
 * What `lunette` starts, as dist/src/cli/main.js: the program in one file (scripts/build.mjs), with the code that V8 made of it beforehand
 * (scripts/code-cache.mjs). Code of another version of Node is not taken: then it is compiled now, which costs a tenth of a second at most.
 */

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { Script, type ScriptOptions } from 'node:vm';

const place = new URL('../../program/lunette.js', import.meta.url);
const filename = fileURLToPath(place).replace(/js$/, 'cjs');

/** Reads a file into memory that is there already where that is large enough: the first touch of a page costs more than filling it. */
function read(path: string, memory?: Buffer): Buffer {
  const file = openSync(path, 'r');
  try {
    const { size } = fstatSync(file);
    const bytes =
      memory !== undefined && memory.length >= size ? memory.subarray(0, size) : Buffer.allocUnsafeSlow(size);
    return bytes.subarray(0, readSync(file, bytes));
  } finally {
    closeSync(file);
  }
}

const bytes = read(filename);
// All of it is ASCII, which latin1 need not look for.
const text = bytes.toString('latin1');
const options: ScriptOptions = { filename };
try {
  options.cachedData = read(filename.replace(/cjs$/, 'cache'), bytes);
} catch {
  // It works as well without.
}
const program = new Script(text, options);
const require = createRequire(filename);
// Commands that leave the bytes to native code are over before optimized code has paid for itself, and V8's threads, for compiling and for its
// small heap, take the cores from the copying. What is really hot is optimized all the same, some milliseconds later. Behind the Script: other
// flags, no cached code. No other command needs the module, which loads much of Node with it.
const brief = ['convert', 'compare', 'checksum'].some((command) => process.argv.includes(command, 2));
// What each version has (V8 complains on stderr of a flag that it does not know): tried with 20.20, 22.23 and 24.21.
const FLAGS: Readonly<Record<string, readonly string[]>> = {
  v20: ['--interrupt-budget=2000000', '--no-parallel-scavenge'],
  v22: ['--no-parallel-scavenge'],
  v24: ['--no-parallel-scavenge'],
};
const flags = brief ? FLAGS[process.version.replace(/\..*/, '')] : undefined;
if (flags !== undefined) {
  const { setFlagsFromString } = require('node:v8') as typeof import('node:v8');
  for (const flag of flags) setFlagsFromString(flag);
}
program.runInThisContext()(require, { exports: {} }, place.href);
