/**
 * Runs TypeScript with `node --import ./scripts/typescript.mjs`: the tests' way. Each of hundreds of test files is a process of its own, and this
 * starts in half of the time of tsx: names are whole paths here, so all there is to do is to leave out types, once for each text.
 */

import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { register } from 'node:module';
import { fileURLToPath } from 'node:url';
import { isMainThread } from 'node:worker_threads';

const folder = fileURLToPath(new URL('../node_modules/.cache/lunette-typescript/', import.meta.url));
let transform;

// This file is both: what registers the hook, and the hook, on a thread of its own.
if (isMainThread) {
  process.setSourceMapsEnabled(true);
  register(import.meta.url);
}

/** The hook: see "Customization Hooks" in Node's documentation. */
export async function load(url, context, next) {
  const [place] = url.split(/[?#]/, 1);
  if (!place.startsWith('file:') || !place.endsWith('.ts')) return next(url, context);
  return { format: 'module', source: await javascript(fileURLToPath(place)), shortCircuit: true };
}

async function javascript(path) {
  const text = readFileSync(path);
  const kept = `${folder}${createHash('sha256').update(path).update('\0').update(text).digest('hex')}.js`;
  try {
    return readFileSync(kept);
  } catch {
    // Not seen before.
  }
  transform ??= (await import('esbuild')).transform;
  const options = { loader: 'ts', format: 'esm', target: 'node20', sourcefile: path, sourcemap: 'inline' };
  const { code } = await transform(text, options);
  mkdirSync(folder, { recursive: true });
  // Others may be at the same text.
  const whole = `${kept}.${process.pid}`;
  writeFileSync(whole, code);
  renameSync(whole, kept);
  return code;
}
