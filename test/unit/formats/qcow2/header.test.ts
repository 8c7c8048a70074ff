import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ErrorCode, ImageError } from '../../../../formats/core/errors.ts';
import { EXTENSION, encodeExtensions } from '../../../../formats/qcow2/extensions.ts';
import { HEADER_V3, MAGIC, parseHeader, type Qcow2RawHeader } from '../../../../formats/qcow2/header.ts';

const NO_BITS = { high: 0, low: 0 };

/** A sound header of a 1 GiB image, with some fields changed. */
function headerBytes(
  changes: Partial<Qcow2RawHeader> = {},
  more: { compressionType?: number; extensions?: { type: number; data: Uint8Array }[]; length?: number } = {},
): DataView {
  const bytes = new Uint8Array(more.length ?? 65536);
  const view = new DataView(bytes.buffer);
  const values: Qcow2RawHeader = {
    magic: MAGIC,
    version: 3,
    backingFileOffset: 0,
    backingFileSize: 0,
    clusterBits: 16,
    size: 2 ** 30,
    cryptMethod: 0,
    l1Size: 2,
    l1TableOffset: 0x30000,
    refcountTableOffset: 0x10000,
    refcountTableClusters: 1,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatibleFeatures: NO_BITS,
    compatibleFeatures: NO_BITS,
    autoclearFeatures: NO_BITS,
    refcountOrder: 4,
    headerLength: 112,
    ...changes,
  };
  HEADER_V3.write(view, values);
  if (more.compressionType !== undefined) view.setUint8(104, more.compressionType);
  if (more.extensions !== undefined) bytes.set(encodeExtensions(more.extensions), values.headerLength);
  return view;
}

