import assert from 'node:assert/strict';
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { DirectoryGate, OPEN_GATE } from '../../../../formats/image/gate.ts';
import { ImageHost, type ImageHostOptions } from '../../../../formats/open.ts';
import { raw } from '../../../../formats/raw/raw.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { createVdi, type VdiCreateOptions } from '../../../../formats/vdi/create.ts';
import { vdi } from '../../../../formats/vdi/driver.ts';
import { uuidText } from '../../../../formats/vdi/uuid.ts';
import { createVmdk } from '../../../../formats/vmdk/create.ts';
import { vmdk } from '../../../../formats/vmdk/driver.ts';
import { openDisk } from '../../../support/layers.ts';
import { newFile } from '../../../support/new-file.ts';
import { type Cleanup, temporaryDirectory } from '../../../support/temporary.ts';

const BLOCK = 4096;

/** The bytes of an image with one byte value in its first block, and its id. */
async function imageBytes(value: number, options: VdiCreateOptions): Promise<{ bytes: Uint8Array; uuid: string }> {
  const storage = new MemoryStorage();
  const header = await createVdi(storage, { blockSize: BLOCK, ...options });
  if (value > 0) {
    const disk = await openDisk(vdi, storage);
    await disk.writev(0, IoVec.of(new Uint8Array(BLOCK).fill(value)));
    await disk.close();
  }
  return { bytes: storage.toBytes(), uuid: uuidText(header.uuidCreate) };
}

/** A machine's folder as VirtualBox makes it: a base, and a child in Snapshots/. */
async function machineFolder(t: Cleanup) {
  const folder = await temporaryDirectory(t);
  const base = await imageBytes(7, { size: 4 * BLOCK });
  const child = await imageBytes(0, { parent: new MemoryStorage({ bytes: base.bytes }) });
  await mkdir(join(folder, 'Snapshots'));
  const paths = { base: join(folder, 'disk.vdi'), child: join(folder, 'Snapshots', `{${child.uuid}}.vdi`) };
  await writeFile(paths.base, base.bytes);
  await writeFile(paths.child, child.bytes);
  return { folder, base, child, paths };
}

function hostFor(t: Cleanup, options: ImageHostOptions = {}): ImageHost {
  const host = new ImageHost({ drivers: [vdi, raw], gate: OPEN_GATE, ...options });
  t.after(() => host.close());
  return host;
}

async function firstByte(host: ImageHost, path: string, options = {}): Promise<number> {
  const image = await host.open(path, { readOnly: true, ...options });
  const byte = new Uint8Array(1);
  await image.readv(0, IoVec.of(byte));
  await image.close();
  return byte[0] as number;
}

test('the parent is found by its id in the folder above', async (t) => {
  const { paths, folder } = await machineFolder(t);
  await writeFile(join(folder, 'aaa.vdi'), 'no image at all');
  assert.equal(await firstByte(hostFor(t), paths.child), 7);
});

test('a registry beside the folder says where a parent of any name is', async (t) => {
  const { folder, paths, base } = await machineFolder(t);
  await mkdir(join(folder, 'elsewhere'));
  await rename(paths.base, join(folder, 'elsewhere', 'disk.image'));
  await writeFile(
    join(folder, 'vm.vbox'),
    `<VirtualBox><Machine uuid="{}" name="vm"><MediaRegistry><HardDisks>
      <HardDisk uuid="{${base.uuid}}" location="elsewhere/disk.image" format="VDI" type="Normal"/>
    </HardDisks></MediaRegistry></Machine></VirtualBox>`,
  );
  assert.equal(await firstByte(hostFor(t), paths.child), 7);
});

test('a damaged registry is one fewer place to look', async (t) => {
  const { folder, paths } = await machineFolder(t);
  await writeFile(join(folder, 'vm.vbox'), '<VirtualBox><Machine');
  assert.equal(await firstByte(hostFor(t), paths.child), 7);
});

test('a parent that is nowhere near is not found, and the message has its id', async (t) => {
  const { folder, paths, base } = await machineFolder(t);
  await rename(paths.base, join(folder, 'disk.bin'));
  const opening = hostFor(t).open(paths.child);
  await assert.rejects(opening, (error: Error & { code: string; help: string }) => {
    assert.equal(error.code, 'NOT_FOUND');
    assert.ok(error.message.includes(base.uuid));
    assert.match(error.help, /--parent/);
    return true;
  });
});

