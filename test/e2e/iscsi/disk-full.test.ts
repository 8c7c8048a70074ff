/** The file system under the image fills up: the initiator is told so, nothing is damaged, and writing goes on once there is room. */

import assert from 'node:assert/strict';
import { rm, statfs, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { IscsiInitiator } from '../../support/iscsi-initiator.ts';
import { type LunetteExport, startExport } from '../../support/lunette-export.ts';
import { run, runOk } from '../../support/process.ts';
import { qemu, qemuIoResult } from '../../support/qemu.ts';
import { cannotRun, requires } from '../../support/requires.ts';
import { temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

const skip = requires.qemuIscsi() || requires.root() || requires.e2fsprogs();

/** A file system of its own of this size, or undefined where mounting is not allowed. */
async function smallFilesystem(t: TestContext, type: 'tmpfs' | 'ext4', size: number): Promise<string | undefined> {
  let folder = '';
  // Registered first, because it must be unmounted before the folder is removed.
  t.after(() => run('umount', ['-l', folder]));
  folder = await temporaryDirectory(t);
  let mounted: { status: number; stderr: string };
  if (type === 'tmpfs') {
    mounted = await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'lunette-test', folder]);
  } else {
    const image = await temporaryFile(t, 'filesystem', '');
    await truncate(image, size);
    await runOk('mke2fs', ['-q', '-F', '-t', 'ext4', '-m', '0', '-O', '^has_journal', image]);
    mounted = await run('mount', ['-o', 'loop', image, folder]);
  }
  if (mounted.status !== 0) {
    cannotRun(t, `cannot mount a ${type}: ${mounted.stderr.trim()}`);
    return undefined;
  }
  return folder;
}

/** Takes away room until `left` bytes are free. */
async function ballast(folder: string, left: number): Promise<string> {
  const path = join(folder, 'ballast');
  const { bavail, bsize } = await statfs(folder);
  await writeFile(path, Buffer.alloc(bavail * bsize - left, 1));
  return path;
}

/** DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT: key, ASC and ASCQ. */
const SPACE_ALLOCATION_FAILED = '07/27/07';

/** The sense data of a WRITE(10) to what is not allocated yet. */
async function senseOfWrite(target: LunetteExport, offset: number, length: number): Promise<string> {
  const initiator = await IscsiInitiator.connect({ port: target.port, target: target.iqn });
  const cdb = Buffer.alloc(10);
  cdb[0] = 0x2a;
  cdb.writeUInt32BE(offset / 512, 2);
  cdb.writeUInt16BE(length / 512, 7);
  const { status, sense } = await initiator.command(cdb, { dataOut: Buffer.alloc(length, 1) });
  await initiator.close();
  assert.equal(status, 2);
  return [(sense[2] as number) & 0x0f, sense[12] as number, sense[13] as number]
    .map((byte) => byte.toString(16).padStart(2, '0'))
    .join('/');
}

for (const [type, format] of [
  ['tmpfs', 'qcow2'],
  ['ext4', 'qcow2'],
  ['ext4', 'raw'],
] as const) {
  test(`a full ${type} under a ${format} image`, { skip, timeout: 120_000 }, async (t) => {
    const folder = await smallFilesystem(t, type, 48 * MiB);
    if (folder === undefined) return;
    const size = 32 * MiB;
    const image = join(folder, `disk.${format}`);
    await qemu.create(t, { path: image, format, size });
    const model = await temporaryFile(t, 'model.raw', '');
    await truncate(model, size);
    const target = await startExport(t, image, { args: ['-f', format] });
    const filler = await ballast(folder, 6 * MiB);

    // Writes 64 KiB at a time until one fails. Those before it are in the model, those that failed are undefined there.
    const failed: number[] = [];
    const step = 64 * KiB;
    let at = 0;
    for (let number = 0; number < 200 && failed.length < 5; number++, at += step) {
      const command = `write -P ${(number % 250) + 1} ${at} ${step}`;
      const result = await qemuIoResult(target.url, [command, 'flush'], '-f', 'raw');
      const text = result.stdout + result.stderr;
      if (/failed/.test(text)) {
        assert.match(text, /No space left on device/, text);
        if (failed.length === 0) assert.equal(await senseOfWrite(target, at, step), SPACE_ALLOCATION_FAILED);
        failed.push(at);
      } else {
        await qemu.io(model, command);
      }
    }
    assert.equal(failed.length, 5, 'the file system was to fill up');
    const firstFailed = failed[0] as number;
    assert.ok(firstFailed >= 3 * MiB, `failed at ${firstFailed}, with 6 MiB free at the start`);

    // What was written is readable, while full.
    for (let offset = 0; offset < firstFailed; offset += 16 * step) {
      await qemu.io(target.url, `read -P ${((offset / step) % 250) + 1} ${offset} ${step}`);
    }

    await rm(filler);
    const commands = failed.map((offset, number) => `write -P ${200 + number} ${offset} ${step}`);
    const more = [...commands, `write -P 99 ${20 * MiB} 4M`, 'flush'];
    await qemu.io(target.url, ...more);
    await qemu.io(model, ...more);
    assert.ok(await qemu.compare(target.url, model, '-f', 'raw', '-F', 'raw'));
    await target.stop();
    if (format === 'qcow2') await qemu.assertClean(image);
    assert.ok(await qemu.compare(image, model, '-f', format, '-F', 'raw'));
  });
}
