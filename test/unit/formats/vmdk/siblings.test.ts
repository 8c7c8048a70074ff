import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { OPEN_GATE } from '../../../../formats/image/gate.ts';
import type { Layer } from '../../../../formats/image/layer.ts';
import { ImageHost } from '../../../../formats/open.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { createVmdk, type VmdkCreateOptions } from '../../../../formats/vmdk/create.ts';
import { findChild } from '../../../../formats/vmdk/siblings.ts';
import { newFile } from '../../../support/new-file.ts';
import { temporaryDirectory } from '../../../support/temporary.ts';
import { type Folder, newDisk } from '../../../support/vmdk-files.ts';

async function make(path: string, options: Partial<VmdkCreateOptions> = {}): Promise<void> {
  const storage = await newFile(path);
  await createVmdk(storage, { size: 65536, ...options, createFile: (name) => newFile(join(dirname(path), name)) });
  await storage.close();
}

test('the disk that stands on another is found by its descriptor, in it or beside it', async (t) => {
  for (const type of ['monolithicSparse', 'vmfsSparse'] as const) {
    const folder = await temporaryDirectory(t);
    const base = join(folder, 'base.vmdk');
    await make(base, { type: 'monolithicFlat' });
    assert.equal(await findChild(base), undefined);
    await writeFile(join(folder, 'aaa.vmdk'), 'no descriptor');
    await writeFile(join(folder, 'bbb.vmdk'), 'version=1\nparentFileNameHint="other.vmdk"\nRW x\n');
    await make(join(folder, 'child.vmdk'), { type, parent: { hint: 'base.vmdk', cid: 5 } });
    assert.equal(await findChild(base), join(folder, 'child.vmdk'));
    await make(join(folder, 'child.vmdk'), { type, parent: { hint: 'D:\\old\\base.vmdk', cid: 5 } });
    assert.equal(await findChild(base), join(folder, 'child.vmdk'));
    await symlink(base, join(folder, 'link'));
    assert.equal(await findChild(join(folder, 'link')), join(folder, 'child.vmdk'));
  }
});

test('what is no plain file is not opened in the search', async (t) => {
  const folder = await temporaryDirectory(t);
  await make(join(folder, 'base.vmdk'));
  execFileSync('mkfifo', [join(folder, 'pipe.vmdk')]);
  await symlink('/dev/zero', join(folder, 'zero.vmdk'));
  assert.equal(await findChild(join(folder, 'base.vmdk')), undefined);
});

test('a base is not opened for writing under its delta, unless forced; reading it is fine', async (t) => {
  const folder = await temporaryDirectory(t);
  const base = join(folder, 'base.vmdk');
  await make(base);
  await make(join(folder, 'child.vmdk'), { parent: { hint: './base.vmdk', cid: 5 } });
  const host = new ImageHost();
  t.after(() => host.close());
  await assert.rejects(host.open(base), { code: 'LOCKED', message: /child\.vmdk stands on it/ });
  await (await host.open(base, { readOnly: true })).close();
  await (await host.open(base, { force: true })).close();
});

test('whoever shares a disk with its writer shares its extents as well', async (t) => {
  const path = join(await temporaryDirectory(t), 'disk.vmdk');
  await make(path, { type: 'twoGbMaxExtentSparse' });
  const host = new ImageHost();
  t.after(() => host.close());
  const writer = await host.open(path);
  await writer.writev(0, IoVec.of(new Uint8Array(512).fill(4)));
  await writer.flush();
  await assert.rejects(host.open(path, { readOnly: true }), { code: 'LOCKED' });
  const reader = await host.open(path, { readOnly: true, lock: 'shared' });
  const byte = new Uint8Array(1);
  await reader.readv(0, IoVec.of(byte));
  assert.equal(byte[0], 4);
  await reader.close();
  await writer.close();
});

test('a parent whose absolute place is gone is found beside the disk, if it is the right one', async (t) => {
  const folder = await temporaryDirectory(t);
  const longContentId = `${'0'.repeat(24)}00000007`;
  await make(join(folder, 'base.vmdk'), { longContentId });
  const warnings: string[] = [];
  const host = new ImageHost({ warn: (message) => warnings.push(message) });
  t.after(() => host.close());
  for (const hint of ['/vmfs/volumes/old/vm/base.vmdk', 'C:\\VMs\\base.vmdk', '\\\\server\\share\\base.vmdk']) {
    const child = join(folder, 'child.vmdk');
    await make(child, { parent: { hint, cid: 7 } });
    const image = await host.open(child, { readOnly: true });
    assert.equal(image.layers.length, 2);
    assert.equal((await (image.layers[0] as Layer).describe()).backingFile, hint);
    await image.close();
    await make(child, { parent: { hint, cid: 8 } });
    await assert.rejects(host.open(child, { readOnly: true }), { code: 'PARENT_MISMATCH' });
  }
  assert.equal(warnings.length, 6);
  await make(join(folder, 'child.vmdk'), { parent: { hint: '/vmfs/volumes/old/vm/other.vmdk', cid: 7 } });
  await assert.rejects(host.open(join(folder, 'child.vmdk'), { readOnly: true }), { code: 'DENIED' });
});

test('a chain of more than 64 parents is refused', async (t) => {
  const folder: Folder = new Map();
  for (let i = 0; i <= 65; i++) {
    const parent = i === 0 ? {} : { parent: { hint: `disk-${i - 1}.vmdk`, cid: 7 } };
    await newDisk(folder, `disk-${i}.vmdk`, { size: 4096, longContentId: `${'0'.repeat(31)}7`, ...parent });
  }
  const host = new ImageHost({
    gate: OPEN_GATE,
    openStorage: async (path) => new MemoryStorage({ path, bytes: (folder.get(path) as MemoryStorage).toBytes() }),
  });
  t.after(() => host.close());
  await (await host.open('/memory/disk-64.vmdk')).close();
  await assert.rejects(host.open('/memory/disk-65.vmdk'), { code: 'UNSUPPORTED', message: /longer than 64/ });
});
