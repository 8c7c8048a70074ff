import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { MiB } from '../../formats/core/units.ts';
import { ImageHost } from '../../formats/open.ts';
import { writeStreamOptimized } from '../../formats/vmdk/stream-writer.ts';
import { cli } from '../support/cli.ts';
import { startNbdExport } from '../support/nbd.ts';
import { newFile } from '../support/new-file.ts';
import { runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../support/temporary.ts';

/** A folder with a description and two disks, filled with 1 and 2. */
async function parts(t: Cleanup): Promise<{ folder: string; host: ImageHost }> {
  const folder = await temporaryDirectory(t);
  const host = new ImageHost();
  t.after(() => host.close());
  await writeFile(join(folder, 'machine.ovf'), '<Envelope/>');
  for (const value of [1, 2]) {
    const source = join(folder, `disk${value}.raw`);
    await writeFile(source, new Uint8Array(2 * MiB).fill(value));
    const image = await host.open(source, { readOnly: true, format: 'raw' });
    const target = await newFile(join(folder, `disk${value}.vmdk`));
    await writeStreamOptimized(image, target);
    await target.close();
    await image.close();
  }
  return { folder, host };
}

async function firstByte(host: ImageHost, path: string, options = {}): Promise<number> {
  const image = await host.open(path, { readOnly: true, ...options });
  const byte = new Uint8Array(1);
  await image.readv(MiB, IoVec.of(byte));
  await image.close();
  return byte[0] as number;
}

for (const format of ['ustar', 'pax', 'gnu']) {
  test(`a disk in an archive that tar made (${format}) is read in place`, async (t) => {
    const { folder, host } = await parts(t);
    const path = join(folder, 'machine.ova');
    await runOk('tar', [`--format=${format}`, '-cf', path, '-C', folder, 'machine.ovf', 'disk1.vmdk']);
    assert.equal(await firstByte(host, path), 1);
    await assert.rejects(host.open(path), { code: 'READ_ONLY', path });
    const layer = await host.openLayer(path);
    assert.equal((await layer.describe()).specific?.['create-type'], 'streamOptimized');
    await layer.close();
  });
}

test('of several disks one must be named', async (t) => {
  const { folder, host } = await parts(t);
  const path = join(folder, 'machine.ova');
  const long = `${'x'.repeat(120)}.vmdk`;
  await runOk('cp', [join(folder, 'disk2.vmdk'), join(folder, long)]);
  await runOk('tar', ['--format=gnu', '-cf', path, '-C', folder, 'machine.ovf', 'disk1.vmdk', long]);
  await assert.rejects(host.open(path, { readOnly: true }), { code: 'INVALID', message: /disk1\.vmdk, x+\.vmdk/ });
  assert.equal(await firstByte(host, path, { member: 'disk1.vmdk' }), 1);
  assert.equal(await firstByte(host, path, { member: long }), 2);
  await assert.rejects(host.open(path, { readOnly: true, member: 'disk3.vmdk' }), { code: 'NOT_FOUND' });
});

test('the disks of an archive are shown, converted, compared, mapped and exported as any image', {
  skip: requires.qemuImg(),
}, async (t) => {
  const { folder } = await parts(t);
  const path = join(folder, 'machine.ova');
  await runOk('tar', ['-cf', path, '-C', folder, 'machine.ovf', 'disk1.vmdk', 'disk2.vmdk']);
  for (const value of [1, 2]) {
    const disk = `${path}#disk${value}.vmdk`;
    const plain = join(folder, `disk${value}.raw`);
    const info = await cli('info', '--output', 'json', disk);
    assert.equal(info.status, 0, info.stderr);
    assert.equal((JSON.parse(info.stdout) as Record<string, unknown>)['virtual-size'], 2 * MiB);
    const converted = join(folder, `out${value}.qcow2`);
    assert.equal((await cli('convert', '-O', 'qcow2', disk, converted)).status, 0);
    assert.equal(await qemu.compare(converted, plain), true);
    assert.equal((await cli('compare', disk, plain)).status, 0);
    const map = await cli('map', '--output', 'json', disk);
    assert.equal(map.status, 0, map.stderr);
    assert.ok((JSON.parse(map.stdout) as { data: boolean }[]).every(({ data }) => data));
    const server = await startNbdExport(t, disk, { args: ['--socket', '', '--read-only'] });
    await runOk('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', server.url, plain]);
    await server.process.stop();
  }
  assert.equal((await cli('convert', '-O', 'raw', path, join(folder, 'which.raw'))).status, 1);
});
