import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { ConfigTree } from '../../../src/lio/execute.ts';
import { blockDeviceOf } from '../../../src/lio/loopback.ts';
import { KernelTarget } from '../../../src/lio/provision.ts';
import { link, mkdirShared, mkdir as mkdirStep, write, writeOptional } from '../../../src/lio/step.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

/** A directory that looks like the target's configuration, but for attributes, which the kernel makes. */
async function fakeRoot(t: Cleanup): Promise<string> {
  const root = await temporaryDirectory(t);
  await mkdir(join(root, 'core'));
  await writeFile(join(root, 'attribute'), 'old');
  return root;
}

test('what was made is taken back in reverse: links, directories, attributes', async (t) => {
  const root = await fakeRoot(t);
  const tree = new ConfigTree(root);
  tree.run([mkdirStep('a'), mkdirStep('a/b'), write('attribute', 'new', 'back'), link('a/b/link', 'core')]);
  assert.equal(await readFile(join(root, 'attribute'), 'utf8'), 'new');
  assert.ok((await stat(join(root, 'a/b/link'))).isDirectory());
  assert.deepEqual(tree.undo(), []);
  assert.deepEqual((await readdir(root)).sort(), ['attribute', 'core']);
  assert.equal((await readFile(join(root, 'attribute'), 'utf8')).slice(0, 4), 'back');
});

test('a step that fails names what failed and leaves the others to be taken back', async (t) => {
  const root = await fakeRoot(t);
  const tree = new ConfigTree(root);
  assert.throws(() => tree.run([mkdirStep('a'), write('a/enable', '1'), mkdirStep('never')]), {
    code: 'IO',
    path: join(root, 'a/enable'),
  });
  assert.deepEqual(tree.undo(), []);
  assert.deepEqual((await readdir(root)).sort(), ['attribute', 'core']);
});

test('an attribute that the kernel lacks is not made up: optional ones are passed over', async (t) => {
  const root = await fakeRoot(t);
  new ConfigTree(root).run([writeOptional('missing', '1')]);
  await assert.rejects(stat(join(root, 'missing')));
});

test('what was there before is refused, used when it is shared, and stays', async (t) => {
  const root = await fakeRoot(t);
  const tree = new ConfigTree(root);
  assert.throws(() => tree.run([mkdirStep('core')]), { code: 'EXISTS' });
  tree.run([mkdirShared('core'), mkdirShared('iscsi'), mkdirStep('iscsi/mine')]);
  await mkdir(join(root, 'iscsi/other'));
  assert.deepEqual(tree.undo(), []);
  assert.deepEqual((await readdir(root)).sort(), ['attribute', 'core', 'iscsi']);
});

test('what cannot be taken away is said, and the rest is taken away', async (t) => {
  const root = await fakeRoot(t);
  const tree = new ConfigTree(root);
  tree.run([mkdirStep('a'), mkdirStep('b')]);
  await writeFile(join(root, 'b/used'), '');
  assert.deepEqual(tree.undo(), [`${join(root, 'b')} (ENOTEMPTY)`]);
  assert.ok(!(await readdir(root)).includes('a'));
});

test('a backstore takes the lowest number that no kind of backstore has', async (t) => {
  const root = await fakeRoot(t);
  for (const name of ['fileio_0', 'user_1', 'alua', 'iblock_3']) await mkdir(join(root, 'core', name));
  const tree = new ConfigTree(root);
  assert.equal(tree.claimHba(), 'core/user_2');
  assert.equal(tree.claimHba(), 'core/user_4');
  tree.undo();
  assert.equal((await readdir(join(root, 'core'))).length, 4);
});

const REQUEST = {
  fabric: 'iscsi',
  iqn: 'iqn.2026-11.lunette.host:disk',
  host: '127.0.0.1',
  port: 3260,
  backstores: [{ name: 'disk', config: 'image//x', size: 1024, blockSize: 512, serial: 'abc' }],
  initiators: [],
  readOnly: false,
} as const;

test('a target that cannot be made leaves nothing behind, and the error names the attribute', async (t) => {
  const root = await fakeRoot(t);
  await assert.rejects(KernelTarget.create(REQUEST, root), {
    code: 'IO',
    path: join(root, 'core/user_0/disk/control'),
  });
  assert.deepEqual(await readdir(join(root, 'core')), []);
});

test('a kernel without a target is said so, with what to do', async (t) => {
  const root = join(await temporaryDirectory(t), 'none');
  await assert.rejects(KernelTarget.create(REQUEST, root), { code: 'UNAVAILABLE', path: root, help: /modprobe/ });
});

test('the disk of a loopback unit is found by its SCSI address', async (t) => {
  const sysfs = await temporaryDirectory(t);
  await mkdir(join(sysfs, 'class/scsi_device/3:0:1:0/device/block/sdq'), { recursive: true });
  assert.equal(blockDeviceOf('3:0:1', 0, sysfs), '/dev/sdq');
  assert.equal(blockDeviceOf('3:0:1', 1, sysfs), undefined);
});
