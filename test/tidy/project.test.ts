/** Rules about files that no compiler and no linter knows. */

import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { test } from 'node:test';
import { GROUPS } from '../../scripts/test-groups.ts';
import { PROJECT_ROOT } from '../support/process.ts';
import { projectFiles, readText } from '../support/source.ts';

const MAX_LINES = 500;

/** Generated, or not ours to word. */
const NOT_READ = /^(LICENSE|package-lock\.json|fixtures\/.*\.(qcow2|vmdk|vdi|raw))$/;

const files = projectFiles();
const code = files.filter((path) => /\.(ts|mjs|cc|h)$/.test(path));
// This file spells the words that it looks for.
const texts = new Map(
  files
    .filter((path) => !NOT_READ.test(path) && path !== 'test/tidy/project.test.ts')
    .map((path) => [path, readText(path) as string]),
);

/** `path:line: text` of each line that matches, in the files of `paths`. */
function linesWith(pattern: RegExp, paths: Iterable<string> = texts.keys()): string[] {
  return [...paths].flatMap((path) =>
    (texts.get(path) ?? '')
      .split('\n')
      .flatMap((line, i) => (pattern.test(line) ? [`${path}:${i + 1}: ${line.trim()}`] : [])),
  );
}

test('no file speaks of the place where it was written', () => {
  assert.deepEqual(
    linesWith(/(^|[\s"'`(=])\/work\/|\.\.\/shared\b|\bshared\/(design|style|cli|reference|hooks|lio-vm)/),
    [],
  );
  assert.deepEqual(linesWith(/(^|[\s"'`(=])\/(root\/|home\/(?!guest\b))|\/tmp\/notes\b/), []);
});

test('no file names an issue by its number', () => {
  assert.deepEqual(linesWith(/\bissues? #?\d+\b|\b(fixes|closes|see) #\d+\b/i), []);
});

test('nothing is left for later in the code', () => {
  assert.deepEqual(linesWith(/\b(TODO|FIXME|XXX|HACK)\b|\bnot (yet )?implemented\b|@ts-(ignore|nocheck)/, code), []);
});

test('no test is switched off or runs alone', () => {
  // The reporter's own tests write such tests. One that finds out on its way that it cannot run calls cannotRun() of requires.ts,
  // which fails in CI.
  const excepted = ['test/unit/scripts/test-reporter.test.ts', 'test/support/requires.ts'];
  const tests = code.filter((path) => path.startsWith('test/') && !excepted.includes(path));
  const off = /\b(test|it|describe|suite)\.(only|skip|todo)\(|\bt\.(todo|skip)\(|\b(skip|todo|only): *(true|['"`])/;
  assert.deepEqual(linesWith(off, tests), []);
});

test('a file of code holds one subject: at most 500 lines', () => {
  const long = code
    .filter((path) => /^(src|formats|native)\//.test(path))
    .map((path) => ({ path, lines: (texts.get(path) ?? '').split('\n').length - 1 }))
    .filter(({ lines }) => lines > MAX_LINES);
  assert.deepEqual(long, []);
});

test('no name says that it holds this and that', () => {
  const vague = /(^|[-_./])(utils?|helpers?|manager|common|misc)([-_./]|$)/i;
  assert.deepEqual(
    files.filter((path) => vague.test(path)),
    [],
  );
});

test('what starts with #! is executable, and nothing else in scripts/ is', () => {
  const wrong = files.filter((path) => {
    const executable = (statSync(join(PROJECT_ROOT, path)).mode & 0o111) !== 0;
    const script = texts.get(path)?.startsWith('#!') === true;
    // The program is made executable when it is built.
    return path.endsWith('.ts') ? executable : executable !== script;
  });
  assert.deepEqual(wrong, []);
});

test('dependencies are pinned to one version each', () => {
  const manifest = JSON.parse(readText('package.json') as string) as Record<string, Record<string, string>>;
  for (const kind of ['dependencies', 'optionalDependencies', 'devDependencies']) {
    for (const [name, version] of Object.entries(manifest[kind] ?? {})) {
      assert.match(version, /^\d+\.\d+\.\d+$/, `${kind}: ${name}`);
    }
  }
});

test('the changelog knows the version of the package', () => {
  const { version } = JSON.parse(readText('package.json') as string) as { version: string };
  assert.match(readText('CHANGELOG.md') as string, new RegExp(`^## ${version.replaceAll('.', '\\.')}\\b`, 'm'));
});

test('links in the documentation lead to files that are there', () => {
  const all = new Set(files);
  const broken: string[] = [];
  for (const path of files.filter((name) => name.endsWith('.md'))) {
    for (const [, target = ''] of (texts.get(path) ?? '').matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^(https?:|mailto:|#)/.test(target)) continue;
      const file = normalize(join(dirname(path), target.replace(/#.*$/, '')));
      const folder = `${file.replace(/\/$/, '')}/`;
      if (!all.has(file) && !files.some((name) => name.startsWith(folder))) broken.push(`${path}: ${target}`);
    }
  }
  assert.deepEqual(broken, []);
});

test('docs/testing.md has the groups and budgets that the runner uses', () => {
  const rows = [...(readText('docs/testing.md') ?? '').matchAll(/^\| `(\w+)` \|.*\| (\d+) s \| (\d+) \|$/gm)];
  assert.deepEqual(
    rows.map(([, name, budget, concurrency]) => [name, Number(budget), Number(concurrency)]),
    GROUPS.map(({ name, budgetSeconds, concurrency }) => [name, budgetSeconds, concurrency]),
  );
});
