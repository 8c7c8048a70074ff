import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB } from '../../../../formats/core/units.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';

/** An image with snapshots of these ids and names, each with its number in every byte. */
async function imageWith(snapshots: readonly (readonly [string, string])[]): Promise<MemoryStorage> {
  let storage = await createImage({ size: 64 * KiB, clusterSize: 4096 });
  for (const [index, [id, name]] of snapshots.entries()) {
    const image = await openImage(storage);
    await image.writev(0, IoVec.of(new Uint8Array(64 * KiB).fill(index + 1)));
    await image.close();
    const file = new Qcow2File(storage.toBytes());
    file.takeSnapshot(id, name);
    storage = new MemoryStorage({ bytes: file.bytes });
  }
  return storage;
}

async function firstByte(storage: MemoryStorage, snapshot: string): Promise<number | undefined> {
  const image = await openImage(storage, { snapshot });
  const bytes = await readAll(image);
  assert.equal(image.readOnly, true);
  await image.close();
  return bytes[0];
}

test('a snapshot is found by id first, then by name; the first of a name wins', async () => {
  const storage = await imageWith([
    ['1', 'two'],
    ['2', '1'],
    ['3', 'same'],
    ['4', 'same'],
    ['5', ''],
  ]);
  assert.equal(await firstByte(storage, '1'), 1);
  assert.equal(await firstByte(storage, '2'), 2);
  assert.equal(await firstByte(storage, 'two'), 1);
  assert.equal(await firstByte(storage, 'same'), 3);
  assert.equal(await firstByte(storage, ''), 5);
  await assert.rejects(openLayer(new MemoryStorage({ bytes: storage.toBytes() }), { snapshot: 'three' }), {
    code: 'NOT_FOUND',
  });
});

test('a snapshot has the disk size of its time', async () => {
  const storage = await imageWith([['1', 'one']]);
  const file = new Qcow2File(storage.toBytes());
  const table = Number(file.u64(64));
  file.setU64(table + 48, BigInt(20 * KiB));
  const image = await openImage(new MemoryStorage({ bytes: file.bytes }), { snapshot: '1' });
  assert.equal(image.size, 20 * KiB);
  await image.close();
});

test('limits of the snapshot table are refused with the place of the entry', async () => {
  const good = (await imageWith([['1', 'one']])).toBytes();
  const refuse = async (change: (file: Qcow2File, at: number) => void, expected: object, snapshot?: string) => {
    const file = new Qcow2File(good.slice());
    const at = Number(file.u64(64));
    change(file, at);
    const open = openLayer(new MemoryStorage({ bytes: file.bytes }), {
      readOnly: true,
      ...(snapshot === undefined ? {} : { snapshot }),
    });
    await assert.rejects(open, expected);
  };
  const at = Number(new Qcow2File(good).u64(64));
  await refuse((file) => file.setU32(at + 36, 1025), { code: 'CORRUPT', field: 'extraSize', offset: at + 36 });
  await refuse((file) => file.setU32(60, 500), { code: 'TRUNCATED' });
  await refuse((file) => file.setU64(64, 1n << 50n), { code: 'TRUNCATED' });
  await refuse((file) => file.setU32(at + 8, 5_000_000), { code: 'CORRUPT', field: 'l1Size', offset: at + 8 }, '1');
  await refuse((file) => file.setU64(at, 0x1200n), { code: 'CORRUPT', field: 'l1TableOffset', offset: at }, '1');
});

test('describe lists snapshots with what the table says of them', async () => {
  const storage = await imageWith([
    ['1', 'first'],
    ['2', 'se\u00e7ond'.normalize('NFD').replace(/[^\x20-\x7e]/g, '')],
  ]);
  const layer = await openLayer(storage, { metadataOnly: true });
  const info = await layer.describe();
  assert.deepEqual(
    info.snapshots?.map(({ id, name, diskSize, vmStateSize }) => ({ id, name, diskSize, vmStateSize })),
    [
      { id: '1', name: 'first', diskSize: 64 * KiB, vmStateSize: 0 },
      { id: '2', name: 'second', diskSize: 64 * KiB, vmStateSize: 0 },
    ],
  );
  await layer.close();
});
