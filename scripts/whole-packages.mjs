/** Packages within the program: those that servers start with, a file each, and the licences of all that is in it. */

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));

/** By the name that they are imported by: as much of each as is used. A disk waits while its daemon looks for three hundred files. */
const WHOLE = {
  'dbus-next': () => "module.exports = require('dbus-next')",
  pino: () => "module.exports = require('pino')",
  'smol-toml': () => "export { parse, TomlError } from 'smol-toml'",
  'schema.js': (made) => `export * from '${made}/src/daemon/schema.js'`,
};
const fileOf = (name) => `${basename(name, '.js')}.cjs`;

/** For the program: they are files beside it. */
export const besideProgram = {
  name: 'beside-program',
  setup({ onResolve }) {
    const filter = new RegExp(`(^|/)(${Object.keys(WHOLE).join('|')})$`);
    onResolve({ filter }, ({ path }) => ({ path: `./${fileOf(path)}`, external: true }));
  },
};

/** Makes the files. @returns names of the files that went in, from `made` */
export async function buildWhole(common, made) {
  const inputs = [];
  for (const [name, contents] of Object.entries(WHOLE)) {
    const { metafile } = await build({
      ...common,
      stdin: { contents: contents(made), resolveDir: root },
      outdir: undefined,
      outfile: `${made}/program/${fileOf(name)}`,
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
    const text =
      found === undefined || !existsSync(join(folder, found)) ? '' : readFileSync(join(folder, found), 'utf8');
    return `${name} ${version}, ${license}\n\n${text.trim()}\n`;
  });
  writeFileSync(file, texts.join(`\n${'-'.repeat(80)}\n\n`));
}
