import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { PROJECT_ROOT, type RunResult, run } from '../../support/process.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

/** Runs these files under node:test with the reporter, as scripts/test.ts does. */
async function report(t: Cleanup, files: Readonly<Record<string, string>>): Promise<RunResult> {
  const directory = await temporaryDirectory(t);
  await mkdir(join(directory, 'tests'));
  const paths: string[] = [];
  for (const [name, text] of Object.entries(files)) {
    const path = join(directory, 'tests', name);
    await writeFile(path, `import { describe, test } from 'node:test';\n${text}`);
    paths.push(path);
  }
  const { NODE_TEST_CONTEXT: _, ...env } = process.env; // Else node:test takes these for its own subtests.
  const reporter = join(PROJECT_ROOT, 'scripts/test-reporter.mjs');
  return run(process.execPath, ['--test', `--test-reporter=${reporter}`, ...paths], { cwd: directory, env });
}

test('passed, failed and skipped tests are counted, suites are not', async (t) => {
  const { stdout, status } = await report(t, {
    'a.test.mjs': `
      test('good', () => {});
      test('bad', () => { throw new Error('because'); });
      test('left out', { skip: 'no such program' }, () => {});
      describe('suite', () => { test('inside', () => {}); });`,
  });
  assert.equal(status, 1);
  assert.match(stdout, /^counts 2 1 1$/m);
  assert.match(stdout, /FAILED {3}tests\/a\.test\.mjs: bad\n {4}Error: because/);
  assert.match(stdout, /skipped {2}tests\/a\.test\.mjs: left out \(no such program\)/);
});

test('a file that holds no test counts as failed', async (t) => {
  const { stdout } = await report(t, { 'empty.test.mjs': '' });
  assert.match(stdout, /empty\.test\.mjs: holds no test/);
  assert.match(stdout, /^counts 0 1 0$/m);
});

test('a file that does not load, and one that is killed, count as failed', async (t) => {
  const { stdout } = await report(t, {
    'broken.test.mjs': "throw new Error('at load');",
    'killed.test.mjs': "test('x', () => process.kill(process.pid, 'SIGKILL'));",
  });
  assert.match(stdout, /at load/);
  assert.match(stdout, /signal SIGKILL/);
  assert.match(stdout, /^counts 0 2 0$/m);
});

test('a test left for later counts as failed', async (t) => {
  const { stdout } = await report(t, { 'later.test.mjs': "test('x', { todo: true }, () => {});" });
  assert.match(stdout, /^counts 0 1 0$/m);
});

test('the seed of a test that failed is shown, that of one that passed is not', async (t) => {
  const { stdout } = await report(t, {
    'seed.test.mjs': `
      test('good', (t) => t.diagnostic('LUNETTE_SEED=1 repeats this test'));
      test('bad', (t) => { t.diagnostic('LUNETTE_SEED=2 repeats this test'); throw new Error('x'); });`,
  });
  assert.match(stdout, /LUNETTE_SEED=2/);
  assert.doesNotMatch(stdout, /LUNETTE_SEED=1/);
});
