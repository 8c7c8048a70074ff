/**
 * Compiles the program ahead of time for this version of Node: dist/program/lunette.cache, from which it starts a quarter sooner. What V8 has
 * compiled by then is in it, so commands are run that go through what most of them need. Runs when the program is built and when a package is installed.
 * An argument is a folder that becomes dist afterwards.
 */

import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Script } from 'node:vm';

const root = fileURLToPath(new URL('..', import.meta.url));
const program = `${process.argv[2] ?? `${root}dist`}/program/lunette.cjs`;
// What V8 compiled keeps the name: traces have it.
const filename = `${root}dist/program/lunette.cjs`;
const sample = `${root}fixtures/sample.qcow2`;
const script = new Script(readFileSync(program, 'latin1'), { filename });
const run = script.runInThisContext();

// What they print is for nobody.
process.stdout.write = (_text, ...more) => {
  more.at(-1)?.();
  return true;
};
const folder = mkdtempSync(join(tmpdir(), 'lunette-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const [raw, copy] = [join(folder, 'raw'), join(folder, 'qcow2')];
for (const args of [
  ['info', sample],
  ['convert', '-O', 'raw', sample, raw],
  ['convert', '-O', 'qcow2', raw, copy],
  ['compare', sample, copy],
  ['--version'],
]) {
  process.argv.splice(2, process.argv.length, ...args);
  const module = { exports: {} };
  run(createRequire(program), module, pathToFileURL(program.replace(/cjs$/, 'js')).href);
  await module.exports.ended;
  if (process.exitCode !== 0) throw new Error(`lunette ${args.join(' ')} ended with ${process.exitCode}`);
}
// Whole or not at all: a server may be starting, and V8 believes what it is given: damaged code, as after a power cut, ends the process.
const file = program.replace(/cjs$/, 'cache');
writeFileSync(`${file}.new`, script.createCachedData(), { flush: true });
renameSync(`${file}.new`, file);
process.exit(0);
