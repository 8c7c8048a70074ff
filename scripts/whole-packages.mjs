/** Packages within the program: those that servers start with, a file each, and the licences of all that is in it. */

import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));

/** What is in each file: as much of a package as is used. A disk waits while its daemon looks for three hundred files. */
const WHOLE = {
  'dbus-next': "module.exports = require('dbus-next')",
  pino: "module.exports = require('pino')",
  'smol-toml': "export { parse, TomlError } from 'smol-toml'",
  schema: "export * from './src/daemon/schema.js'",
};

/** For the program: they are files beside it. */
export const besideProgram = {
  name: 'beside-program',
  setup({ onResolve }) {
    onResolve({ filter: /^(dbus-next|pino|smol-toml|\.\/schema\.js)$/ }, ({ path, resolveDir }) => {
      const name = basename(path, '.js');
      if (name === 'schema' && !resolveDir.endsWith(join('src', 'daemon'))) return undefined;
      return { path: `./${name}.cjs`, external: true };
    });
  },
};

/** Makes the files. @returns names of the files that went in, from `made` */
export async function buildWhole(common, made) {
  const inputs = [];
  for (const [name, contents] of Object.entries(WHOLE)) {
    const { metafile } = await build({
      ...common,
      stdin: { contents, resolveDir: made },
      outdir: undefined,
      outfile: `${made}/program/${name}.cjs`,
      format: 'cjs',
      metafile: true,
      // Native code, and what is done without where it is not there.
      external: ['usocket', 'x11'],
    });
    inputs.push(...Object.keys(metafile.inputs));
  }
  return inputs;
}

/** Writes what the licences of packages that went in ask for: each with its copyright and its text. */
export function writeLicenses(inputs, file) {
  const folders = new Set(
    inputs.flatMap((path) => /node_modules\/((?:.*\/node_modules\/)?(?:@[^/]+\/)?[^/]+)/.exec(path)?.[1] ?? []),
  );
  const texts = [...folders].sort().map((name) => {
    const folder = join(root, 'node_modules', name);
    const { version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    const found = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
    const text = found === undefined ? '' : readFileSync(join(folder, found), 'utf8');
    return `${name} ${version}, ${license}\n\n${text.trim()}\n`;
  });
  writeFileSync(file, texts.join(`\n${'-'.repeat(80)}\n\n`));
}
