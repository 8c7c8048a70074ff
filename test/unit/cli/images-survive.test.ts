/** Slips of the command line that would cost an image, or an assurance: refused, with everything as it was. */

import assert from 'node:assert/strict';
import { copyFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { cli } from '../../support/cli.ts';
import { PROJECT_ROOT } from '../../support/process.ts';
import { type Cleanup, temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

async function sample(t: Cleanup): Promise<string> {
  const path = join(await temporaryDirectory(t), 'disk.qcow2');
  await copyFile(join(PROJECT_ROOT, 'fixtures/sample.qcow2'), path);
  return path;
}

test('no page is written over an image: neither the one it is about, nor another', async (t) => {
  const image = await sample(t);
  const other = await sample(t);
  const raw = await temporaryFile(t, 'disk.raw', new Uint8Array(65536).fill(7));
  const before = await readFile(image);
  for (const args of [
    ['snapshot', 'report', image, '-o', image],
    ['snapshot', 'report', image, '-o', other],
    ['map', '--output', 'html', '-o', image, image],
    ['map', '--output', 'svg', '-f', 'raw', '-o', raw, raw],
  ]) {
    const { status, stderr } = await cli(...args);
    assert.equal(status, 1, args.join(' '));
    assert.match(stderr, /is an image: no page is written over it \(EXISTS\)/);
  }
  assert.deepEqual(await readFile(image), before);
  assert.deepEqual(await readFile(other), before);
  assert.equal((await readFile(raw))[100], 7);
  const page = join(await temporaryDirectory(t), 'page.html');
  for (let time = 0; time < 2; time++)
    assert.equal((await cli('map', '--output', 'html', '-o', page, image)).status, 0);
});

test('what means nothing for a pipe is refused: a check that was asked for does not go missing', async (t) => {
  const image = await sample(t);
  for (const option of [['--verify'], ['-c'], ['-B', 'x.qcow2', '-F', 'qcow2'], ['-o', 'size=1'], ['-n']]) {
    const { status, stderr } = await cli('convert', '-O', 'raw', ...option, image, '-');
    assert.equal(status, 2, option.join(' '));
    assert.match(stderr, /means nothing for a pipe/);
  }
  assert.equal((await cli('snapshot', 'export', image, '1', '-O', 'raw', '-')).status, 2);
});