test('a parent outside the allowed folders is not even looked at; the message says which folder to allow', async (t) => {
  const { folder, paths } = await machineFolder(t);
  const strict = hostFor(t, { gate: new DirectoryGate({ ownDirectory: true }) });
  await assert.rejects(strict.open(paths.child), (error: Error & { code: string; help: string }) => {
    assert.equal(error.code, 'NOT_FOUND');
    assert.ok(error.help.includes(folder), error.help);
    return true;
  });
  const allowed = hostFor(t, { gate: new DirectoryGate({ ownDirectory: true, directories: [folder] }) });
  assert.equal(await firstByte(allowed, paths.child), 7);
});

test('a parent given by the user is taken, wherever it is, but must be the right one', async (t) => {
  const { paths } = await machineFolder(t);
  const elsewhere = join(await temporaryDirectory(t), 'other.vdi');
  await rename(paths.base, elsewhere);
  const strict = hostFor(t, { gate: new DirectoryGate({ ownDirectory: true }) });
  assert.equal(await firstByte(strict, paths.child, { parent: elsewhere }), 7);
  const wrong = await imageBytes(9, { size: 4 * BLOCK });
  await writeFile(elsewhere, wrong.bytes);
  await assert.rejects(
    strict.open(paths.child, { parent: elsewhere }),
    (error: Error & { code: string; path: string }) => {
      assert.equal(error.code, 'PARENT_MISMATCH');
      assert.equal(error.path, paths.child);
      assert.ok(error.message.includes(wrong.uuid) && error.message.includes(elsewhere), error.message);
      return true;
    },
  );
  const warnings: string[] = [];
  const lenient = hostFor(t, { warn: (message) => warnings.push(message) });
  assert.equal(await firstByte(lenient, paths.child, { parent: elsewhere, ignoreCid: true }), 9);
  assert.equal(warnings.length, 1);
});

test('a parent that was written since is worth a warning; with strict it is an error', async (t) => {
  const { paths } = await machineFolder(t);
  const writer = await hostFor(t).open(paths.base);
  await writer.writev(0, IoVec.of(new Uint8Array(BLOCK).fill(8)));
  await writer.close();
  const warnings: string[] = [];
  const host = hostFor(t, { warn: (message, path) => warnings.push(`${path}: ${message}`) });
  assert.equal(await firstByte(host, paths.child), 8);
  assert.match(warnings.join(), /uuidModify .* may have been written since/);
  await assert.rejects(host.open(paths.child, { strict: true }), { code: 'CORRUPT' });
});

test('a VDI image stands on a VMDK disk that the registry names', async (t) => {
  const folder = await temporaryDirectory(t);
  const host = hostFor(t, { drivers: [vdi, vmdk, raw] });
  const basePath = join(folder, 'base.vmdk');
  const file = await newFile(basePath);
  await createVmdk(file, { size: 4 * BLOCK });
  await file.close();
  const base = await host.open(basePath);
  await base.writev(0, IoVec.of(new Uint8Array(BLOCK).fill(5)));
  const ids = base.layers[0]?.ids ?? {};
  await base.close();
  const child = await imageBytes(0, {
    size: 4 * BLOCK,
    parentIds: { uuid: ids.uuidCreate ?? '', modification: ids.uuidModify ?? '' },
  });
  await mkdir(join(folder, 'Snapshots'));
  const childPath = join(folder, 'Snapshots', 'child.vdi');
  await writeFile(childPath, child.bytes);
  await writeFile(
    join(folder, 'vm.vbox'),
    `<VirtualBox><Machine uuid="{}" name="vm"><MediaRegistry><HardDisks>
      <HardDisk uuid="{${ids.uuidCreate}}" location="base.vmdk" format="VMDK" type="Normal">
        <HardDisk uuid="{${child.uuid}}" location="Snapshots/child.vdi" format="VDI"/>
      </HardDisk></HardDisks></MediaRegistry></Machine></VirtualBox>`,
  );
  assert.equal(await firstByte(host, childPath), 5);
});

test('an image that names itself as its parent is refused', async (t) => {
  const { paths, child } = await machineFolder(t);
  child.bytes.set(child.bytes.subarray(0x188, 0x198), 0x1a8);
  await writeFile(paths.child, child.bytes);
  await assert.rejects(hostFor(t).open(paths.child, { readOnly: true }), { code: 'CORRUPT' });
});
