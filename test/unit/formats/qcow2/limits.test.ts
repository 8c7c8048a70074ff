/** Rules of what the header points to, each broken once: refused with the field at fault and where it is. The header's own are in header.test.ts. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { alignUp, KiB, MiB } from '../../../../formats/core/units.ts';
import { listBitmaps } from '../../../../formats/image/bitmaps.ts';
import { BITMAP_ENTRY, parseBitmapDirectory } from '../../../../formats/qcow2/bitmaps.ts';
import { EXTENSION, encodeExtensions } from '../../../../formats/qcow2/extensions.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { Qcow2File } from '../../../support/qcow2-file.ts';
import { createImage, openImage, openLayer } from '../../../support/qcow2-images.ts';

const CLUSTER = 64 * KiB;
const DIRECTORY = 5 * CLUSTER;
const NAME = Buffer.from('bitmap-0');

type EntryFields = Partial<Parameters<typeof BITMAP_ENTRY.write>[1]>;

/** A bitmap directory of one entry. */
function directory(fields: EntryFields, length = BITMAP_ENTRY.size + NAME.length): Uint8Array {
  const bytes = new Uint8Array(length);
  BITMAP_ENTRY.write(new DataView(bytes.buffer), {
    tableOffset: 6 * CLUSTER,
    tableSize: 1,
    flags: 0,
    type: 1,
    granularityBits: 16,
    nameSize: NAME.length,
    extraDataSize: 0,
    ...fields,
  });
  bytes.set(NAME, BITMAP_ENTRY.size);
  return bytes;
}

const place = { directoryOffset: DIRECTORY, count: 1, clusterSize: CLUSTER };

const BITMAP_RULES: readonly (readonly [rule: string, bytes: Uint8Array, why: RegExp])[] = [
  ['the table has entries', directory({ tableSize: 0 }), /is empty/],
  ['the table has no more than 512 MiB of bits', directory({ tableSize: 8193 }), /above 512 MiB/],
  ['the table has no 4 billion entries', directory({ tableSize: 0xffffffff }), /above 512 MiB/],
  ['there is a table', directory({ tableOffset: 0 }), /cluster boundary/],
  ['the table is at a cluster boundary', directory({ tableOffset: 6 * CLUSTER + 512 }), /cluster boundary/],
  ['the type is dirty tracking', directory({ type: 2 }), /does not allow/],
  ['a bit is of 512 bytes or more', directory({ granularityBits: 8 }), /does not allow/],
  ['a bit is of 2 GiB or less', directory({ granularityBits: 32 }), /does not allow/],
  ['there is a name', directory({ nameSize: 0 }), /does not allow/],
  ['the name has 1023 bytes or less', directory({ nameSize: 1024 }, 2048), /does not allow/],
  ['the name is inside the directory', directory({ nameSize: 9 }), /longer than the directory/],
  ['extra data is inside the directory', directory({ extraDataSize: 0xffffffff }), /longer than the directory/],
  ['the entry is whole', directory({}).slice(0, 20), /inside an entry/],
];

for (const [rule, bytes, why] of BITMAP_RULES) {
  test(`bitmap directory entry: ${rule}`, () => {
    assert.throws(() => parseBitmapDirectory(bytes, place), {
      code: 'CORRUPT',
      field: 'bitmaps',
      offset: DIRECTORY,
      message: why,
    });
  });
}

test('bitmap directory: it has as many entries as the header says, and no name twice', () => {
  const entry = directory({});
  assert.throws(() => parseBitmapDirectory(entry, { ...place, count: 2 }), { code: 'CORRUPT', field: 'bitmaps' });
  const two = new Uint8Array(Buffer.concat([entry, entry]));
  const at = DIRECTORY + entry.length;
  assert.throws(() => parseBitmapDirectory(two, { ...place, count: 2 }), {
    code: 'CORRUPT',
    field: 'bitmaps',
    offset: at,
  });
  assert.equal(parseBitmapDirectory(entry, place).length, 1);
});

/** An image whose header has extensions of our making. */
async function withExtension(
  type: number,
  data: Uint8Array,
  change?: (file: Qcow2File) => void,
): Promise<MemoryStorage> {
  const file = new Qcow2File((await createImage({ size: 8 * MiB })).toBytes());
  const at = file.u32(100);
  file.bytes.fill(0, at, 4096);
  file.bytes.set(encodeExtensions([{ type, data }]), at);
  change?.(file);
  return new MemoryStorage({ bytes: file.bytes });
}

function words64(...values: bigint[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 8);
  values.forEach((value, i) => {
    new DataView(bytes.buffer).setBigUint64(i * 8, value);
  });
  return bytes;
}

const AT = 112;
const ONE_BITMAP = 1n << 32n;

const EXTENSION_RULES: readonly (readonly [
  rule: string,
  type: number,
  data: Uint8Array,
  expected: { code: string; field: string; offset: number },
])[] = [
  [
    'the reserved field of bitmaps is 0',
    EXTENSION.BITMAPS,
    words64(ONE_BITMAP | 1n, 24n, BigInt(DIRECTORY)),
    { code: 'BAD_HEADER', field: 'bitmaps', offset: AT },
  ],
  [
    'a bitmap directory has 64 MiB or less',
    EXTENSION.BITMAPS,
    words64(ONE_BITMAP, 1n << 40n, BigInt(DIRECTORY)),
    { code: 'BAD_HEADER', field: 'bitmaps', offset: AT },
  ],
  [
    'an encryption header is aligned',
    EXTENSION.CRYPTO,
    words64(512n, 4096n),
    { code: 'BAD_HEADER', field: 'crypto', offset: AT + 8 },
  ],
  [
    'an encryption header is inside the file',
    EXTENSION.CRYPTO,
    words64(1n << 40n, 4096n),
    { code: 'TRUNCATED', field: 'crypto', offset: AT + 8 },
  ],
  [
    'an encryption header is somewhere in a file',
    EXTENSION.CRYPTO,
    words64(0x7fffffffffff0000n, 4096n),
    { code: 'BAD_HEADER', field: 'crypto', offset: AT + 8 },
  ],
  [
    'an encryption header has a header’s length',
    EXTENSION.CRYPTO,
    words64(BigInt(CLUSTER), 100n),
    { code: 'TRUNCATED', field: 'magic', offset: CLUSTER },
  ],
  [
    'an encryption header is one of LUKS',
    EXTENSION.CRYPTO,
    words64(BigInt(CLUSTER), 1n << 40n),
    { code: 'BAD_MAGIC', field: 'magic', offset: CLUSTER },
  ],
];

