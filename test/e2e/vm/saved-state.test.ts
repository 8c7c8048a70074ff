/** A machine that QEMU saved inside of its image (`savevm`) goes on after the disk was exported, written and changed by others. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { MiB } from '../../../formats/core/units.ts';
import { openVmState } from '../../../formats/image/snapshots.ts';
import { ImageHost } from '../../../formats/open.ts';
import { cli } from '../../support/cli.ts';
import { buildCountingGuest, startCountingGuest } from '../../support/counting-guest.ts';
import { startExport } from '../../support/lunette-export.ts';
import { startNbdExport } from '../../support/nbd.ts';
import { runOk } from '../../support/process.ts';
import { assertClean, create, info, qemuImg, qemuIo } from '../../support/qemu.ts';
import { requirePrograms } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const PROGRAMS = ['qemu-system-x86_64', 'busybox', 'cpio', 'depmod', 'modprobe', 'qemu-img', 'qemu-io'];
const SAVED = 'saved state';

test('a machine saved with savevm goes on with what it had in memory and on its disk, after the disk was exported and written', {
  skip: requirePrograms(PROGRAMS, 'packages for the VM'),
  timeout: 300_000,
}, async (t) => {
  const guest = await buildCountingGuest(t);
  const path = await create(t, { size: 64 * MiB });
  const start = join(await temporaryDirectory(t), 'start');
  await writeFile(start, Buffer.from('OLDBYTES'.padEnd(512, '.')));
  await qemuIo(path, [`write -s ${start} 0 512`, 'write -P 5 8M 1M']);

  const before = await startCountingGuest(t, guest, path);
  await before.waitForCounts(12); // it has written to its disk by then
  assert.equal(await before.monitor(`savevm "${SAVED}"`), '');
  await before.waitForCounts(before.counts.length + 11); // and again
  await before.quit();
  assert.equal(before.counts.at(-1)?.disk, 'OLDBYTES');
  await assertClean(path);

  // The state is there, as QEMU wrote it.
  const [snapshot] = (await info(path)).snapshots as { 'vm-state-size': number }[];
  const stateSize = snapshot?.['vm-state-size'] ?? 0;
  const ours = JSON.parse((await cli('snapshot', 'list', '--json', path)).stdout) as { 'vm-state-size': number }[];
  assert.deepEqual([ours.length, ours[0]?.['vm-state-size']], [1, stateSize]);
  const stateOf = async (): Promise<Buffer> => {
    await using image = await new ImageHost().open(path, { readOnly: true });
    await using state = await openVmState(image, SAVED);
    const bytes = Buffer.alloc(state.size);
    await state.readv(0, IoVec.of(bytes));
    return bytes;
  };
  const state = await stateOf();
  assert.equal(state.length, stateSize);
  assert.equal(state.toString('latin1', 0, 4), 'QEVM', 'a migration stream begins so');

  // Others write to the disk, over NBD and over iSCSI.
  await writeFile(start, Buffer.from('NEWBYTES'.padEnd(512, '.')));
  const nbd = await startNbdExport(t, path);
  await qemuIo(nbd.url, [`write -s ${start} 0 512`, 'write -P 6 1M 4M', 'write -z -u 8M 512k', 'flush'], '-f', 'raw');
  await nbd.process.stop();
  await assertClean(path);
  const iscsi = await startExport(t, path);
  await qemuIo(iscsi.exports[0]?.url as string, ['write -P 7 30M 2M', 'flush'], '-f', 'raw');
  await iscsi.stop();
  await assertClean(path);
  // And other snapshots come and go beside it.
  for (const args of [
    ['create', path, 'beside'],
    ['apply', path, 'beside'],
    ['delete', path, 'beside'],
  ]) {
    const { status, stderr } = await cli('snapshot', ...args);
    assert.equal(status, 0, stderr);
    await assertClean(path);
  }
  assert.ok((await stateOf()).equals(state), 'the saved state has not changed');

  const after = await startCountingGuest(t, guest, path, '-loadvm', SAVED);
  await after.waitForCounts(11);
  await after.quit();
  assert.ok(!after.booted, 'it was not booted anew');
  const saved = before.counts.findIndex(({ count }) => count === (after.counts[0]?.count ?? 0) - 1);
  assert.ok(saved >= 10, `it goes on from where it was saved: ${after.counts[0]?.count} after ${before.counts.length}`);
  assert.deepEqual(
    after.counts.map(({ count }) => count),
    after.counts.map((_, i) => (after.counts[0]?.count ?? 0) + i),
    'it counts on without a gap',
  );
  assert.ok(
    after.counts.slice(1).every(({ disk }) => disk === 'OLDBYTES'),
    'on the disk of that moment',
  );
  await assertClean(path);
  await qemuImg('snapshot', '-d', SAVED, path);
  await assertClean(path);
  await runOk('qemu-io', ['-c', 'read -P 5 8M 1M', path]);
});
