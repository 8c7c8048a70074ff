/**
 * The package as users get it: packed, installed into an empty folder, run. Overrides and the lock file do not apply
 * there, so this is where an installation that only works in a checkout shows (docs/decisions.md, "dbus-next is bundled").
 */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { copyCheckout } from '../../support/checkout.ts';
import { npmEnvironment } from '../../support/npm.ts';
import { PROJECT_ROOT, run, runOk } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requirePrograms, requires, type Skip } from '../../support/requires.ts';
import { temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

const MINUTES = 60_000;

/** Building takes a compiler; where there is none the codecs and the addon are left out, which is another test's subject. */
const skip: Skip =
  requires.qemuIo() || requirePrograms(['npm', 'make', 'g++', 'python3'], 'npm, make, g++ and python3');

interface Installed {
  readonly lunette: string;
  /** The installed package. */
  readonly root: string;
  readonly log: string;
}

let directory: string;
let tarball: string;
const cleanups: (() => unknown)[] = [];
const suite = { after: (cleanup: () => unknown) => void cleanups.push(cleanup) };

before(async () => {
  if (skip !== false) return;
  directory = await temporaryDirectory(suite);
  const copy = await copyCheckout(directory);
  const printed = await runOk('npm', ['pack', '--json', '--pack-destination', directory], {
    cwd: copy,
    env: npmEnvironment(),
    timeoutMs: 3 * MINUTES,
  });
  await rm(copy, { recursive: true });
  // What the package's own scripts print comes before the JSON.
  const [packed] = JSON.parse(printed.slice(printed.search(/^\[/m))) as { filename: string }[];
  tarball = join(directory, packed?.filename as string);
});

after(async () => {
  for (const cleanup of cleanups) await cleanup();
});

/** `npm install -g` into an empty prefix. */
async function installGlobally(name: string, more: NodeJS.ProcessEnv = {}): Promise<Installed> {
  const prefix = join(directory, name);
  await mkdir(prefix);
  const result = await run('npm', ['install', '--global', '--prefix', prefix, '--foreground-scripts', tarball], {
    cwd: directory,
    env: npmEnvironment(more),
    timeoutMs: 5 * MINUTES,
  });
  const log = result.stdout + result.stderr;
  assert.equal(result.status, 0, log);
  return { lunette: join(prefix, 'bin/lunette'), root: join(prefix, 'lib/node_modules/lunette'), log };
}

/** What was compiled at installation is taken, and nothing depends on it. */
async function runsFromItsCodeCacheAndWithout(lunette: string, program: string): Promise<void> {
  const version = await runOk(lunette, ['--version']);
  const taken = `
    const { readFileSync } = require('node:fs');
    const cachedData = readFileSync('lunette.cache');
    const script = new (require('node:vm').Script)(readFileSync('lunette.cjs', 'latin1'), { cachedData });
    console.log(script.cachedDataRejected);`;
  assert.equal((await runOk(process.execPath, ['-e', taken], { cwd: program })).trim(), 'false');
  await writeFile(join(program, 'lunette.cache'), 'of another version');
  assert.equal(await runOk(lunette, ['--version']), version);
  await rm(join(program, 'lunette.cache'));
  assert.equal(await runOk(lunette, ['--version']), version);
}

test('the tarball holds what runs and builds, and nothing of the workshop', { skip }, async () => {
  const names = (await runOk('tar', ['-tzf', tarball])).trim().split('\n');
  for (const name of [
    'package/dist/src/cli/main.js',
    'package/dist/program/lunette.cjs',
    'package/scripts/code-cache.mjs',
    'package/dist/formats/index.js',
    'package/dist/formats/index.d.ts',
    'package/dist/src/server.js',
    'package/native/binding.gyp',
    'package/scripts/build-addon.mjs',
    'package/fixtures/sample.qcow2',
    'package/node_modules/dbus-next/package.json',
    'package/README.md',
    'package/LICENSE',
  ]) {
    assert.ok(names.includes(name), `${name} is not in the tarball`);
  }
  const strangers = names.filter((name) =>
    /^package\/(src|formats|test|native\/build|node_modules\/(usocket|node-gyp|nan|typescript))\//.test(name),
  );
  assert.deepEqual(strangers, []);
});

test('installed globally, the command runs with its addon and reads zstd clusters', { skip }, async (t) => {
  const { lunette, root } = await installGlobally('global');
  const { version } = JSON.parse(await runOk('cat', [join(PROJECT_ROOT, 'package.json')])) as { version: string };
  assert.equal((await runOk(lunette, ['--version'])).trim(), version);
  assert.match(await runOk(lunette, ['doctor']), /addon/i);
  assert.ok(existsSync(join(root, 'native/build/Release/lunette.node')), 'the addon was not built');
  assert.ok(!existsSync(join(root, 'node_modules/usocket')), 'usocket came along');
  await runsFromItsCodeCacheAndWithout(lunette, join(root, 'dist/program'));

  const plain = await temporaryFile(t, 'plain.raw', 'lunette '.repeat(64 * 1024));
  const path = join(directory, 'zstd.qcow2');
  await qemu.convert(plain, path, '-f', 'raw', '-O', 'qcow2', '-c', '-o', 'compression_type=zstd');
  const info = JSON.parse(await runOk(lunette, ['info', '--json', path])) as Record<string, unknown>;
  assert.equal(info.format, 'qcow2');
  assert.equal(info['virtual-size'], 8 * 64 * 1024);

  // Text that is not ASCII comes out as it was written, also where the bundler leaves it as it is: in tagged templates.
  const report = join(directory, 'report.html');
  await runOk(lunette, ['snapshot', 'report', path, '-o', report]);
  assert.match(await readFile(report, 'utf8'), /Where the file’s space goes/);

  // Reading the clusters, not only the header, is what needs the codec.
  const script = `
    import { ImageHost, IoVec } from 'lunette/formats';
    const image = await new ImageHost().open(${JSON.stringify(path)}, { readOnly: true });
    const bytes = new Uint8Array(image.size);
    await image.readv(0, IoVec.of(bytes));
    await image.close();
    process.stdout.write(String(Buffer.from(bytes).equals(Buffer.from('lunette '.repeat(65536)))));
  `;
  await writeFile(join(root, 'read-zstd.mjs'), script);
  assert.equal(await runOk(process.execPath, [join(root, 'read-zstd.mjs')]), 'true');
});

test('as a dependency of another package both entry points load', { skip }, async () => {
  const app = join(directory, 'app');
  await mkdir(app);
  await writeFile(join(app, 'package.json'), JSON.stringify({ name: 'app', version: '1.0.0', private: true }));
  await runOk('npm', ['install', tarball], { cwd: app, env: npmEnvironment(), timeoutMs: 5 * MINUTES });
  await writeFile(
    join(app, 'load.mjs'),
    `const formats = await import('lunette/formats');
     const server = await import('lunette/server');
     console.log(typeof formats.ImageHost, Object.keys(server).length > 0);`,
  );
  assert.equal((await runOk(process.execPath, ['load.mjs'], { cwd: app })).trim(), 'function true');
  assert.match(await runOk('npm', ['exec', '--', 'lunette', '--version'], { cwd: app, env: npmEnvironment() }), /^\d/);
});

test('without a compiler the package installs with a warning and works without the addon', { skip }, async () => {
  const { lunette, root, log } = await installGlobally('no-compiler', { CC: 'false', CXX: 'false' });
  assert.match(log, /the native addon was not built/);
  assert.ok(!existsSync(join(root, 'native/build/Release/lunette.node')));
  const sample = join(root, 'fixtures/sample.qcow2');
  const info = JSON.parse(await runOk(lunette, ['info', '--json', sample])) as Record<string, unknown>;
  assert.equal(info.format, 'qcow2');
  assert.match(await runOk(lunette, ['doctor']), /addon/i);
});
