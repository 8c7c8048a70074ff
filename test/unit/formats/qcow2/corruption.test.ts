import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../../formats/core/units.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../../../formats/image/snapshots.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, openLayer, readAll } from '../../../support/qcow2-images.ts';

const CLUSTER = 64 * KiB;
const COPIED = 1n << 63n;
const CORRUPT_BIT = 2n;

/** An image with four data clusters, changed by hand; offsets as the tables have them. */
async function damaged(
  change: (file: Qcow2File, at: { l2: number; data: number }) => void,
  options: { version?: 2 | 3 } = {},
): Promise<MemoryStorage> {
  const storage = await createImage({ size: 8 * MiB, ...options });
  const image = await openImage(storage);
  await image.writev(0, IoVec.of(new Uint8Array(4 * CLUSTER).fill(0xaa)));
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  const l2 = Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n);
  change(file, { l2, data: Number(file.u64(l2) & 0x00fffffffffffe00n) });
  return new MemoryStorage({ bytes: file.bytes });
}

/** What an L2 or L1 entry can say to make a write land on metadata, or nowhere: each must mark the image and change nothing else. */
const PLANTED: readonly [string, (file: Qcow2File, at: { l2: number; data: number }) => void][] = [
  ['a data cluster on the header', (file, { l2 }) => file.setU64(l2, COPIED | 0n | (1n << 62n))],
  ['a data cluster on the L1 table', (file, { l2 }) => file.setU64(l2, COPIED | BigInt(file.l1Offset))],
  ['a data cluster on the refcount table', (file, { l2 }) => file.setU64(l2, COPIED | file.u64(48))],
  ['a data cluster on a refcount block', (file, { l2 }) => file.setU64(l2, COPIED | file.u64(Number(file.u64(48))))],
  ['a data cluster on its own L2 table', (file, { l2 }) => file.setU64(l2, COPIED | BigInt(l2))],
  ['an L2 table on a refcount block', (file) => file.setU64(file.l1Offset, COPIED | file.u64(Number(file.u64(48))))],
  ['an L2 table on the L1 table', (file) => file.setU64(file.l1Offset, COPIED | BigInt(file.l1Offset))],
  [
    'a free cluster that holds the L2 table',
    (file, { l2 }) => {
      for (let cluster = 0; cluster < 64; cluster++) if (file.refcount(cluster) === 0) file.setRefcount(cluster, 1);
      file.setRefcount(l2 / CLUSTER, 0);
      // The write needs a new cluster.
      file.setU64(l2, 0n);
    },
  ],
];

for (const [what, change] of PLANTED) {
  test(`a write that meets ${what} is refused and marks the image corrupt`, async () => {
    await assertStops((await damaged(change)).toBytes());
  });
}

/** The first write is refused, and the image is marked and otherwise as it was. */
async function assertStops(bytes: Uint8Array): Promise<void> {
  const storage = new MemoryStorage({ bytes });
  const before = new Qcow2File(storage.toBytes());
  const image = await openImage(storage);
  await assert.rejects(image.writev(0, IoVec.of(new Uint8Array(CLUSTER).fill(1))), { code: 'CORRUPT' });
  // It stays stopped.
  await assert.rejects(image.writev(MiB, IoVec.of(new Uint8Array(10))), { code: 'CORRUPT' });
  await assert.rejects(image.flush(), { code: 'CORRUPT' });
  await image.close().catch(() => undefined);
  const after = new Qcow2File(storage.toBytes());
  assert.equal(after.u64(72) & CORRUPT_BIT, CORRUPT_BIT);
  after.setU64(72, before.u64(72));
  assert.ok(
    Buffer.compare(after.bytes.subarray(0, before.bytes.length), before.bytes) === 0,
    'nothing else has changed',
  );
  const again = new MemoryStorage({ bytes: storage.toBytes() });
  await assert.rejects(openLayer(again), { code: 'CORRUPT', field: 'incompatibleFeatures' });
  const reader = await openLayer(new MemoryStorage({ bytes: storage.toBytes() }), { readOnly: true });
  await reader.close();
}

/** Places of a snapshot's tables, which the disk does not use any more. */
function inactive(file: Qcow2File): { l1: number; l2: number } {
  const l1 = file.l1Tables()[1]?.at as number;
  return { l1, l2: Number(file.u64(l1) & 0x00fffffffffffe00n) };
}

