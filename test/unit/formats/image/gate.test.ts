import assert from 'node:assert/strict';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { DirectoryGate } from '../../../../formats/image/gate.ts';
import { temporaryDirectory } from '../../../support/temporary.ts';

async function tree(t: Parameters<typeof temporaryDirectory>[0]): Promise<string> {
  const root = await temporaryDirectory(t);
  for (const directory of ['images/below', 'bases/deep', 'secret'])
    await mkdir(path.join(root, directory), { recursive: true });
  for (const file of ['images/a', 'images/below/b', 'bases/c', 'bases/deep/d', 'secret/s'])
    await writeFile(path.join(root, file), '');
  await symlink(path.join(root, 'secret/s'), path.join(root, 'images/link'));
  return root;
}

test('an image may name files in its own directory and below', async (t) => {
  const root = await tree(t);
  const gate = new DirectoryGate({ ownDirectory: true });
  gate.admit(`${root}/images/below/b`, `${root}/images/a`, 'data file');
  gate.admit(`${root}/images/not-there-yet`, `${root}/images/a`, 'data file');
});

test('files elsewhere are refused, with the option that would allow them', async (t) => {
  const root = await tree(t);
  const gate = new DirectoryGate({ ownDirectory: true });
  for (const target of [
    `${root}/secret/s`,
    `${root}/images/../secret/s`,
    '/etc/passwd',
    `${root}/images-next-door/x`,
  ]) {
    assert.throws(
      () => gate.admit(target, `${root}/images/a`, 'data file'),
      { code: 'DENIED', help: /--allow/ },
      target,
    );
  }
});

test('a link that leads out is out', async (t) => {
  const root = await tree(t);
  const gate = new DirectoryGate({ ownDirectory: true });
  assert.throws(() => gate.admit(`${root}/images/link`, `${root}/images/a`, 'extent'), { code: 'DENIED' });
});

test('an allowed directory admits what is below it, for every image', async (t) => {
  const root = await tree(t);
  const gate = new DirectoryGate({ ownDirectory: false, directories: [`${root}/bases`] });
  gate.admit(`${root}/bases/deep/d`, `${root}/images/a`, 'backing file');
  assert.throws(() => gate.admit(`${root}/images/below/b`, `${root}/images/a`, 'backing file'), { code: 'DENIED' });
});

test('an image on a web server names what is beside it there or below, and nothing else', () => {
  const gate = new DirectoryGate({ directories: ['https://other/images'], ownDirectory: true });
  const from = 'https://host/vm/disks/top.qcow2?token=1';
  for (const good of ['https://host/vm/disks/base.qcow2', 'https://host/vm/disks/a/b', 'https://other/images/x']) {
    gate.admit(good, from, 'data file');
  }
  for (const bad of [
    'https://host/vm/base.qcow2',
    'https://host/vm/disks/../base.qcow2',
    'https://host/vm/disks/%2e%2e/base.qcow2',
    'https://host/vm/disks/..%2fbase.qcow2',
    'http://host/vm/disks/base.qcow2',
    'https://host:444/vm/disks/base.qcow2',
    'https://other/images2/x',
    'https://',
    '/vm/disks/base.qcow2',
    'vm/disks/base.qcow2',
  ]) {
    assert.throws(() => gate.admit(bad, from, 'backing file'), { code: 'DENIED', path: from }, bad);
  }
});

test('an image on this machine names nothing on web servers, unless that is allowed', () => {
  const address = 'http://host/images/base.qcow2';
  const closed = new DirectoryGate({ ownDirectory: true });
  assert.throws(() => closed.admit(address, '/here/top.qcow2', 'backing file'), {
    code: 'DENIED',
    help: /--allow http:\/\/host\/images\/$/,
  });
  const open = new DirectoryGate({ directories: ['http://host/images/'], ownDirectory: true });
  open.admit(address, '/here/top.qcow2', 'backing file');
});
