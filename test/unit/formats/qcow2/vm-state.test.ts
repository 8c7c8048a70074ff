import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB } from '../../../../formats/core/units.ts';
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  openVmState,
  type VmState,
} from '../../../../formats/image/snapshots.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { openImage } from '../../../support/qcow2-images.ts';
import { randomFor } from '../../../support/random.ts';
import { withVmState } from '../../../support/vm-state.ts';

const CLUSTER = 4 * KiB;
/** What one L1 entry maps: 512 clusters. */
const COVERAGE = CLUSTER * 512;
const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };

async function bytesOf(state: VmState, offset = 0, length = state.size - offset): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await state.readv(offset, IoVec.of(bytes));
  return bytes;
}

test('the VM state of a snapshot is read from any offset, whatever becomes of the disk and of other snapshots', async (t) => {
  const random = randomFor(t);
  const saved = random.bytes(3 * CLUSTER + 123);
  const storage = await withVmState(saved, 64 * KiB);
  const image = await openImage(storage);
  const same = async () => {
    await using state = await openVmState(image, 'running');
    assert.equal(state.size, saved.length);
    assert.deepEqual(await bytesOf(state), saved);
    assert.deepEqual(await bytesOf(state, 5000, 4000), saved.subarray(5000, 9000));
    await assert.rejects(state.readv(saved.length - 1, IoVec.of(new Uint8Array(2))), { code: 'INVALID' });
  };
  await same();
  await image.writev(0, IoVec.of(new Uint8Array(64 * KiB).fill(9)));
  await same();
  await createSnapshot(image, 'beside');
  await applySnapshot(image, 'running');
  await same();
  await createSnapshot(image, 'after');
  await deleteSnapshot(image, 'beside');
  await deleteSnapshot(image, 'after');
  await same();
  const state = await openVmState(image, 'running');
  await assert.rejects(deleteSnapshot(image, 'running'), { code: 'LOCKED' });
  await state.close();
  await assert.rejects(state.readv(0, IoVec.of(new Uint8Array(1))), { code: 'CLOSED' });
  await deleteSnapshot(image, 'running');
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('a snapshot of the disk alone has a VM state of no bytes; one that claims more than its table maps is refused', async () => {
  const storage = await withVmState(new Uint8Array(CLUSTER).fill(1), 64 * KiB);
  const file = new Qcow2File(storage.toBytes());
  const image = await openImage(storage, { readOnly: true });
  assert.equal((await openVmState(image, '1')).size, CLUSTER);
  await image.close();
  const at = Number(file.u64(64));
  file.setU64(at + 40, BigInt(5 * COVERAGE));
  const long = await openImage(new MemoryStorage({ bytes: file.bytes }), { readOnly: true });
  await assert.rejects(openVmState(long, '1'), { code: 'CORRUPT', field: 'l1Size', offset: at + 8 });
  file.setU64(at + 40, 0n);
  const alone = await openImage(new MemoryStorage({ bytes: file.bytes }), { readOnly: true });
  assert.equal((await openVmState(alone, '1')).size, 0);
  await assert.rejects(openVmState(alone, 'none'), { code: 'NOT_FOUND' });
});