const WITH_SNAPSHOT: readonly [string, (file: Qcow2File, at: { l2: number; data: number }) => void][] = [
  ["a data cluster on a snapshot's L1 table", (file, { l2 }) => file.setU64(l2, COPIED | BigInt(inactive(file).l1))],
  ["a data cluster on a snapshot's L2 table", (file, { l2 }) => file.setU64(l2, COPIED | BigInt(inactive(file).l2))],
  [
    "a compressed cluster on a snapshot's L2 table",
    (file, { l2 }) => file.setU64(l2, (1n << 62n) | BigInt(inactive(file).l2)),
  ],
  ["an L2 table on a snapshot's L1 table", (file) => file.setU64(file.l1Offset, COPIED | BigInt(inactive(file).l1))],
  ['a data cluster on the snapshot table', (file, { l2 }) => file.setU64(l2, COPIED | file.u64(64))],
  [
    "a free cluster that holds a snapshot's L1 table",
    (file, { l2 }) => {
      for (let cluster = 0; cluster < 64; cluster++) if (file.refcount(cluster) === 0) file.setRefcount(cluster, 1);
      file.setRefcount(inactive(file).l1 / CLUSTER, 0);
      file.setU64(l2, 0n);
    },
  ],
  [
    "a free cluster that holds a snapshot's L2 table",
    (file, { l2 }) => {
      for (let cluster = 0; cluster < 64; cluster++) if (file.refcount(cluster) === 0) file.setRefcount(cluster, 1);
      file.setRefcount(inactive(file).l2 / CLUSTER, 0);
      file.setU64(l2, 0n);
    },
  ],
];

/** An image whose L2 table is not its snapshot's any more. */
async function withSnapshot(): Promise<MemoryStorage> {
  const storage = await createImage({ size: 8 * MiB });
  const image = await openImage(storage);
  await image.writev(0, IoVec.of(new Uint8Array(4 * CLUSTER).fill(0xaa)));
  await createSnapshot(image, 'one');
  await image.writev(0, IoVec.of(new Uint8Array(4 * CLUSTER).fill(0xbb)));
  await image.close();
  return storage;
}

for (const [what, change] of WITH_SNAPSHOT) {
  test(`a write that meets ${what} is refused and marks the image corrupt, and the snapshot stays`, async () => {
    const file = new Qcow2File((await withSnapshot()).toBytes());
    const l2 = Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n);
    change(file, { l2, data: 0 });
    await assertStops(file.bytes);
    const reader = await openImage(new MemoryStorage({ bytes: file.bytes }), { readOnly: true, snapshot: 'one' });
    assert.ok((await readAll(reader)).subarray(0, 4 * CLUSTER).every((byte) => byte === 0xaa));
    await reader.close();
  });
}

test('a write that meets subclusters that are zeros and data is refused and marks the image corrupt', async () => {
  for (const [high, low] of [
    [1, 1],
    [0x80000000, 0xffffffff],
  ] as const) {
    const storage = await createImage({ size: 8 * MiB, extendedL2: true });
    const image = await openImage(storage);
    await image.writev(0, IoVec.of(new Uint8Array(4 * CLUSTER).fill(0xaa)));
    await image.close();
    const file = new Qcow2File(storage.toBytes());
    const l2 = Number(file.u64(file.l1Offset) & 0x00fffffffffffe00n);
    file.setU32(l2 + 8, high);
    file.setU32(l2 + 12, low);
    await assertStops(file.bytes);
  }
});

test('what snapshots leave behind can be used again, while their tables come and go', async () => {
  const storage = await withSnapshot();
  const image = await openImage(storage);
  for (let i = 0; i < 20; i++) {
    await createSnapshot(image, `taken ${i}`);
    await image.writev((i % 7) * CLUSTER, IoVec.of(new Uint8Array(2 * CLUSTER).fill(i)));
    if (i % 3 === 2) await applySnapshot(image, { name: `taken ${i - 1}` });
    if (i % 2 === 1) await deleteSnapshot(image, { name: `taken ${i - 1}` });
  }
  await deleteSnapshot(image, { name: 'one' });
  await image.writev(0, IoVec.of(new Uint8Array(100 * CLUSTER).fill(7)));
  await image.close();
  const { corruptions, leaks } = new Qcow2File(storage.toBytes()).inspect();
  assert.deepEqual([corruptions, leaks], [[], []]);
  assert.equal(new Qcow2File(storage.toBytes()).u64(72) & CORRUPT_BIT, 0n);
});

for (const [what, change] of [
  ['a misaligned data cluster', (file, { l2, data }) => file.setU64(l2, COPIED | BigInt(data + 512))],
  ['a misaligned L2 table', (file, { l2 }) => file.setU64(file.l1Offset, COPIED | BigInt(l2 + 512))],
] as typeof PLANTED) {
  test(`a write or discard that meets ${what} is refused and marks the image corrupt`, async () => {
    const storage = await damaged(change);
    const image = await openImage(storage);
    await assert.rejects(image.discard(0, CLUSTER), { code: 'CORRUPT' });
    await image.close().catch(() => undefined);
    assert.equal(new Qcow2File(storage.toBytes()).u64(72) & CORRUPT_BIT, CORRUPT_BIT);
    await assertStops((await damaged(change)).toBytes());
  });
}

