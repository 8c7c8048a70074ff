/** Test programs in C++ of test/support/native, built with the compiler's sanitizers and run. */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { PROJECT_ROOT, run } from './process.ts';
import { requirePrograms, type Skip } from './requires.ts';

export type Sanitizer = 'address,undefined' | 'thread' | 'none';

const NATIVE = join(PROJECT_ROOT, 'native');
const PROGRAMS = join(PROJECT_ROOT, 'test/support/native');

export function requiresCompiler(): Skip {
  if (process.platform !== 'linux') return 'needs Linux';
  return requirePrograms(['g++'], 'g++');
}

/**
 * Builds a program unless it is built already from the same sources.
 *
 * @param name of the file in test/support/native, without .cc
 * @param sources of native/ that it is linked with
 * @returns its path
 */
export async function buildProgram(name: string, sources: readonly string[], sanitizer: Sanitizer): Promise<string> {
  const flags = [
    '-std=c++17',
    '-g',
    '-Wall',
    '-Wextra',
    '-Werror',
    ...(sanitizer === 'none' ? ['-O2'] : ['-O1', `-fsanitize=${sanitizer}`, '-fno-sanitize-recover=all']),
  ];
  const hash = createHash('sha256').update(flags.join(' '));
  const headers = [NATIVE, PROGRAMS].flatMap((folder) =>
    readdirSync(folder)
      .filter((file) => file.endsWith('.h'))
      .map((file) => join(folder, file)),
  );
  const inputs = [join(PROGRAMS, `${name}.cc`), ...sources.map((source) => join(NATIVE, source))];
  for (const file of [...inputs, ...headers]) hash.update(readFileSync(file));
  const folder = join(NATIVE, 'build', 'test');
  const program = join(folder, `${name}-${hash.digest('hex').slice(0, 16)}`);
  if (existsSync(program)) return program;
  mkdirSync(folder, { recursive: true });
  // Under another name until it is whole: two test files may build at a time.
  const building = `${program}.${process.pid}`;
  const { status, stderr } = await run('g++', [...flags, '-o', building, ...inputs, '-lpthread']);
  assert.equal(status, 0, `g++: ${stderr}`);
  renameSync(building, program);
  return program;
}

/** Runs one rule of a test program. What a sanitizer finds fails it. */
export async function runRule(program: string, rule: string, seed: number): Promise<void> {
  const { status, stderr } = await run(program, [rule, String(seed)], {
    // The device's own handler of SIGBUS is part of what is tested.
    env: { ...process.env, ASAN_OPTIONS: 'handle_sigbus=0', TSAN_OPTIONS: 'halt_on_error=1' },
  });
  assert.equal(status, 0, `${rule}, seed ${seed}: ${stderr.slice(0, 4000)}`);
}
