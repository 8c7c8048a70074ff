/** Completion in real shells, and the manual page, made from the definitions of the commands. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cli } from '../../support/cli.ts';
import { run, runOk } from '../../support/process.ts';
import { requirePrograms } from '../../support/requires.ts';
import { type Cleanup, temporaryFile } from '../../support/temporary.ts';

async function scriptFor(t: Cleanup, shell: string): Promise<string> {
  const { status, stdout } = await cli('completion', shell);
  assert.equal(status, 0);
  return temporaryFile(t, `lunette.${shell}`, stdout);
}

/** Lines typed up to the cursor, and words that must and must not be offered. */
const CASES: readonly (readonly [line: string, offered: readonly string[], not: readonly string[]])[] = [
  ['', ['export', 'info', 'snapshot', 'completion'], ['list', '--format']],
  ['sn', ['snapshot'], ['export']],
  ['snapshot ', ['list', 'usage', 'diff', 'export', 'report'], ['check']],
  ['snapshot di', ['diff'], ['delete', 'list']],
  ['snapshot diff --con', ['--content'], ['--format']],
  // Options of the group and of the program are options of its commands.
  ['snapshot usage --f', ['--format', '--force-share'], ['--content']],
  ['info --q', ['--quiet'], []],
  ['check --repair ', ['leaks', 'all'], ['--deep']],
  ['completion ', [], ['info']],
];

test('bash offers commands, options and values', { skip: requirePrograms(['bash'], 'bash') }, async (t) => {
  const file = await scriptFor(t, 'bash');
  await runOk('bash', ['-n', file]);
  for (const [line, offered, not] of CASES) {
    const words = ['lunette', ...line.split(' ')];
    const text = await runOk('bash', [
      '--norc',
      '-c',
      `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lunette; printf '%s\\n' "\${COMPREPLY[@]}"`,
      'bash',
      file,
      ...words,
    ]);
    check(line, text.split('\n'), offered, not);
  }
  // As readline asks for it.
  assert.match(
    await runOk('bash', ['--norc', '-c', 'source "$1"; complete -p lunette', 'bash', file]),
    /-F _lunette lunette/,
  );
});

test('fish offers the same', { skip: requirePrograms(['fish'], 'fish') }, async (t) => {
  const file = await scriptFor(t, 'fish');
  for (const [line, offered] of CASES) {
    const text = await runOk('fish', [
      '--no-config',
      '-c',
      `source ${file}; complete -C ${JSON.stringify(`lunette ${line}`)}`,
    ]);
    check(
      line,
      text.split('\n').map((row) => row.split('\t')[0] ?? ''),
      offered,
      [],
    );
  }
});

test('zsh takes its script', { skip: requirePrograms(['zsh'], 'zsh') }, async (t) => {
  const file = await scriptFor(t, 'zsh');
  await runOk('zsh', ['-n', file]);
  const text = await runOk('zsh', [
    '-f',
    '-c',
    `autoload -Uz compinit; compinit -u -D; source ${file}; print $_comps[lunette]`,
  ]);
  assert.equal(text.trim(), '_lunette');
});

test('another shell is refused with the names of those there are', async () => {
  const { status, stderr } = await cli('completion', 'tcsh');
  assert.equal(status, 2);
  assert.match(stderr, /bash, zsh, fish/);
});

test('the manual page has every command and is read without complaint', {
  skip: requirePrograms(['mandoc'], 'mandoc'),
}, async (t) => {
  const { stdout } = await cli('man');
  const file = await temporaryFile(t, 'lunette.1', stdout);
  const lint = await run('mandoc', ['-T', 'lint', '-W', 'error', file]);
  assert.equal(lint.stdout + lint.stderr, '');
  const text = (await runOk('mandoc', ['-T', 'ascii', file])).replaceAll(/.\x08/g, '');
  for (const words of [
    'lunette export',
    'lunette snapshot diff',
    '--since <snapshot>',
    'lunette check -r leaks disk.qcow2',
  ]) {
    assert.ok(text.includes(words), words);
  }
});

function check(line: string, found: readonly string[], offered: readonly string[], not: readonly string[]): void {
  for (const word of offered) assert.ok(found.includes(word), `lunette ${line}: ${word} is not offered`);
  for (const word of not) assert.ok(!found.includes(word), `lunette ${line}: ${word} is offered`);
}