for (const [rule, type, data, expected] of EXTENSION_RULES) {
  test(`header extensions: ${rule}`, async () => {
    const luks = type === EXTENSION.CRYPTO ? (file: Qcow2File) => file.setU32(32, 2) : undefined;
    const storage = await withExtension(type, data, luks);
    await assert.rejects(openLayer(storage, { readOnly: true, secret: Buffer.from('x') }), expected);
  });
}

for (const [rule, offset, expected] of [
  ['is at a cluster boundary', BigInt(DIRECTORY + 512), { code: 'CORRUPT', field: 'bitmaps' }],
  ['is inside the file', 1n << 40n, { code: 'TRUNCATED', field: 'bitmaps' }],
] as const) {
  test(`a bitmap directory ${rule}, or its bitmaps are lost with the first write, which is said`, async () => {
    const words = words64(ONE_BITMAP, 32n, offset);
    const storage = await withExtension(EXTENSION.BITMAPS, words, (file) => {
      file.setU64(88, 1n);
      file.bytes = new Uint8Array(Buffer.concat([file.bytes, new Uint8Array(2 * CLUSTER)]));
    });
    const reader = await openImage(storage, { readOnly: true });
    await assert.rejects(listBitmaps(reader), expected);
    await reader.close();
    const warnings: string[] = [];
    const image = await openImage(storage, { warnings });
    await image.writev(0, IoVec.of(new Uint8Array(512)));
    await image.close();
    assert.match(warnings.join(), /once the image is written its bitmaps are lost/);
    assert.equal(new Qcow2File(storage.toBytes()).u64(88) & 1n, 0n);
  });
}

test('a snapshot table above 64 MiB is refused, at the entry that goes beyond it', async () => {
  const { storage } = await withSnapshot(() => undefined);
  const start = alignUp(storage.size, CLUSTER);
  // The longest ids and names that there can be: 131 KB an entry.
  const entry = alignUp(40 + 2 * 65535, 8);
  const bytes = new Uint8Array(40);
  new DataView(bytes.buffer).setUint32(12, 0xffffffff);
  const count = Math.ceil((64 * MiB) / entry) + 1;
  for (let i = 0; i < count; i++) await storage.writev(start + i * entry, IoVec.of(bytes));
  await storage.resize(start + (count + 1) * entry);
  const header = new DataView(new ArrayBuffer(12));
  header.setUint32(0, count);
  header.setBigUint64(4, BigInt(start));
  await storage.writev(60, IoVec.of(new Uint8Array(header.buffer)));
  const over = Math.floor((64 * MiB) / entry);
  await assert.rejects(openLayer(storage, { readOnly: true }), {
    code: 'TOO_LARGE',
    field: 'snapshotsOffset',
    offset: start + over * entry,
  });
});

test('an image whose data is in a file that it does not name is refused', async () => {
  const file = new Qcow2File((await createImage({ size: 8 * MiB })).toBytes());
  file.setU32(76, 4);
  await assert.rejects(openLayer(new MemoryStorage({ bytes: file.bytes }), { readOnly: true }), {
    code: 'UNSUPPORTED',
    field: 'dataFile',
    offset: AT,
  });
});

/** An image with one snapshot, whose entry is changed. */
async function withSnapshot(
  change: (file: Qcow2File, at: number) => void,
): Promise<{ storage: MemoryStorage; at: number }> {
  const file = new Qcow2File((await createImage({ size: 8 * MiB })).toBytes());
  file.takeSnapshot('1', 'one');
  const at = Number(file.u64(64));
  change(file, at);
  return { storage: new MemoryStorage({ bytes: file.bytes }), at };
}

const SNAPSHOT_RULES: readonly (readonly [
  rule: string,
  change: (file: Qcow2File, at: number) => void,
  code: string,
  field: string,
  offset: number,
])[] = [
  ['its L1 table is at a cluster boundary', (file, at) => file.setU64(at, 0x30200n), 'CORRUPT', 'l1TableOffset', 0],
  [
    'its L1 table is somewhere in a file',
    (file, at) => file.setU64(at, 0x7fffffffffff0000n),
    'CORRUPT',
    'l1TableOffset',
    0,
  ],
  ['its L1 table has 32 MiB or less', (file, at) => file.setU32(at + 8, 4 * 1024 * 1024 + 1), 'CORRUPT', 'l1Size', 8],
  ['its disk is one that can be addressed', (file, at) => file.setU64(at + 48, 1n << 60n), 'TOO_LARGE', 'diskSize', 0],
];

for (const [rule, change, code, field, offset] of SNAPSHOT_RULES) {
  test(`snapshot: ${rule}`, async () => {
    const { storage, at } = await withSnapshot(change);
    const expected = field === 'diskSize' ? { code, offset: at } : { code, field, offset: at + offset };
    await assert.rejects(openLayer(storage, { readOnly: true, snapshot: '1' }), expected);
  });
}
