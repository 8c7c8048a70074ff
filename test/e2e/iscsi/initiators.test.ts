/** Initiators that are not ours, doing what their users do with them. */

import assert from 'node:assert/strict';
import { copyFile, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { addFiles, assertFilesystemClean, differingFiles, makeExt4, randomFiles } from '../../support/ext4.ts';
import { startExport } from '../../support/lunette-export.ts';
import { run, runOk } from '../../support/process.ts';
import { qemu, qemuIo } from '../../support/qemu.ts';
import { type Random, randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

const tools = requires.libiscsi() || requires.qemuImg();
const initiator = requires.qemuIscsi();

/** A raw file of zeros. */
async function emptyRaw(t: Cleanup, size: number, name = 'model.raw'): Promise<string> {
  const path = await temporaryFile(t, name, '');
  await truncate(path, size);
  return path;
}

/** Writes, zeroes and discards at random places, as qemu-io commands. Patterns are never 0, so that each leaves a trace. */
function randomWrites(random: Random, size: number, count: number): string[] {
  const commands: string[] = [];
  for (let at = 0; at < count; at++) {
    const align = random.pick([512, 4 * KiB, 64 * KiB]);
    const length = align * random.between(1, random.pick([4, 16, 48]));
    const offset = Math.floor(random.below(size - length) / align) * align;
    const pattern = random.between(1, 255);
    commands.push(
      random.pick([
        `write -P ${pattern} ${offset} ${length}`,
        `write -P ${pattern} ${offset} ${length}`,
        `write -f -P ${pattern} ${offset} ${length}`,
        `write -z ${offset} ${length}`,
        `write -z -u ${offset} ${length}`,
      ]),
    );
  }
  return [...commands, 'flush'];
}

describe("libiscsi's tools", { skip: tools }, () => {
  test('iscsi-ls lists every target with its LUN and size', async (t) => {
    const a = await qemu.create(t, { size: 64 * MiB, path: 'first.qcow2' });
    const b = await emptyRaw(t, 32 * MiB, 'second.raw');
    const target = await startExport(t, [a, b]);
    const listing = await runOk('iscsi-ls', ['-s', `iscsi://127.0.0.1:${target.port}`]);
    for (const { iqn } of target.exports) assert.ok(listing.includes(`Target:${iqn}`), listing);
    assert.equal(listing.match(/Lun:0\s+Type:DIRECT_ACCESS/g)?.length, 2, listing);
    assert.match(listing, /Size:(63|64|67)M/);
    await target.stop();
  });

  test('iscsi-inq names the device, its serial number and its pages', async (t) => {
    const image = await qemu.create(t, { size: 64 * MiB });
    const target = await startExport(t, image);
    const standard = await runOk('iscsi-inq', [target.url]);
    assert.match(standard, /Vendor:LUNETTE/i);
    assert.match(standard, /Peripheral Device Type:DIRECT_ACCESS/);
    const pages = await runOk('iscsi-inq', ['-e', '1', '-c', '0', target.url]);
    for (const page of ['0x00', '0x80', '0x83', '0xb0', '0xb1', '0xb2']) assert.ok(pages.includes(page), pages);
    const identity = await runOk('iscsi-inq', ['-e', '1', '-c', String(0x83), target.url]);
    assert.match(identity, /NAA|T10|EUI/);
    await target.stop();
  });

  test('iscsi-readcapacity16 gives the size to the block, thin and reading zeros where unmapped', async (t) => {
    const image = await qemu.create(t, { size: 100 * MiB + 512 });
    const target = await startExport(t, image);
    const text = await runOk('iscsi-readcapacity16', [target.url]);
    assert.match(text, new RegExp(`Total size:${100 * MiB + 512}`), text);
    assert.match(text, /RETURNED LOGICAL BLOCK ADDRESS:\s*204800/i, text);
    assert.match(text, /LBPME:1 LBPRZ:1/, text);
    await target.stop();
  });

  test('the device keeps its identity when it is exported again', async (t) => {
    const image = await qemu.create(t, { size: 64 * MiB });
    const identities: string[] = [];
    for (let time = 0; time < 2; time++) {
      const target = await startExport(t, image);
      identities.push(await runOk('iscsi-inq', ['-e', '1', '-c', String(0x83), target.url]));
      await target.stop();
    }
    assert.equal(identities[0], identities[1]);
  });
});

describe("QEMU's initiator", { skip: initiator }, () => {
  test('an image in a drive is a CD or DVD that reads as the image', async (t) => {
    const image = await temporaryFile(t, 'disc.iso', randomFor(t).bytes(3 * MiB));
    const target = await startExport(t, image, { args: ['--optical', '-f', 'raw'] });
    assert.match(await runOk('iscsi-ls', ['-s', `iscsi://127.0.0.1:${target.port}`]), /CD_DVD|MMC|CD/);
    assert.match(await runOk('iscsi-inq', [target.url]), /Peripheral Device Type:MMC/);
    await runOk('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', target.url, image]);
    const written = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 2k', target.url]);
    assert.notEqual(written.status, 0, 'a disc took a write');
    await target.stop();
  });

  for (const format of ['qcow2', 'raw', 'vmdk', 'vdi'] as const) {
    test(`qemu-img compare and convert read a ${format} image through it`, async (t) => {
      const random = randomFor(t);
      const size = 40 * MiB;
      const image = format === 'raw' ? await emptyRaw(t, size, 'disk.raw') : await qemu.create(t, { format, size });
      await qemu.io(image, ...randomWrites(random, size, 40));
      const model = await temporaryFile(t, 'model.raw');
      await qemu.convert(image, model, '-f', format, '-O', 'raw');
      const target = await startExport(t, image, { args: ['-f', format] });
      assert.ok(await qemu.compare(target.url, model, '-f', 'raw', '-F', 'raw'));
      const copy = await temporaryFile(t, 'copy.qcow2');
      await qemu.convert(target.url, copy, '-f', 'raw', '-O', 'qcow2');
      assert.ok(await qemu.compare(copy, model, '-f', 'qcow2', '-F', 'raw'));
      await target.stop();
    });
  }

  const WRITTEN = [
    ...[512, 64 * KiB, 2 * MiB].map((clusterSize) => ({
      what: `a qcow2 of ${clusterSize}-byte clusters`,
      make: { format: 'qcow2', clusterSize },
    })),
    ...['monolithicSparse', 'twoGbMaxExtentSparse', 'monolithicFlat'].map((subformat) => ({
      what: `a ${subformat} VMDK`,
      make: { format: 'vmdk', options: { subformat } },
    })),
    ...['off', 'on'].map((fixed) => ({
      what: `a ${fixed === 'on' ? 'fixed' : 'dynamic'} VDI`,
      make: { format: 'vdi', options: { static: fixed } },
    })),
  ] as const;
  for (const { what, make } of WRITTEN) {
    test(`qemu-io writes, zeroes and discards in ${what}`, async (t) => {
      const random = randomFor(t);
      const size = 24 * MiB + 512 * 3;
      const image = await qemu.create(t, { ...make, size });
      const model = await emptyRaw(t, size);
      const target = await startExport(t, image);
      for (let round = 0; round < 3; round++) {
        const commands = randomWrites(random, size, 40);
        await qemu.io(target.url, ...commands);
        await qemu.io(model, ...commands);
        assert.ok(await qemu.compare(target.url, model, '-f', 'raw', '-F', 'raw'), `round ${round}, while exported`);
      }
      await target.stop();
      if (!what.includes('Flat')) await qemu.assertClean(image);
      assert.ok(await qemu.compare(image, model, '-f', make.format, '-F', 'raw'));
    });
  }

  test('an image with a backing file, a snapshot and compressed clusters takes writes, and loses none of the three', async (t) => {
    const random = randomFor(t);
    const size = 32 * MiB;
    const folder = await temporaryDirectory(t);
    const model = await emptyRaw(t, size);
    await qemu.io(model, ...randomWrites(random, size, 60));
    const base = join(folder, 'base.qcow2');
    await qemu.convert(model, base, '-f', 'raw', '-O', 'qcow2', '-c');
    const image = await qemu.create(t, { path: join(folder, 'top.qcow2'), backing: 'base.qcow2' });
    const before = randomWrites(random, size, 20);
    await qemu.io(image, ...before);
    await qemu.io(model, ...before);
    await qemu.img('snapshot', '-c', 'first', image);
    const atSnapshot = join(folder, 'snapshot.raw');
    await copyFile(model, atSnapshot);
    const baseBefore = await runOk('sha256sum', [base]);

    const target = await startExport(t, image);
    const commands = randomWrites(random, size, 60);
    await qemu.io(target.url, ...commands);
    await qemu.io(model, ...commands);
    assert.ok(await qemu.compare(target.url, model, '-f', 'raw', '-F', 'raw'));
    await target.stop();

    await qemu.assertClean(image);
    assert.ok(await qemu.compare(image, model, '-f', 'qcow2', '-F', 'raw'));
    assert.equal(await runOk('sha256sum', [base]), baseBefore);
    const restored = join(folder, 'restored.raw');
    await qemu.convert(image, restored, '-l', 'first', '-O', 'raw');
    assert.ok(await qemu.compare(restored, atSnapshot, '-f', 'raw', '-F', 'raw'));
  });

  test('qemu-img cannot write to an image that is exported, and a read-only export refuses writes', async (t) => {
    const image = await qemu.create(t, { size: 16 * MiB });
    const writable = await startExport(t, image);
    const locked = await run('qemu-io', ['-c', 'write 0 64k', image]);
    assert.notEqual(locked.status, 0);
    assert.match(locked.stderr, /lock/i);
    await writable.stop();
    const readOnly = await startExport(t, image, { args: ['--read-only'] });
    const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 64k', readOnly.url]);
    assert.match(refused.stdout + refused.stderr, /read.?only|write.?protect|not permitted/i);
    await qemuIo(readOnly.url, ['read -P 0 0 64k'], '-r');
    await readOnly.stop();
  });

  test('what is written to an --ephemeral export is gone afterwards', async (t) => {
    const image = await qemu.create(t, { size: 16 * MiB });
    await qemu.io(image, 'write -P 1 0 1M');
    const before = await runOk('sha256sum', [image]);
    const target = await startExport(t, image, { args: ['--ephemeral'] });
    await qemu.io(target.url, 'write -P 2 0 64k', 'flush');
    await qemu.io(target.url, 'read -P 2 0 64k', 'read -P 1 64k 64k');
    await target.stop();
    assert.equal(await runOk('sha256sum', [image]), before);
  });
});

describe('a guest file system', { skip: initiator || requires.e2fsprogs() }, () => {
  test('is written through the export, changed, and read back whole', { timeout: 120_000 }, async (t) => {
    const random = randomFor(t);
    const size = 96 * MiB;
    const files = randomFiles(random, 150, 2 * MiB);
    const source = await makeExt4(t, size, files);
    await assertFilesystemClean(source);
    const image = await qemu.create(t, { size });
    const target = await startExport(t, image);

    await qemu.convert(source, target.url, '-n', '-f', 'raw', '-O', 'raw');
    const first = await temporaryFile(t, 'first.raw');
    await qemu.convert(target.url, first, '-f', 'raw', '-O', 'raw');
    await assertFilesystemClean(first);
    assert.deepEqual(await differingFiles(t, first, files), []);

    // What a guest does next: new files, and the changed disk written over the old one.
    const more = randomFiles(random, 40, MiB);
    const added = new Map([...more].map(([name, bytes]) => [`added/${name}`, bytes]));
    const changed = await temporaryFile(t, 'changed.raw');
    await copyFile(first, changed);
    await addFiles(t, changed, added);
    await assertFilesystemClean(changed);
    await qemu.convert(changed, target.url, '-n', '-f', 'raw', '-O', 'raw');
    await target.stop();

    await qemu.assertClean(image);
    assert.ok(await qemu.compare(image, changed, '-f', 'qcow2', '-F', 'raw'));
    const again = await startExport(t, image, { args: ['--read-only'] });
    const last = await temporaryFile(t, 'last.raw');
    await qemu.convert(again.url, last, '-f', 'raw', '-O', 'raw');
    await again.stop();
    await assertFilesystemClean(last);
    assert.deepEqual(await differingFiles(t, last, new Map([...files, ...added])), []);
  });

  test('is read from a compressed image', async (t) => {
    const files = randomFiles(randomFor(t), 60, MiB);
    const source = await makeExt4(t, 64 * MiB, files);
    const image = await temporaryFile(t, 'compressed.qcow2');
    await qemu.convert(source, image, '-f', 'raw', '-O', 'qcow2', '-c');
    const target = await startExport(t, image, { args: ['--ephemeral'] });
    const copy = await temporaryFile(t, 'copy.raw');
    await qemu.convert(target.url, copy, '-f', 'raw', '-O', 'raw');
    await target.stop();
    await assertFilesystemClean(copy);
    assert.deepEqual(await differingFiles(t, copy, files), []);
  });
});
