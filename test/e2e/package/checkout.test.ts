/** The addon's build in a checkout: it fails loudly, and needs no download where Node's headers are installed. */

import assert from 'node:assert/strict';
import { existsSync, realpathSync } from 'node:fs';
import { copyFile, mkdir, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { PROJECT_ROOT, type RunResult, run } from '../../support/process.ts';
import { requirePrograms, requires } from '../../support/requires.ts';
import { projectFiles } from '../../support/source.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const skip = requirePrograms(['make', 'g++', 'python3'], 'make, g++ and python3');
const prefix = join(dirname(realpathSync(process.execPath)), '..');

/** Builds the addon in a copy of the checkout, and gives what came of it with the copy's root. */
async function buildAddon(t: Cleanup, env: NodeJS.ProcessEnv): Promise<RunResult & { root: string }> {
  const root = await temporaryDirectory(t);
  const needed = /^(package\.json|tsconfig\.json|native\/.*|scripts\/build-addon\.mjs)$/;
  for (const path of projectFiles().filter((name) => needed.test(name))) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await copyFile(join(PROJECT_ROOT, path), join(root, path));
  }
  await symlink(join(PROJECT_ROOT, 'node_modules'), join(root, 'node_modules'));
  const own = Object.entries(process.env).filter(([name]) => !name.startsWith('npm_'));
  const result = await run(process.execPath, [join(root, 'scripts/build-addon.mjs')], {
    env: { ...Object.fromEntries(own), ...env },
    timeoutMs: 180_000,
  });
  return { ...result, root };
}

test('in a checkout an addon that does not build fails the installation and says what is needed', {
  skip,
}, async (t) => {
  const result = await buildAddon(t, { CC: 'false', CXX: 'false' });
  assert.equal(result.status, 1);
  assert.match(result.stderr, /the native addon was not built/);
  assert.match(result.stderr, /make, python3 and a C\+\+17 compiler/);
});

test('headers installed beside Node are used: nothing is downloaded', {
  skip: skip || requires.that(existsSync(join(prefix, 'include/node/node.h')), 'no headers beside node'),
}, async (t) => {
  const home = await temporaryDirectory(t); // No cache of headers and no settings either.
  const result = await buildAddon(t, { HOME: home, npm_config_disturl: 'http://127.0.0.1:1/' });
  assert.equal(result.status, 0, result.stderr);
  assert.ok(existsSync(join(result.root, 'native/build/Release/lunette.node')));
});
