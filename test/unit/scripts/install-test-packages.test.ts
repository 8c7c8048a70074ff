import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { chmod, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { PROJECT_ROOT, type RunResult, run } from '../../support/process.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

/** Runs the script as a user id on a machine whose dpkg-query prints this. apt-get says that it was called, and fails. */
async function install(
  t: Cleanup,
  { uid, packages, ci }: { uid: number; packages: string; ci: string },
): Promise<RunResult> {
  const bin = await temporaryDirectory(t);
  const programs = {
    id: `echo ${uid}`,
    'dpkg-query': `printf '%s' '${packages}'`,
    'apt-get': 'echo "apt-get $*" >&2; exit 9',
  };
  for (const [name, body] of Object.entries(programs)) {
    await writeFile(join(bin, name), `#!/bin/sh\n${body}\n`);
    await chmod(join(bin, name), 0o755);
  }
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}`, CI: ci };
  return run(join(PROJECT_ROOT, 'scripts/install-test-packages'), [], { env });
}

/** The packages that the script lists, one a line with what each is for. */
const text = readFileSync(join(PROJECT_ROOT, 'scripts/install-test-packages'), 'utf8');
const all = [...text.slice(0, text.indexOf('\n)')).matchAll(/^ {2}([a-z0-9][a-z0-9.+-]*) /gm)].map(
  (match) => match[1] as string,
);
const installed = (names: readonly string[]): string => names.map((name) => `${name} installed\n`).join('');

test('the script lists what the tests use', () => {
  for (const name of ['qemu-utils', 'libiscsi-bin', 'e2fsprogs', 'tgt']) assert.ok(all.includes(name), name);
});

test('when all packages are there nothing is called and nothing is said', async (t) => {
  const result = await install(t, { uid: 0, packages: installed(all), ci: 'true' });
  assert.deepEqual(result, { status: 0, signal: null, stdout: '', stderr: '' });
});

test('who is not root gets the one line to run, with just what is missing', async (t) => {
  const packages = `${installed(all.filter((name) => name !== 'fio' && name !== 'tgt'))}tgt config-files\n`;
  const result = await install(t, { uid: 1000, packages, ci: '' });
  assert.equal(result.status, 0);
  assert.match(result.stderr, /run: sudo apt-get install --no-install-recommends fio tgt$/m);
});

test('in CI what is missing and cannot be installed fails', async (t) => {
  assert.equal((await install(t, { uid: 1000, packages: installed(all.slice(1)), ci: 'true' })).status, 1);
});
