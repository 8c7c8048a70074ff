/** `commit` of images that cannot be emptied: what they show stays, and they stay bound to their parents. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { cli } from '../support/cli.ts';
import { qemu, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuImg() || requires.qemuIo();

test('a committed VMDK child shows what it showed, to QEMU too, over a parent that has its data and a new CID', {
  skip,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const [base, child] = [join(folder, 'base.vmdk'), join(folder, 'child.vmdk')];
  await qemu.create(t, { path: base, format: 'vmdk', size: 8 << 20 });
  await qemuIo(base, ['write -q -P 1 0 1M'], '-f', 'vmdk');
  await qemu.create(t, { path: child, format: 'vmdk', backing: 'base.vmdk', backingFormat: 'vmdk' });
  await qemuIo(child, ['write -q -P 2 64k 64k', 'write -q -P 3 4M 64k'], '-f', 'vmdk');
  const { status, stderr } = await cli('commit', child);
  assert.equal(status, 0, stderr);
  const reads = ['read -P 1 0 64k', 'read -P 2 64k 64k', 'read -P 1 128k 896k', 'read -P 3 4M 64k', 'read -P 0 5M 1M'];
  for (const path of [base, child]) await qemuIo(path, reads, '-r', '-f', 'vmdk');
  const opened = await cli('checksum', child);
  assert.deepEqual([opened.status, opened.stderr], [0, '']);
  // Of use again: what is written to it stays its own.
  await qemuIo(child, ['write -q -P 9 6M 64k'], '-f', 'vmdk');
  await qemuIo(base, ['read -P 0 6M 64k'], '-r', '-f', 'vmdk');
});

test('a committed VDI child notes its parent’s new modification id', { skip }, async (t) => {
  const folder = await temporaryDirectory(t);
  const [base, child, raw] = ['base.vdi', 'child.vdi', 'raw'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await qemu.create(t, { path: base, format: 'vdi', size: 8 << 20 });
  assert.equal((await cli('create', '-f', 'vdi', '-b', base, '-F', 'vdi', child)).status, 0);
  await qemu.create(t, { path: raw, format: 'raw', size: 8 << 20 });
  await qemuIo(raw, ['write -q -P 5 1M 64k'], '-f', 'raw');
  assert.equal((await cli('convert', '-n', '-f', 'raw', '-O', 'vdi', raw, child)).status, 0);
  const { status, stderr } = await cli('commit', child);
  assert.equal(status, 0, stderr);
  await qemuIo(base, ['read -P 5 1M 64k', 'read -P 0 2M 64k'], '-r', '-f', 'vdi');
  const compared = await cli('compare', '-f', 'vdi', '-F', 'vdi', child, base);
  assert.deepEqual([compared.status, compared.stderr], [0, '']);
});

test('a VMDK disk opens after all above its base was committed and nothing emptied, for QEMU too', {
  skip,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const [base, middle, top] = ['base.vmdk', 'middle.vmdk', 'top.vmdk'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await qemu.create(t, { path: base, format: 'vmdk', size: 8 << 20 });
  await qemu.create(t, { path: middle, format: 'vmdk', backing: 'base.vmdk', backingFormat: 'vmdk' });
  await qemuIo(middle, ['write -q -P 2 1M 64k'], '-f', 'vmdk');
  await qemu.create(t, { path: top, format: 'vmdk', backing: 'middle.vmdk', backingFormat: 'vmdk' });
  await qemuIo(top, ['write -q -P 3 2M 64k'], '-f', 'vmdk');
  for (const args of [['-b', base], ['-d']]) {
    const { status, stderr } = await cli('commit', ...args, top);
    assert.deepEqual([status, stderr], [0, '']);
    await qemuIo(top, ['read -P 2 1M 64k', 'read -P 3 2M 64k'], '-r', '-f', 'vmdk');
    assert.deepEqual((({ status, stderr }) => [status, stderr])(await cli('checksum', top)), [0, '']);
  }
  await qemuIo(base, ['read -P 2 1M 64k', 'read -P 3 2M 64k'], '-r', '-f', 'vmdk');
});

test('a VMDK delta whose base was written since is committed with --ignore-cid only, and bound to it then', {
  skip,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const [base, child] = [join(folder, 'base.vmdk'), join(folder, 'child.vmdk')];
  await qemu.create(t, { path: base, format: 'vmdk', size: 8 << 20 });
  await qemu.create(t, { path: child, format: 'vmdk', backing: 'base.vmdk', backingFormat: 'vmdk' });
  await qemuIo(child, ['write -q -P 2 1M 64k'], '-f', 'vmdk');
  await qemuIo(base, ['write -q -P 1 0 64k'], '-f', 'vmdk');
  const refused = await cli('commit', child);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /was written since[\s\S]*--ignore-cid/);
  await qemuIo(base, ['read -P 0 1M 64k'], '-r', '-f', 'vmdk');
  const taken = await cli('commit', '--ignore-cid', child);
  assert.equal(taken.status, 0, taken.stderr);
  await qemuIo(child, ['read -P 1 0 64k', 'read -P 2 1M 64k'], '-r', '-f', 'vmdk');
  await qemuIo(base, ['read -P 1 0 64k', 'read -P 2 1M 64k'], '-r', '-f', 'vmdk');
});