test('a discard of a cluster that lies on metadata frees nothing and marks the image corrupt', async () => {
  const storage = await damaged((file, { l2 }) => file.setU64(l2, BigInt(file.l1Offset)));
  const image = await openImage(storage);
  await assert.rejects(image.discard(0, CLUSTER), { code: 'CORRUPT', field: 'L2 table' });
  await image.close().catch(() => undefined);
  const file = new Qcow2File(storage.toBytes());
  assert.equal(file.refcount(file.l1Offset / CLUSTER), 1);
});

test('a read that meets a broken entry fails alone', async () => {
  const storage = await damaged((file, { l2, data }) => file.setU64(l2, COPIED | BigInt(data + 512)));
  const image = await openImage(storage, { readOnly: true });
  await assert.rejects(image.readv(0, IoVec.of(new Uint8Array(512))), { code: 'CORRUPT', field: 'L2 table' });
  const bytes = new Uint8Array(512);
  await image.readv(CLUSTER, IoVec.of(bytes));
  assert.equal(bytes[0], 0xaa);
  await image.close();
});

test('the zero flag in version 2 is corruption, for that cluster', async () => {
  const storage = await damaged((file, { l2 }) => file.setU64(l2, 1n), { version: 2 });
  const image = await openImage(storage, { readOnly: true });
  await assert.rejects(image.readv(0, IoVec.of(new Uint8Array(1))), { code: 'CORRUPT' });
  await image.readv(CLUSTER, IoVec.of(new Uint8Array(1)));
  await image.close();
});

test('what lies outside the file reads as zeros: data, L2 tables, the L1 table', async () => {
  const outside = 1n << 40n;
  const data = await damaged((file, { l2 }) => file.setU64(l2, COPIED | outside));
  const l2 = await damaged((file) => file.setU64(file.l1Offset, COPIED | outside));
  const l1 = await damaged((file) => file.setU64(40, outside));
  for (const storage of [data, l2, l1]) {
    const image = await openImage(storage, { readOnly: true });
    assert.ok((await readAll(image)).subarray(0, CLUSTER).every((byte) => byte === 0));
    await image.close();
  }
});

test('a data offset that no file can have reads as zeros', async () => {
  const storage = await damaged((file, { l2 }) => file.setU64(l2, COPIED | (1n << 55n)));
  const image = await openImage(storage, { readOnly: true });
  assert.ok((await readAll(image)).subarray(0, CLUSTER).every((byte) => byte === 0));
  await image.close();
});

test('a compressed cluster that is no valid stream, or too short, is corrupt', async () => {
  for (const bytes of [new Uint8Array(CLUSTER).fill(0xff), new Uint8Array(CLUSTER)]) {
    const storage = await damaged((file, { l2, data }) => {
      file.bytes.set(bytes, data);
      file.setU64(l2, (1n << 62n) | (3n << 54n) | BigInt(data));
    });
    const image = await openImage(storage, { readOnly: true });
    await assert.rejects(image.readv(100, IoVec.of(new Uint8Array(10))), { code: 'CORRUPT' });
    await image.close();
  }
});

test('refcount blocks on other tables or outside the file keep the image from being written, not from being read', async () => {
  const changes: ((file: Qcow2File) => void)[] = [
    (file) => file.setU64(Number(file.u64(48)), BigInt(file.l1Offset)),
    (file) => file.setU64(Number(file.u64(48)) + 8, file.u64(Number(file.u64(48)))),
    (file) => file.setU64(Number(file.u64(48)) + 8, 1n << 40n),
    (file) => file.setU64(Number(file.u64(48)) + 8, 0x12200n),
  ];
  for (const change of changes) {
    const storage = await damaged(change);
    await assert.rejects(openLayer(new MemoryStorage({ bytes: storage.toBytes() })), {
      code: 'CORRUPT',
      field: /refcount/ as unknown as string,
    });
    const reader = await openImage(storage, { readOnly: true });
    assert.equal((await readAll(reader))[0], 0xaa);
    await reader.close();
  }
});

test('an encrypted image is refused without its passphrase, and can still be described', async () => {
  const storage = await damaged((file) => file.setU32(32, 1));
  await assert.rejects(openLayer(new MemoryStorage({ bytes: storage.toBytes() }), { readOnly: true }), {
    code: 'ENCRYPTED',
    field: 'cryptMethod',
    offset: 32,
  });
  const layer = await openLayer(storage, { metadataOnly: true });
  assert.equal((await layer.describe()).encrypted, true);
  await layer.close();
});

test('the first write clears the autoclear bits, opening does not', async () => {
  const storage = await damaged((file) => file.setU64(88, (1n << 63n) | 4n));
  const image = await openImage(storage);
  assert.equal(new Qcow2File(storage.toBytes()).u64(88), (1n << 63n) | 4n);
  await image.writev(0, IoVec.of(new Uint8Array(1)));
  assert.equal(new Qcow2File(storage.toBytes()).u64(88), 0n);
  await image.close();
});
