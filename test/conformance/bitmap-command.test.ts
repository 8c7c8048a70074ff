/** `lunette bitmap` beside `qemu-img bitmap`: the same command lines, the same lists of bitmaps and the same failures. */

import assert from 'node:assert/strict';
import { copyFile, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import { startCli } from '../support/cli.ts';
import { run } from '../support/process.ts';
import { assertClean, create, info, qemuImg, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';

async function listed(path: string): Promise<unknown> {
  return ((await info(path))['format-specific'] as { data: { bitmaps?: unknown } }).data.bitmaps;
}

const LINES: readonly (readonly string[])[] = [
  ['--add', 'IMAGE', 'a'],
  ['--add', 'IMAGE', 'a'],
  ['--add', '--disable', '-g', '512', 'IMAGE', 'b'],
  ['-g', '1M', '--add', '-f', 'qcow2', 'IMAGE', 'name with ünicode and blanks'],
  ['--add', '-g', '1000', 'IMAGE', 'odd'],
  ['--add', '-g', '256', 'IMAGE', 'small'],
  ['--add', '-g', '4G', 'IMAGE', 'large'],
  ['--merge', 'a', '--enable', '--merge', 'b', 'IMAGE', 'b'],
  ['--add', '--disable', '--merge', 'a', '--merge', 'b', 'IMAGE', 'sum'],
  ['--merge', 'no such', 'IMAGE', 'sum'],
  ['--clear', '--disable', 'IMAGE', 'a'],
  ['--disable', 'IMAGE', 'a'],
  ['--clear', 'IMAGE', 'none'],
  ['--remove', 'IMAGE', 'none'],
  ['--merge', 'theirs', '-b', 'OTHER', '-F', 'qcow2', 'IMAGE', 'sum'],
  ['--merge', 'theirs', '-b', 'SMALLER', '-F', 'qcow2', 'IMAGE', 'sum'],
  ['--remove', '--add', 'IMAGE', 'a'],
  ['--remove', '--clear', 'IMAGE', 'b'],
  ['IMAGE', 'a'],
  ['-g', '512', '--clear', 'IMAGE', 'a'],
  ['--clear', '-b', 'OTHER', '-F', 'qcow2', 'IMAGE', 'a'],
  ['--add', 'IMAGE', 'x'.repeat(1023)],
  ['--add', 'IMAGE', 'x'.repeat(1024)],
  ['--add', 'OLD', 'a'],
  ['--add', 'RAW', 'a'],
];

test('bitmap does what qemu-img does with the same command line', { skip: requires.qemuIo() }, async (t) => {
  const files = async (): Promise<Record<string, string>> => {
    const image = await create(t, { size: 8 * MiB });
    await qemuIo(image, ['write 0 1M']);
    const other = await create(t, { size: 8 * MiB, clusterSize: 4096 });
    const smaller = await create(t, { size: 4 * MiB });
    for (const each of [other, smaller]) {
      await qemuImg('bitmap', '--add', each, 'theirs');
      await qemuIo(each, ['write 1M 64k']);
    }
    const old = await create(t, { size: MiB, options: { compat: '0.10' } });
    const raw = await create(t, { format: 'raw', size: MiB });
    return { IMAGE: image, OTHER: other, SMALLER: smaller, OLD: old, RAW: raw };
  };
  const theirs = await files();
  const ours = await files();
  for (const line of LINES) {
    const filled = (names: Record<string, string>): string[] => line.map((word) => names[word] ?? word);
    const format = line.includes('RAW') ? ['-f', 'raw'] : [];
    const qemu = await run('qemu-img', ['bitmap', ...format, ...filled(theirs)]);
    const cli = startCli(t, ['bitmap', ...format, ...filled(ours)]);
    const status = await cli.ended;
    const context = `${line.join(' ').slice(0, 80)}: QEMU ${qemu.stderr}, ours ${cli.stderr}`;
    assert.equal(status !== 0, qemu.status !== 0, context);
    assert.equal(status === 0, cli.stderr === '', context);
    for (const name of ['IMAGE', 'OTHER', 'SMALLER']) {
      assert.deepEqual(await listed(ours[name] as string), await listed(theirs[name] as string), `${name}: ${context}`);
    }
    await assertClean(ours.IMAGE as string);
  }
});

test('a bitmap command that fails in the middle keeps what it did before, and the image is whole', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await create(t, { size: MiB });
  const cli = startCli(t, ['bitmap', '--add', '--disable', '--merge', 'nothing', path, 'b']);
  assert.equal(await cli.ended, 1);
  assert.match(cli.stderr, /there is no bitmap "nothing" \(NOT_FOUND\)/);
  assert.deepEqual(await listed(path), [{ flags: [], name: 'b', granularity: 65536 }]);
  await assertClean(path);
  // What is refused at once does not touch the file.
  const before = `${path}.before`;
  await copyFile(path, before);
  assert.equal(await startCli(t, ['bitmap', path, 'b']).ended, 2);
  assert.ok((await readFile(path)).equals(await readFile(before)));
});
