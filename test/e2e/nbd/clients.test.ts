/** Clients that we did not write against `lunette export --transport nbd`. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { nbdMap, startNbdExport, startQemuNbd } from '../../support/nbd.ts';
import { run, runOk } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { Random } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;
const needs = requires.nbdinfo() || requires.qemuNbd() || requires.fio();

test('libnbd: the maps of all contexts are those of qemu-nbd, snapshots can be read, copies are the same both ways', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const base = await qemu.create(t, { path: join(folder, 'base.qcow2'), size: 8 * MiB });
  await qemu.io(base, 'write -P 1 0 1M', 'write -P 2 3M 64k');
  const disk = await qemu.create(t, { path: join(folder, 'disk.qcow2'), backing: base });
  await qemu.io(disk, 'write -P 3 512k 128k', 'write -z 3M 64k', 'write -P 4 6M 1M');
  await qemu.img('snapshot', '-c', 'before', disk);
  await qemu.io(disk, 'write -P 5 0 64k', 'discard 6M 512k');

  const ours = await startNbdExport(t, disk, { args: ['--socket', '', '--read-only'] });
  const theirs = await startQemuNbd(t, disk, 'qcow2', '-r', '-A');
  for (const context of ['base:allocation', 'qemu:allocation-depth']) {
    assert.deepEqual(await nbdMap(ours.url, context), await nbdMap(theirs.url, context), context);
  }
  assert.match(await runOk('nbdinfo', ['--list', ours.url]), /export="disk@before"/);
  const before = ours.url.replace('/disk?', '/disk@before?');
  const copy = join(folder, 'before.raw');
  await runOk('nbdcopy', [before, copy]);
  const expected = join(folder, 'expected.raw');
  await qemu.img('convert', '-U', '-l', 'before', '-O', 'raw', disk, expected);
  assert.ok((await readFile(copy)).equals(await readFile(expected)));
  assert.ok(await qemu.compare(ours.url, disk, '-U', '-f', 'raw', '-F', 'qcow2'));
  await ours.process.stop();

  const target = await qemu.create(t, { path: join(folder, 'target.qcow2'), size: 8 * MiB });
  const writable = await startNbdExport(t, target);
  await runOk('nbdcopy', [expected, writable.url]);
  const { status } = await writable.process.stop();
  assert.equal(status, 0);
  assert.ok(!existsSync((/socket=(.*)/.exec(writable.url) as RegExpExecArray)[1] as string), 'the socket is removed');
  assert.ok(await qemu.compare(target, expected, '-f', 'qcow2', '-F', 'raw'));
  await qemu.assertClean(target);
});

test('a snapshot is copied as it was, again and again, while the live disk is being written to', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const disk = await qemu.create(t, { path: join(folder, 'disk.qcow2'), size: 16 * MiB });
  await qemu.io(disk, 'write -P 1 0 6M', 'write -P 2 10M 1M');
  await qemu.img('snapshot', '-c', 'a day', disk);
  await qemu.io(disk, 'write -P 3 1M 1M', 'discard 10M 64k');
  const expected = join(folder, 'expected.raw');
  await qemu.img('convert', '-l', 'a day', '-O', 'raw', disk, expected);
  const ours = await startNbdExport(t, disk);
  assert.match(await runOk('nbdinfo', ['--list', ours.url]), /export="disk@a day":[\s\S]*is_read_only: true/);
  const snapshot = ours.url.replace('/disk?', '/disk@a%20day?');
  const load = ['--name=w', '--ioengine=nbd', `--uri=${ours.url}`, '--rw=randwrite', '--bs=4k-128k', '--iodepth=16'];
  const verify = ['--size=16m', '--io_size=48m', '--verify=crc32c', '--do_verify=1'];
  const writing = runOk('fio', [...load, ...verify], { cwd: folder });
  for (let i = 0; i < 3; i++) {
    const copy = join(folder, `copy${i}.raw`);
    await runOk('nbdcopy', [snapshot, copy]);
    assert.ok((await readFile(copy)).equals(await readFile(expected)));
  }
  await writing;
  assert.notEqual((await run('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', snapshot])).status, 0);
  assert.equal((await ours.process.stop()).status, 0);
  await qemu.assertClean(disk);
  assert.ok(await qemu.compare(disk, expected, '-f', 'qcow2', '-F', 'raw').then((same) => !same));
  await qemu.img('snapshot', '-a', 'a day', disk);
  assert.ok(await qemu.compare(disk, expected, '-f', 'qcow2', '-F', 'raw'));
});

test('fio writes and verifies, qemu-io writes, zeroes and discards; several exports are on one port', {
  skip: needs,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const first = await qemu.create(t, { path: join(folder, 'a.qcow2'), size: 16 * MiB });
  const second = join(folder, 'b.raw');
  await writeFile(second, new Random(1).bytes(4 * MiB));
  const ours = await startNbdExport(t, [first, second], { args: ['--listen', '127.0.0.1:0'] });
  const [a = '', b = ''] = ours.urls;
  assert.match(b, /^nbd:\/\/127\.0\.0\.1:\d+\/b$/);
  await runOk(
    'fio',
    [
      '--name=v',
      '--ioengine=nbd',
      `--uri=${a}`,
      '--rw=randwrite',
      '--bs=512-64k',
      '--iodepth=16',
      '--size=8m',
      '--verify=crc32c',
      '--do_verify=1',
    ],
    { cwd: folder },
  );
  await runOk('qemu-io', [
    '-f',
    'raw',
    '-c',
    'write -P 7 1M 1M',
    '-c',
    'write -z -u 1280k 64k',
    '-c',
    'discard 2M 1M',
    '-c',
    'write -f -P 9 2M 4k',
    '-c',
    'flush',
    '-c',
    'read -P 7 1M 256k',
    '-c',
    'read -P 0 1280k 64k',
    '-c',
    'read -P 9 2M 4k',
    b,
  ]);
  assert.equal((await ours.process.stop()).status, 0);
  await qemu.assertClean(first);
  const bytes = await readFile(second);
  assert.deepEqual([bytes[MiB], bytes[MiB + 0x40000], bytes[2 * MiB]], [7, 0, 9]);
});
