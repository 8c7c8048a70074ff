/** Dirty bitmaps over NBD: what libnbd sees of ours beside what it sees of qemu-nbd's. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nbdMap, startNbdExport, startQemuNbd } from '../../support/nbd.ts';
import { run, runOk } from '../../support/process.ts';
import { qemu, qemuIo } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';

const MiB = 1024 * 1024;
const needs = requires.nbdinfo() || requires.qemuNbd();

test('libnbd: bitmaps are those of qemu-nbd -B, in maps and in the list of contexts', { skip: needs }, async (t) => {
  const disk = await qemu.create(t, { size: 100 * MiB + 512 });
  await qemu.img('bitmap', '--add', '-g', '512', disk, 'fine');
  await qemu.img('bitmap', '--add', disk, 'with blanks: ü');
  await qemu.img('bitmap', '--add', '--disable', disk, 'empty');
  // Thousands of runs, more than one reply has; and the end of the disk.
  await qemu.io(disk, ...Array.from({ length: 20 }, (_, i) => `write ${i * 3 * MiB} 70k`), `write ${100 * MiB} 512`);
  await qemu.io(disk, ...Array.from({ length: 3000 }, (_, i) => `write ${70 * MiB + i * 4096} 512`));

  const ours = await startNbdExport(t, disk, { args: ['--socket', '', '--read-only'] });
  for (const name of ['fine', 'with blanks: ü', 'empty']) {
    const context = `qemu:dirty-bitmap:${name}`;
    const theirs = await startQemuNbd(t, disk, 'qcow2', '-r', '-B', name);
    const map = await nbdMap(ours.url, context);
    assert.deepEqual(map, await nbdMap(theirs.url, context), name);
    if (name === 'fine') assert.ok(map.length > 6000, `${map.length} runs`);
    await theirs.process.stop();
  }
  const listed = JSON.parse(await runOk('nbdinfo', ['--json', ours.url])) as { exports: { contexts: string[] }[] };
  assert.deepEqual(listed.exports[0]?.contexts, [
    'base:allocation',
    'qemu:allocation-depth',
    'qemu:dirty-bitmap:fine',
    'qemu:dirty-bitmap:with blanks: ü',
    'qemu:dirty-bitmap:empty',
  ]);
  await ours.process.stop();

  const chosen = await startNbdExport(t, disk, { args: ['--socket', '', '--read-only', '-B', 'empty'] });
  const one = JSON.parse(await runOk('nbdinfo', ['--json', chosen.url])) as { exports: { contexts: string[] }[] };
  assert.deepEqual(one.exports[0]?.contexts, ['base:allocation', 'qemu:allocation-depth', 'qemu:dirty-bitmap:empty']);
});

test('of an image that is written to only disabled bitmaps are shown, and those that are enabled note what clients write', {
  skip: needs,
}, async (t) => {
  const disk = await qemu.create(t, { size: 8 * MiB });
  await qemu.img('bitmap', '--add', disk, 'on');
  await qemu.img('bitmap', '--add', disk, 'off');
  await qemu.io(disk, 'write 1M 64k');
  await qemu.img('bitmap', '--disable', disk, 'off');
  await qemu.img('bitmap', '--clear', disk, 'on');

  const writable = await startNbdExport(t, disk);
  const { stdout } = await run('nbdinfo', ['--json', writable.url]);
  assert.deepEqual((JSON.parse(stdout) as { exports: { contexts: string[] }[] }).exports[0]?.contexts, [
    'base:allocation',
    'qemu:allocation-depth',
    'qemu:dirty-bitmap:off',
  ]);
  await qemuIo(writable.url, ['write 4M 64k'], '-f', 'raw');
  const off = await nbdMap(writable.url, 'qemu:dirty-bitmap:off');
  assert.deepEqual(
    off.filter(({ type }) => type === 1).map(({ offset }) => offset),
    [MiB],
  );
  assert.equal((await writable.process.stop()).status, 0);

  const refused = startNbdExport(t, disk, { args: ['--socket', '', '--bitmap', 'on'] });
  await assert.rejects(refused, /bitmap "on" takes note of writes: it changes with the image \(INVALID\)/);
  const theirs = await startQemuNbd(t, disk, 'qcow2', '-r', '-B', 'on');
  const on = await nbdMap(theirs.url, 'qemu:dirty-bitmap:on');
  assert.deepEqual(
    on.filter(({ type }) => type === 1).map(({ offset, length }) => [offset, length]),
    [[4 * MiB, 64 * 1024]],
  );
  await qemu.assertClean(disk);
});
