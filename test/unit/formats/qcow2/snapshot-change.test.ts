import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB } from '../../../../formats/core/units.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../../../formats/image/snapshots.ts';
import { nextSnapshotId } from '../../../../formats/qcow2/snapshot-write.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { PowerCutStorage } from '../../../support/power-cut-storage.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';
import { randomFor } from '../../../support/random.ts';

const CLEAN = { corruptions: [], leaks: [], missingCopied: [] };
const DIRTY_BIT = 1n;

function filled(value: number, length = 64 * KiB): IoVec {
  return IoVec.of(new Uint8Array(length).fill(value));
}

test('ids go on from the largest number that an id begins with', () => {
  assert.equal(nextSnapshotId([]), '1');
  assert.equal(nextSnapshotId([{ id: '3' }, { id: '12x' }, { id: 'vm' }, { id: '' }]), '13');
  assert.equal(nextSnapshotId([{ id: '9007199254740993' }]), '9007199254740994');
});

test('a snapshot keeps what the disk showed, and comes back with apply, in a clean image', async () => {
  const storage = await createImage({ size: 64 * KiB, clusterSize: 4096 });
  const image = await openImage(storage);
  await image.writev(0, filled(1));
  const taken = await createSnapshot(image, 'first', { dateMs: 1_700_000_000_250 });
  assert.deepEqual(
    [taken.id, taken.name, taken.dateSeconds, taken.dateNanoseconds, taken.diskSize, taken.vmStateSize, taken.icount],
    ['1', 'first', 1_700_000_000, 250_000_000, 64 * KiB, 0, undefined],
  );
  await image.writev(4096, filled(2, 8192));
  await applySnapshot(image, 'first');
  assert.deepEqual(await readAll(image), new Uint8Array(64 * KiB).fill(1));
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  assert.deepEqual(file.inspect(), CLEAN);
  assert.equal(file.u64(72) & DIRTY_BIT, 0n);
});

test('deleting the only snapshot gives its space back and lets clusters be written in place again', async () => {
  const storage = await createImage({ size: 64 * KiB, clusterSize: 4096 });
  const image = await openImage(storage);
  await image.writev(0, filled(1));
  await createSnapshot(image, 'one');
  await deleteSnapshot(image, 'one');
  await readAll(image); // the tables are in memory then
  assert.ok(image.tryWritev(4096, filled(3, 4096)), 'in place');
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  assert.deepEqual(file.inspect(), CLEAN);
  assert.equal(file.u32(60), 0);
});

