import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { built } from '../../support/built.ts';
import { PROJECT_ROOT, run, runOk } from '../../support/process.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const SELDOM = ['child_process', 'crypto', 'dgram', 'http', 'tls', 'worker_threads', 'zlib'];

test('the program loads what few commands use of Node only where it is used', async (t) => {
  const folder = await temporaryDirectory(t);
  const hook = join(folder, 'hook.cjs');
  const list = join(folder, 'list');
  await writeFile(
    hook,
    `process.on('exit', () => require('fs').writeFileSync('${list}', process.moduleLoadList.join()));`,
  );
  const loaded = async (...args: string[]): Promise<string[]> => {
    await runOk(process.execPath, ['-r', hook, built('src/cli/main.js'), ...args]);
    const parts = (await readFile(list, 'utf8')).split(',');
    return SELDOM.filter((name) => parts.includes(`NativeModule ${name}`));
  };
  const sample = join(PROJECT_ROOT, 'fixtures/sample.qcow2');
  const [raw, packed] = [join(folder, 'raw'), join(folder, 'packed')];
  assert.deepEqual(await loaded('info', sample), []);
  assert.deepEqual(await loaded('convert', '-O', 'raw', sample, raw), []);
  // What is used is found.
  assert.ok((await loaded('checksum', raw)).includes('crypto'));
  await runOk(process.execPath, [built('src/cli/main.js'), 'convert', '-c', '-O', 'qcow2', raw, packed]);
  await runOk(process.execPath, [built('src/cli/main.js'), 'compare', raw, packed]);
});

test('output that cannot be written is an error of one line, and no success', async () => {
  const sample = join(PROJECT_ROOT, 'fixtures/sample.qcow2');
  const into = (target: string, ...args: string[]) =>
    run('/bin/sh', ['-c', `"$0" "$@" ${target}`, process.execPath, built('src/cli/main.js'), ...args]);
  for (const args of [['info', sample], ['--help'], ['convert', '-O', 'raw', sample, '-']]) {
    const { status, stderr } = await into('>/dev/full', ...args);
    assert.equal(status, 1, args[0]);
    assert.match(stderr, /^lunette: writing to stdout: no space left on device \(NO_SPACE\)\n$/, args[0]);
  }
  // Where nobody hears, the status says it.
  assert.equal((await into('>/dev/full 2>&1', 'info', sample)).status, 1);
  assert.equal((await into('2>/dev/full', 'info', sample)).status, 0);
});
