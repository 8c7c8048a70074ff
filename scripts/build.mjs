/** Compiles formats/ and src/ into dist/ and bundles the program. dist/ is emptied first: a file that was renamed must not live on in a package. */

import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));
const program = `${root}dist/src/cli/main.js`;

// `npx lunette` in a checkout links the package into a cache of npx and runs its scripts, once. That is no reason to build
// anew under a running server; and a failure here would leave that cache broken for good.
if (process.env.npm_command === 'exec') {
  if (!existsSync(program)) console.error('lunette: not built yet: run npm ci first');
  process.exit(0);
}

// The inner installation of build-addon.mjs leaves this to the outer one.
if (process.env.LUNETTE_INSTALLING === '1') process.exit(0);

const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');
rmSync(`${root}dist`, { recursive: true, force: true });
const done = spawnSync(process.execPath, [tsc, '-p', root], { stdio: 'inherit' });
if (done.status !== 0) process.exit(done.status ?? 1);

// The program once more, in few files: loading a hundred and seventy takes longer than what most commands do. The library stays as it is.
const chunks = (name) => ({ in: `${root}dist/src/${name}.js`, out: `chunks/${name.replace(/^.*\//, '')}` });
await build({
  // Threads and child processes are started by their files' names, beside whoever starts them.
  entryPoints: [{ in: program, out: 'src/cli/main' }, chunks('convert/encoder-worker'), chunks('lio/provision-child')],
  outdir: `${root}dist`,
  allowOverwrite: true,
  bundle: true,
  splitting: true,
  chunkNames: 'chunks/[name]-[hash]',
  format: 'esm',
  platform: 'node',
  target: 'node20',
  packages: 'external',
  logLevel: 'warning',
});
chmodSync(program, 0o755);

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
  mkdirSync(dirname(`${root}dist/${file}`), { recursive: true });
  writeFileSync(`${root}dist/${file}`, stdout);
}
