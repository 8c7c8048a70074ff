import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { MiB } from '../../formats/core/units.ts';
import { ImageHost } from '../../formats/open.ts';
import { writeStreamOptimized } from '../../formats/vmdk/stream-writer.ts';
import { newFile } from '../support/new-file.ts';
import { runOk } from '../support/process.ts';
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
