/**
 * Builds native/ into native/build/Release/lunette.node. Runs as the package's install script, so it is plain
 * JavaScript and needs nothing that `npm install` of the finished package does not bring.
 *
 * In a checkout a failure is a failure. In an installed package it is a warning: everything works without the addon,
 * slower, and `lunette doctor` says so.
 */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);
const root = fileURLToPath(new URL('..', import.meta.url));
// The published package has no tsconfig.json: what has one is a checkout.
const checkout = existsSync(join(root, 'tsconfig.json'));

/** node-gyp's program: ours in a checkout, else the one that npm brings and names to install scripts. */
function findNodeGyp() {
  const beside = join(
    dirname(realpathSync(process.execPath)),
    '../lib/node_modules/npm/node_modules/node-gyp/bin/node-gyp.js',
  );
  const candidates = [process.env.npm_config_node_gyp, beside];
  try {
    candidates.unshift(require.resolve('node-gyp/bin/node-gyp.js'));
  } catch {
    // Not a checkout.
  }
  return candidates.find((path) => path !== undefined && path !== '' && existsSync(path));
}

/**
 * The prefix under which headers of just this Node are installed (PREFIX/include/node/node.h), as Debian's and
 * NodeSource's packages and the tarballs of nodejs.org have them. With it node-gyp downloads nothing.
 */
function findHeaders() {
  const prefix = join(dirname(realpathSync(process.execPath)), '..');
  try {
    const text = readFileSync(join(prefix, 'include/node/node_version.h'), 'utf8');
    const part = (name) => text.match(new RegExp(`#define NODE_${name}_VERSION (\\d+)`))?.[1];
    const version = `v${part('MAJOR')}.${part('MINOR')}.${part('PATCH')}`;
    if (version === process.version && existsSync(join(prefix, 'include/node/node.h'))) return prefix;
  } catch {
    // No headers there: node-gyp downloads them.
  }
  return undefined;
}

function build() {
  const nodeGyp = findNodeGyp();
  if (nodeGyp === undefined) return 'node-gyp was not found; npm has one: run this through npm';
  const args = [nodeGyp, 'configure', 'build', '--directory', join(root, 'native'), '--jobs=max'];
  const headers = findHeaders();
  if (process.env.npm_config_nodedir === undefined && headers !== undefined) args.push(`--nodedir=${headers}`);
  const done = spawnSync(process.execPath, [...args, '--loglevel=warn'], { cwd: root, stdio: ['ignore', 2, 2] });
  if (done.error !== undefined) return String(done.error);
  if (done.status !== 0) return `node-gyp ended with ${done.signal ?? `status ${done.status}`}`;
  try {
    require(join(root, 'native/build/Release/lunette.node'));
  } catch (error) {
    return `the addon was built but does not load: ${error.message}`;
  }
  return undefined;
}

/**
 * In a checkout the optional codecs must be there too: npm leaves out in silence what did not build. Asked in a process of
 * its own, because one that has not found a package once may not find it later.
 */
function missingCodecs() {
  return ['lz4-napi', 'zstd-napi'].filter(
    (name) => spawnSync(process.execPath, ['-e', `require('${name}')`], { cwd: root, stdio: 'ignore' }).status !== 0,
  );
}

/**
 * npm leaves out an optional package that did not build. Where that may be for want of Node's headers, which npm's other
 * packages do not look for beside Node: once more, told where they are.
 */
function installWithHeaders() {
  const headers = findHeaders();
  const npm = process.env.npm_execpath;
  if (!checkout || headers === undefined || npm === undefined || process.env.npm_config_nodedir !== undefined) return;
  console.error(
    `lunette: installing ${missingCodecs().join(' and ')} again, with the headers in ${headers}/include/node`,
  );
  const env = { ...process.env, npm_config_nodedir: headers, LUNETTE_INSTALLING: '1' };
  spawnSync(process.execPath, [npm, 'install', '--no-save', '--no-audit', '--no-fund'], {
    cwd: root,
    env,
    stdio: ['ignore', 2, 2],
  });
}

// See build.mjs: npx runs the scripts of the checkout that it is called in.
if (process.env.npm_command === 'exec' && checkout) process.exit(0);

// The inner installation of installWithHeaders() runs this script too.
if (process.env.LUNETTE_INSTALLING === '1') process.exit(0);

const needs = 'Building needs make, python3 and a C++17 compiler (Debian: apt-get install make python3 g++).';
const failure = build();
if (failure !== undefined) {
  console.error(`\nlunette: the native addon was not built: ${failure}\n${needs}`);
  if (checkout) process.exitCode = 1;
  else console.error('Lunette works without it, slower: `lunette doctor` says what is in use.\n');
}
if (failure === undefined && missingCodecs().length > 0) installWithHeaders();
const codecs = missingCodecs();
if (codecs.length > 0) {
  console.error(
    `\nlunette: ${codecs.join(' and ')} did not install, so images that need it are refused. ${needs}\n` +
      "Where nodejs.org is out of reach, Node's headers must be installed: npm_config_nodedir=PREFIX npm ci\n" +
      '(with PREFIX/include/node/node.h).',
  );
  if (checkout) process.exitCode = 1;
}

// What V8 compiled where the package was packed is of no use to another version of Node.
if (!checkout) spawnSync(process.execPath, [join(root, 'scripts/code-cache.mjs')], { stdio: 'ignore' });