test('names may be the same, empty or odd; an id and a name are told apart on request', async () => {
  const storage = await createImage({ size: 16 * KiB, clusterSize: 4096 });
  const image = await openImage(storage);
  const names = ['same', 'same', '', '1', 'a\n\u0000ü', 'x'.repeat(65535)];
  for (const [i, name] of names.entries()) {
    await image.writev(0, filled(i + 1, 16 * KiB));
    await createSnapshot(image, name);
  }
  const first = async () => (await readAll(image))[0];
  await applySnapshot(image, { name: '1' });
  assert.equal(await first(), 4);
  await applySnapshot(image, '1');
  assert.equal(await first(), 1);
  await applySnapshot(image, '');
  assert.equal(await first(), 3);
  await deleteSnapshot(image, 'same');
  await applySnapshot(image, { name: 'same' });
  assert.equal(await first(), 2);
  await assert.rejects(deleteSnapshot(image, { id: 'same' }), { code: 'NOT_FOUND' });
  await assert.rejects(createSnapshot(image, 'x'.repeat(65536)), { code: 'TOO_LARGE' });
  const snapshots = (await image.layers[0]?.describe())?.snapshots ?? [];
  assert.deepEqual(
    snapshots.map(({ id, name }) => [id, name]),
    names.map((name, i) => [String(i + 1), name]).slice(1),
  );
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('extra data that is not understood, VM state and VM clock stay with their snapshot', async () => {
  const storage = await createImage({ size: 16 * KiB, clusterSize: 4096 });
  let image = await openImage(storage);
  await image.writev(0, filled(1, 16 * KiB));
  await createSnapshot(image, 'unknown extra data here');
  await image.close();
  // A later version's entry: 40 bytes of extra data, with a VM state of 5 GiB; the name gives the room.
  const file = new Qcow2File(storage.toBytes());
  const at = Number(file.u64(64));
  file.bytes[at + 15] = 'unknown extra data here'.length - 16;
  file.setU32(at + 36, 40);
  file.setU64(at + 24, 0x0123456789abcdefn);
  file.setU64(at + 40, 5n << 30n);
  file.setU64(at + 64, 0x1122334455667788n);
  file.setU64(at + 72, 0x99aabbccddeeff00n);
  const entry = file.bytes.slice(at, at + 88);
  const again = new MemoryStorage({ bytes: file.bytes });
  image = await openImage(again);
  await createSnapshot(image, 'two');
  await createSnapshot(image, 'three');
  await deleteSnapshot(image, 'two');
  await image.close();
  const table = Number(new Qcow2File(again.toBytes()).u64(64));
  assert.notEqual(table, at);
  assert.deepEqual(again.toBytes().slice(table, table + 88), entry);
});

test('a snapshot of another size brings its size back, and listeners hear of it', async () => {
  const storage = await createImage({ size: 16 * KiB, clusterSize: 4096 });
  const image = await openImage(storage);
  const sizes: number[] = [];
  image.onResize((size) => sizes.push(size));
  await image.writev(0, filled(1, 16 * KiB));
  await createSnapshot(image, 'small');
  await image.resize(4096 * 1024); // needs a longer L1 table
  await image.writev(4096 * 1000, filled(2, 4096));
  await createSnapshot(image, 'large');
  await image.resize(8 * KiB, { shrink: true });
  await applySnapshot(image, 'small');
  assert.deepEqual(await readAll(image), new Uint8Array(16 * KiB).fill(1));
  await applySnapshot(image, 'large');
  const large = await readAll(image);
  assert.deepEqual([large.length, large[4096 * 1000], large[16 * KiB]], [4096 * 1024, 2, 0]);
  assert.deepEqual(sizes, [4096 * 1024, 8 * KiB, 16 * KiB, 4096 * 1024]);
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('a refcount that cannot count another reference refuses the snapshot by name and changes nothing', async () => {
  const storage = await createImage({ size: 16 * KiB, clusterSize: 4096, refcountBits: 1 });
  const image = await openImage(storage);
  await image.writev(0, filled(1, 16 * KiB));
  await assert.rejects(createSnapshot(image, 'one'), { code: 'TOO_LARGE', message: /refcounts of 1 bits/ });
  assert.ok(image.tryWritev(0, filled(2, 4096)), 'still written in place');
  await image.close();
  assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
});

test('a snapshot of an image without data, or without size, is one', async () => {
  for (const size of [0, 64 * KiB]) {
    const storage = await createImage({ size, clusterSize: 4096 });
    const image = await openImage(storage);
    await createSnapshot(image, 'nothing');
    await applySnapshot(image, 'nothing');
    await deleteSnapshot(image, 'nothing');
    await image.close();
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN);
  }
});

test('a write that fails for want of space at any step of a change leaves the old state, clean', async (t) => {
  const actions = {
    create: (image: Awaited<ReturnType<typeof openImage>>) => createSnapshot(image, 'new'),
    apply: (image: Awaited<ReturnType<typeof openImage>>) => applySnapshot(image, '1'),
    delete: (image: Awaited<ReturnType<typeof openImage>>) => deleteSnapshot(image, '1'),
  };
  const base = await createImage({ size: 300 * 512, clusterSize: 512, refcountBits: 64 });
  const first = await openImage(base);
  await first.writev(0, filled(1, 200 * 512));
  await createSnapshot(first, 'one');
  await first.writev(50 * 512, filled(2, 100 * 512));
  await first.close();
  for (const [name, act] of Object.entries(actions)) {
    let refused = 0;
    for (let room = 0; ; room++) {
      const storage = new PowerCutStorage(randomFor(t, room), base.toBytes());
      storage.maxSize = storage.size + room * 512;
      const image = await openImage(storage);
      const before = await readAll(image);
      const done = await act(image).then(
        () => true,
        (error: { code: string }) => {
          assert.equal(error.code, 'NO_SPACE', name);
          return false;
        },
      );
      if (!done) assert.deepEqual(await readAll(image), before, `${name}, room for ${room} clusters`);
      await image.close();
      assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), CLEAN, `${name}, room for ${room} clusters`);
      const layer = await openLayer(new MemoryStorage({ bytes: storage.toBytes() }), { metadataOnly: true });
      const count = (await layer.describe()).snapshots?.length ?? 0;
      assert.equal(count, done && name === 'create' ? 2 : done && name === 'delete' ? 0 : 1, `${name}, ${room}`);
      if (done) break;
      refused++;
    }
    if (name === 'create') assert.ok(refused > 0, 'there was a step to fail');
  }
});
