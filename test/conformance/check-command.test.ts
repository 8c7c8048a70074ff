/** `lunette check` beside `qemu-img check`: text, JSON, exit status. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { cli } from '../support/cli.ts';
import { run } from '../support/process.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { create, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';

const skip = requires.qemuImg();

async function assertSame(path: string, status: number): Promise<void> {
  for (const form of ['human', 'json']) {
    const theirs = await run('qemu-img', ['check', '--output', form, path]);
    const ours = await cli('check', '--output', form, path);
    assert.equal(ours.stdout, theirs.stdout);
    assert.equal(ours.status, theirs.status);
    assert.equal(ours.status, status);
  }
}

test('check prints qemu-img’s text and JSON and ends with its status: clean, leaks, corruptions, repaired', {
  skip,
}, async (t) => {
  const path = await create(t, { size: 1024 * 1024 });
  await assertSame(path, 0);
  await qemuIo(path, ['write -P 1 0 256k', 'write -c -P 2 512k 64k']);
  await assertSame(path, 0);
  const file = new Qcow2File(new Uint8Array(await readFile(path)));
  file.setRefcount(2, 3);
  await writeFile(path, file.bytes);
  await assertSame(path, 3);
  file.setRefcount(3, 0);
  await writeFile(path, file.bytes);
  await assertSame(path, 2);
  const found = await cli('check', '-q', '--json', path);
  assert.equal(found.stderr, '');
  const leaks = await cli('check', '-r', 'leaks', '--json', path);
  assert.equal(leaks.status, 2);
  assert.equal(JSON.parse(leaks.stdout)['leaks-fixed'], 1);
  const all = await cli('check', '-r', 'all', '--deep', path);
  assert.equal(all.status, 0);
  assert.match(
    all.stdout,
    /^The following inconsistencies were found and repaired:\n\n {4}0 leaked clusters\n {4}\d+ corr/,
  );
  await assertSame(path, 0);
});

test('check of VDI and VMDK goes by the probed format; raw has nothing to check: 63, with qemu-img’s words', {
  skip,
}, async (t) => {
  for (const format of ['vdi', 'vmdk']) {
    const path = await create(t, { format, size: 4 * 1024 * 1024 });
    const { status, stdout } = await cli('check', '--json', path);
    assert.equal(status, 0);
    assert.equal(JSON.parse(stdout).format, format);
  }
  const raw = await create(t, { format: 'raw', size: 4096 });
  const { status, stdout, stderr } = await cli('check', raw);
  assert.equal(status, 63);
  assert.equal(stdout, '');
  assert.match(stderr, /This image format does not support checks/);
});

test('what cannot be checked is status 1, a wrong option 2, a repair of a shared image 1', { skip }, async (t) => {
  assert.equal((await cli('check', '/nonexistent/x.qcow2')).status, 1);
  const path = await create(t, { size: 4096 });
  assert.equal((await cli('check', '-r', 'some', path)).status, 2);
  assert.equal((await cli('check', '-U', path)).status, 0);
  assert.equal((await cli('check', '-U', '-r', 'all', path)).status, 1);
  assert.equal((await cli('check', '-f', 'vdi', path)).status, 1);
});