/** A 64-bit field that a number cannot hold: written around the struct table. */
function withU64(view: DataView, at: number, value: bigint): DataView {
  view.setBigUint64(at, value);
  return view;
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

/** Every limit of the header: what is wrong, the header, and what the error must say. */
const REFUSED: readonly [string, () => DataView, ErrorCode, string, number][] = [
  ['magic', () => headerBytes({ magic: 0x514649fa }), 'BAD_MAGIC', 'magic', 0],
  ['version 1', () => headerBytes({ version: 1 }), 'UNSUPPORTED', 'version', 4],
  ['version 4', () => headerBytes({ version: 4 }), 'UNSUPPORTED', 'version', 4],
  ['clusters of 256 bytes', () => headerBytes({ clusterBits: 8 }), 'BAD_HEADER', 'clusterBits', 20],
  ['clusters of 4 MiB', () => headerBytes({ clusterBits: 22 }), 'BAD_HEADER', 'clusterBits', 20],
  [
    'cluster bits that would overflow a shift',
    () => headerBytes({ clusterBits: 0xffffffff }),
    'BAD_HEADER',
    'clusterBits',
    20,
  ],
  ['a header shorter than version 3', () => headerBytes({ headerLength: 100 }), 'BAD_HEADER', 'headerLength', 100],
  ['a header longer than a cluster', () => headerBytes({ headerLength: 65544 }), 'BAD_HEADER', 'headerLength', 100],
  [
    'a backing name outside the first cluster',
    () => headerBytes({ backingFileOffset: 65537, backingFileSize: 1 }),
    'BAD_HEADER',
    'backingFileOffset',
    8,
  ],
  [
    'a backing name inside the header',
    () => headerBytes({ backingFileOffset: 16, backingFileSize: 8 }),
    'BAD_HEADER',
    'backingFileOffset',
    8,
  ],
  [
    'a backing name of 1024 bytes',
    () => headerBytes({ backingFileOffset: 0x200, backingFileSize: 1024 }),
    'BAD_HEADER',
    'backingFileSize',
    16,
  ],
  [
    'a backing name that leaves the cluster',
    () => headerBytes({ backingFileOffset: 65530, backingFileSize: 100 }),
    'BAD_HEADER',
    'backingFileSize',
    16,
  ],
  [
    'compression type 2',
    () => headerBytes({ incompatibleFeatures: { high: 0, low: 8 } }, { compressionType: 2 }),
    'UNSUPPORTED',
    'compressionType',
    104,
  ],
  ['zstd without its bit', () => headerBytes({}, { compressionType: 1 }), 'BAD_HEADER', 'compressionType', 104],
  [
    'the compression bit for zlib',
    () => headerBytes({ incompatibleFeatures: { high: 0, low: 8 } }),
    'BAD_HEADER',
    'compressionType',
    104,
  ],
  [
    'an unknown incompatible bit',
    () => headerBytes({ incompatibleFeatures: { high: 0, low: 32 } }),
    'UNSUPPORTED',
    'incompatibleFeatures',
    72,
  ],
  [
    'an unknown incompatible bit in the upper half',
    () => headerBytes({ incompatibleFeatures: { high: 0x80000000, low: 0 } }),
    'UNSUPPORTED',
    'incompatibleFeatures',
    72,
  ],
  [
    'subclusters below 512 bytes',
    () => headerBytes({ clusterBits: 13, incompatibleFeatures: { high: 0, low: 16 } }),
    'BAD_HEADER',
    'clusterBits',
    20,
  ],
  ['refcounts of 128 bits', () => headerBytes({ refcountOrder: 7 }), 'BAD_HEADER', 'refcountOrder', 96],
  ['no refcount table', () => headerBytes({ refcountTableClusters: 0 }), 'BAD_HEADER', 'refcountTableClusters', 56],
  [
    'a refcount table above 8 MiB',
    () => headerBytes({ refcountTableClusters: 129 }),
    'BAD_HEADER',
    'refcountTableClusters',
    56,
  ],
  [
    'a misaligned refcount table',
    () => headerBytes({ refcountTableOffset: 0x10200 }),
    'BAD_HEADER',
    'refcountTableOffset',
    48,
  ],
  [
    'a refcount table beyond 2^63',
    () => withU64(headerBytes(), 48, 0x7fffffffffff0000n),
    'BAD_HEADER',
    'refcountTableOffset',
    48,
  ],
  ['65537 snapshots', () => headerBytes({ snapshotCount: 65537 }), 'BAD_HEADER', 'snapshotCount', 60],
  [
    'a misaligned snapshot table',
    () => headerBytes({ snapshotCount: 1, snapshotsOffset: 0x50010 }),
    'BAD_HEADER',
    'snapshotsOffset',
    64,
  ],
  ['an L1 table above 32 MiB', () => headerBytes({ l1Size: 4 * 1024 * 1024 + 1 }), 'BAD_HEADER', 'l1Size', 36],
  ['a misaligned L1 table', () => headerBytes({ l1TableOffset: 0x30008 }), 'BAD_HEADER', 'l1TableOffset', 40],
  ['an L1 table beyond 2^63', () => withU64(headerBytes(), 40, 0xffffffffffff0000n), 'BAD_HEADER', 'l1TableOffset', 40],
  ['an L1 table that is too small', () => headerBytes({ l1Size: 1 }), 'BAD_HEADER', 'l1Size', 36],
  [
    'more L1 entries than can be',
    () => headerBytes({ clusterBits: 9, size: 2 ** 52, refcountTableClusters: 1 }),
    'BAD_HEADER',
    'size',
    24,
  ],
  ['a size beyond 8 PiB', () => withU64(headerBytes(), 24, 1n << 60n), 'TOO_LARGE', 'size', 24],
  ['encryption method 3', () => headerBytes({ cryptMethod: 3 }), 'UNSUPPORTED', 'cryptMethod', 32],
  ['LUKS without its header', () => headerBytes({ cryptMethod: 2 }), 'BAD_HEADER', 'cryptMethod', 32],
  [
    'an encryption header without LUKS',
    () => headerBytes({}, { extensions: [{ type: EXTENSION.CRYPTO, data: new Uint8Array(16) }] }),
    'BAD_HEADER',
    'crypto',
    120,
  ],
  [
    'an encryption pointer of 8 bytes',
    () => headerBytes({ cryptMethod: 2 }, { extensions: [{ type: EXTENSION.CRYPTO, data: new Uint8Array(8) }] }),
    'BAD_HEADER',
    'crypto',
    112,
  ],
  [
    'a misaligned encryption header',
    () =>
      headerBytes(
        { cryptMethod: 2 },
        { extensions: [{ type: EXTENSION.CRYPTO, data: new Uint8Array(16).fill(1, 6, 8) }] },
      ),
    'BAD_HEADER',
    'crypto',
    120,
  ],
  [
    'a backing format of 16 bytes',
    () => headerBytes({}, { extensions: [{ type: EXTENSION.BACKING_FORMAT, data: new Uint8Array(16).fill(65) }] }),
    'BAD_HEADER',
    'backingFormat',
    112,
  ],
  [
    'an extension that leaves its area',
    () => {
      const view = headerBytes();
      view.setUint32(112, 0x12345678);
      view.setUint32(116, 0xffffffff);
      return view;
    },
    'BAD_HEADER',
    'headerExtension',
    112,
  ],
  [
    'a bitmaps extension of 16 bytes',
    () => headerBytes({}, { extensions: [{ type: EXTENSION.BITMAPS, data: new Uint8Array(16) }] }),
    'BAD_HEADER',
    'bitmaps',
    112,
  ],
  [
    'a bitmaps extension without bitmaps',
    () => headerBytes({}, { extensions: [{ type: EXTENSION.BITMAPS, data: new Uint8Array(24) }] }),
    'BAD_HEADER',
    'bitmaps',
    112,
  ],
  [
    '65536 bitmaps',
    () => headerBytes({}, { extensions: [{ type: EXTENSION.BITMAPS, data: new Uint8Array(24).fill(1, 1, 2) }] }),
    'BAD_HEADER',
    'bitmaps',
    112,
  ],
  [
    'a data file that no bit announces',
    () => headerBytes({}, { extensions: [{ type: EXTENSION.DATA_FILE, data: text('/etc/passwd') }] }),
    'BAD_HEADER',
    'dataFile',
    120,
  ],
  [
    'a raw data file without a data file',
    () => headerBytes({ autoclearFeatures: { high: 0, low: 2 } }),
    'BAD_HEADER',
    'autoclearFeatures',
    88,
  ],
  [
    'a raw data file over a backing file',
    () =>
      headerBytes({
        autoclearFeatures: { high: 0, low: 2 },
        incompatibleFeatures: { high: 0, low: 4 },
        backingFileOffset: 0x200,
        backingFileSize: 4,
      }),
    'BAD_HEADER',
    'autoclearFeatures',
    88,
  ],
];

for (const [what, make, code, field, offset] of REFUSED) {
  test(`a header with ${what} is refused, naming ${field}`, () => {
    assert.throws(() => parseHeader(make()), { code, field, offset });
  });
}

test('whoever has an image of version 1 is told what opens it', () => {
  assert.throws(() => parseHeader(headerBytes({ version: 1 })), { help: /qemu:qcow:PATH.*qcow\/\/PATH/ });
});

test('a file that ends inside the header is TRUNCATED', () => {
  for (const length of [4, 71, 72, 103]) {
    const view = new DataView(headerBytes().buffer, 0, length);
    assert.throws(() => parseHeader(view), { code: 'TRUNCATED', offset: length });
  }
  assert.throws(() => parseHeader(new DataView(new ArrayBuffer(0))), { code: 'BAD_MAGIC' });
});

test('unknown features are called what the image calls them', () => {
  const names = new Uint8Array(96);
  names.set([0, 40], 0);
  names.set(text('quantum clusters'), 2);
  names.set([1, 41], 48); // the name of a compatible feature is not the name of an incompatible one
  names.set(text('harmless'), 50);
  const view = headerBytes(
    { incompatibleFeatures: { high: 0x300, low: 0 } },
    { extensions: [{ type: EXTENSION.FEATURE_NAMES, data: names }] },
  );
  assert.throws(
    () => parseHeader(view),
    (error: unknown) =>
      error instanceof ImageError && /quantum clusters, unknown incompatible feature bit 41$/.test(error.message),
  );
});

test('version 2 has no feature bits, whatever is behind its 72 bytes', () => {
  const header = parseHeader(
    headerBytes({ version: 2, incompatibleFeatures: { high: 0, low: 0xff }, refcountOrder: 9 }),
  );
  assert.equal(header.geometry.version, 2);
  assert.equal(header.geometry.refcountBits, 16);
  assert.deepEqual([header.dirty, header.corrupt], [false, false]);
});

test('a size that is no multiple of 512 is rounded down, with a warning', () => {
  const header = parseHeader(headerBytes({ size: 1_000_000 }));
  assert.equal(header.size, 999_936);
  assert.equal(header.warnings.length, 1);
});

test('a missing end marker of the extensions is no error', () => {
  const view = headerBytes(
    { clusterBits: 9, l1Size: 32768, l1TableOffset: 0x200, refcountTableOffset: 0x400 },
    { length: 512 },
  );
  // One unknown extension that fills the cluster to its last byte.
  view.setUint32(112, 0x0badcafe);
  view.setUint32(116, 512 - 120);
  const header = parseHeader(view);
  assert.deepEqual(
    header.extensions.list.map(({ type, data }) => [type, data.length]),
    [[0x0badcafe, 392]],
  );
});

test('the backing file and its format are read', () => {
  const view = headerBytes(
    { backingFileOffset: 0x400, backingFileSize: 9 },
    { extensions: [{ type: EXTENSION.BACKING_FORMAT, data: text('raw') }] },
  );
  new Uint8Array(view.buffer).set(text('base.img\u00e9'), 0x400);
  const header = parseHeader(view);
  assert.equal(header.backingFormat, 'raw');
  assert.equal(header.backingFile?.slice(0, 8), 'base.img');
});

test('geometry follows from cluster size and entry size', () => {
  const { geometry } = parseHeader(headerBytes());
  assert.deepEqual(
    [geometry.l2Entries, geometry.l2Coverage, geometry.sliceSize, geometry.sliceEntries, geometry.refcountsPerBlock],
    [8192, 512 * 1024 * 1024, 4096, 512, 32768],
  );
  assert.equal(geometry.compressedOffsetBits, 54);
  const extended = parseHeader(headerBytes({ incompatibleFeatures: { high: 0, low: 16 }, l1Size: 4 })).geometry;
  assert.deepEqual([extended.l2Entries, extended.subclusterSize], [4096, 2048]);
});
