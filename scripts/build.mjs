/**
 * Compiles formats/ and src/ into dist/ and bundles the program. dist/ is made anew, so that a file that was renamed does not live on in a package,
 * and replaced when all is done: what runs from it meanwhile finds one of the two whole.
 * With --if-stale only when the sources are others than those that dist/ was built from.
 */

import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { digestOfSources, isFresh, markFresh } from './freshness.mjs';
import { besideProgram, buildWhole, writeLicenses } from './whole-packages.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = `${root}dist`;
const made = `${root}dist.new`;
const program = `${made}/src/cli/main.js`;
const { dependencies, optionalDependencies } = JSON.parse(readFileSync(`${root}package.json`, 'utf8'));
const packages = Object.keys({ ...dependencies, ...optionalDependencies });

// `npx lunette` in a checkout links the package into a cache of npx and runs its scripts, once. That is no reason to build
// anew under a running server; and a failure here would leave that cache broken for good.
if (process.env.npm_command === 'exec') {
  if (!existsSync(`${dist}/src/cli/main.js`)) console.error('lunette: not built yet: run npm ci first');
  process.exit(0);
}

// The inner installation of build-addon.mjs leaves this to the outer one.
if (process.env.LUNETTE_INSTALLING === '1') process.exit(0);

if (process.argv.includes('--if-stale') && isFresh()) process.exit(0);
const digest = digestOfSources();

const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');
rmSync(made, { recursive: true, force: true });
const done = spawnSync(process.execPath, [tsc, '-p', root, '--outDir', made], { stdio: 'inherit' });
if (done.status !== 0) process.exit(done.status ?? 1);

// The program once more, in one file: loading a hundred and seventy takes longer than what most commands do. It is a script, not a module: only
// scripts can be compiled ahead of time (code-cache.mjs), and main.js becomes what runs it. The library stays as it is.
const common = {
  // Names of files in it are relative to this.
  absWorkingDir: made,
  outdir: `${made}/program`,
  bundle: true,
  platform: 'node',
  target: 'node20',
  minifyWhitespace: true,
  logLevel: 'warning',
};
// Where files beside it are looked for, as if it were a module: dist/program/lunette.js. Who runs it says so.
const place = 'lunettePlace';
// Node loads eleven modules of its own when somebody looks at the global one.
const clock = 'lunetteClock';
const inputs = await buildWhole(common, made);
const { metafile } = await build({
  ...common,
  metafile: true,
  plugins: [besideProgram],
  entryPoints: [{ in: program, out: 'lunette' }],
  format: 'cjs',
  outExtension: { '.js': '.cjs' },
  // What every command needs, and no file of it is found at run time: the rest may be left out at installation, or has native code.
  external: [...packages.filter((name) => name !== 'commander' && name !== 'lru-cache'), 'tsx'],
  define: { 'import.meta.url': place, 'import.meta.resolve': 'require.resolve', performance: clock },
  // Without import(), which scripts from a cache have not everywhere.
  supported: { 'dynamic-import': false },
  banner: {
    js: `(function (require, module, ${place}) { const exports = module.exports, ${clock} = { now: () => process.uptime() * 1000 };`,
  },
  footer: { js: '})' },
});
writeLicenses([...inputs, ...Object.keys(metafile.inputs)], `${made}/program/LICENSES`);
// Parts of Node that most commands have in reach and few use are loaded when something of them is first asked for: together they take longer to
// load than a small image to be looked at.
const seldom = 'child_process|crypto|dgram|dns/promises|http|https|net|perf_hooks|readline|tls|worker_threads|zlib';
const later = `const requireLater = (name) => {
  let found;
  return new Proxy({}, { get: (_, key) => (found ??= require(name))[key], has: (_, key) => key in (found ??= require(name)) });
};`;
// It is read as ASCII (launch.ts). esbuild writes it so, but for what is in tagged templates.
const bundle = `${made}/program/lunette.cjs`;
const escaped = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`;
const text = readFileSync(bundle, 'utf8')
  .replace(/[\u0080-\uffff]/g, escaped)
  .replaceAll(new RegExp(`\\brequire\\("node:(${seldom})"\\)`, 'g'), 'requireLater("node:$1")');
writeFileSync(bundle, text.replace('{', `{ ${later}`));
// Threads and child processes are started by their files' names, beside whoever starts them.
const beside = (name) => ({ in: `${made}/src/${name}.js`, out: name.replace(/^.*\//, '') });
await build({
  ...common,
  entryPoints: [beside('convert/encoder-worker'), beside('lio/provision-child')],
  format: 'esm',
  packages: 'external',
});
// The launcher is a script, too: Node's loader of modules takes as long as the launcher itself. Nothing else is left beside it, which would have to be one.
const launcher = `${made}/program/launch.cjs`;
await build({
  ...common,
  entryPoints: [{ in: `${made}/src/cli/launch.js`, out: 'launch' }],
  format: 'cjs',
  outExtension: { '.js': '.cjs' },
  define: { 'import.meta.url': place },
  banner: { js: `const ${place} = require("node:url").pathToFileURL(__filename).href;` },
});
rmSync(`${made}/src/cli`, { recursive: true });
mkdirSync(`${made}/src/cli`);
renameSync(launcher, program);
writeFileSync(`${made}/src/cli/package.json`, '{ "type": "commonjs" }\n');
chmodSync(program, 0o755);
const compiled = spawnSync(process.execPath, [`${root}scripts/code-cache.mjs`, made], { stdio: 'inherit' });
if (compiled.status !== 0) process.exit(compiled.status ?? 1);

// The manual page and completions come from the commands themselves.
const printed = [
  ['man/lunette.1', 'man'],
  ['completion/lunette.bash', 'completion', 'bash'],
  ['completion/_lunette', 'completion', 'zsh'],
  ['completion/lunette.fish', 'completion', 'fish'],
];
for (const [file, ...args] of printed) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' });
  if (status !== 0) {
    console.error(`lunette ${args.join(' ')}: ${stderr}`);
    process.exit(1);
  }
  mkdirSync(dirname(`${made}/${file}`), { recursive: true });
  writeFileSync(`${made}/${file}`, stdout);
}
markFresh(digest, made);

const old = `${root}dist.old`;
rmSync(old, { recursive: true, force: true });
if (existsSync(dist)) renameSync(dist, old);
renameSync(made, dist);
rmSync(old, { recursive: true, force: true });
