import { type ErrorCode, ImageError } from '../core/errors.ts';
import { bits64, Struct, type StructOf, u8, u32, u64 } from '../core/struct.ts';
import { divideUp, hex } from '../core/units.ts';
import { EXTENSION, parseExtensions, type Qcow2Extension, type Qcow2Extensions } from './extensions.ts';
import { checkFeatures, type FeatureName, INCOMPATIBLE } from './features.ts';
import { type Geometry, makeGeometry } from './geometry.ts';

/** `QFI\xfb` */
export const MAGIC = 0x514649fb;
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** Bytes of the largest L1 table that is taken: 4 Mi entries. */
export const MAX_L1_BYTES = 32 * 1024 * 1024;
/** Bytes of the largest refcount table that is taken. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024;
export const MAX_SNAPSHOTS = 65536;
const MAX_BACKING_NAME = 1023;
const MAX_L1_ENTRIES = 0x7fffffff;

/** The header of version 2; version 3 continues it. Specification: "Header". */
export const HEADER_V2 = new Struct(
  'qcow2 header',
  { size: 72, endian: 'big' },
  {
    magic: u32(0),
    version: u32(4),
    backingFileOffset: u64(8),
    backingFileSize: u32(16),
    clusterBits: u32(20),
    size: u64(24),
    cryptMethod: u32(32),
    l1Size: u32(36),
    l1TableOffset: u64(40),
    refcountTableOffset: u64(48),
    refcountTableClusters: u32(56),
    snapshotCount: u32(60),
    snapshotsOffset: u64(64),
  },
);

/** What version 3 adds. */
export const HEADER_V3 = new Struct(
  'qcow2 header',
  { size: 104, endian: 'big' },
  {
    ...HEADER_V2.fields,
    incompatibleFeatures: bits64(72),
    compatibleFeatures: bits64(80),
    autoclearFeatures: bits64(88),
    refcountOrder: u32(96),
    headerLength: u32(100),
  },
);

/** "Additional fields": there when header_length says so. */
export const HEADER_ADDITIONAL = new Struct(
  'qcow2 header additional fields',
  { size: 8, endian: 'big' },
  {
    compressionType: u8(0),
    padding: { at: 1, length: 7, read: () => undefined, write: () => undefined },
  },
);
const COMPRESSION_TYPE_AT = 104;

export type Qcow2RawHeader = StructOf<typeof HEADER_V3>;
export type CompressionType = 'zlib' | 'zstd';

/** A header that was checked: nothing in it exceeds the limits, all offsets are aligned. Offsets and sizes in bytes. */
export interface Qcow2Header extends Qcow2RawHeader {
  readonly geometry: Geometry;
  readonly compressionType: CompressionType;
  readonly extensions: Qcow2Extensions;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly dirty: boolean;
  readonly corrupt: boolean;
  /** Oddities that do not keep the image from being used: one sentence each. */
  readonly warnings: readonly string[];
}

/** The cluster size that a header announces, or the smallest one where the header is too odd to say: how much to read before parseHeader. */
export function announcedClusterSize(head: DataView): number {
  if (head.byteLength < 24) return 512;
  const bits = head.getUint32(20);
  return bits >= MIN_CLUSTER_BITS && bits <= MAX_CLUSTER_BITS ? 2 ** bits : 512;
}

/**
 * Decodes and checks the header of a qcow2 image with its extensions and the backing file's name.
 *
 * @param view the first cluster of the file, or all of the file when it is shorter
 * @throws {ImageError} BAD_MAGIC, BAD_HEADER, UNSUPPORTED, TRUNCATED, TOO_LARGE; with field and byte offset
 * @see docs/formats/qcow2.md, after the specification's section "Header"
 */
export function parseHeader(view: DataView): Qcow2Header {
  if (view.byteLength < 4 || view.getUint32(0) !== MAGIC) {
    throw new ImageError('BAD_MAGIC', 'this is not a qcow2 image', { field: 'magic', offset: 0 });
  }
  if (view.byteLength < HEADER_V2.size) {
    throw new ImageError('TRUNCATED', 'the file ends inside the qcow2 header', { offset: view.byteLength });
  }
  const v2 = HEADER_V2.read(view);
  if (v2.version === 1) {
    throw new ImageError('UNSUPPORTED', 'qcow2 header: version 1, the format before qcow2, is left to QEMU', {
      field: 'version',
      offset: HEADER_V3.fields.version.at,
      help: 'qemu:qcow:PATH has QEMU open it (user:qemu with cfgstring=qcow//PATH in targetcli); lunette convert makes a qcow2 image of that.',
    });
  }
  if (v2.version !== 2 && v2.version !== 3) {
    fail('UNSUPPORTED', 'version', `version ${v2.version} is not known`);
  }
  if (v2.clusterBits < MIN_CLUSTER_BITS || v2.clusterBits > MAX_CLUSTER_BITS) {
    // Checked before anything is shifted by it or allocated from it.
    fail('BAD_HEADER', 'clusterBits', `cluster_bits ${v2.clusterBits} is outside 9..21`);
  }
  const clusterSize = 2 ** v2.clusterBits;
  const raw = v2.version === 3 ? readV3(view, clusterSize) : { ...v2, ...V2_DEFAULTS };
  const end = Math.min(view.byteLength, clusterSize);

  if (raw.backingFileOffset > clusterSize) {
    fail('BAD_HEADER', 'backingFileOffset', 'the backing file name is outside the first cluster');
  }
  const extensionsEnd = raw.backingFileOffset !== 0 ? Math.min(raw.backingFileOffset, end) : end;
  const extensions = parseExtensions(view, raw.headerLength, extensionsEnd);
  const warnings = [...extensions.warnings];

  const compressionType = checkCompressionType(view, raw);
  checkFeatures(raw, extensions.featureNames);
  const extendedL2 = (raw.incompatibleFeatures.low & INCOMPATIBLE.EXTENDED_L2) !== 0;
  if (extendedL2 && raw.clusterBits < 14) {
    fail('BAD_HEADER', 'clusterBits', `subclusters of ${clusterSize / 32} bytes are smaller than 512 bytes`);
  }
  if (raw.refcountOrder > 6) {
    fail('BAD_HEADER', 'refcountOrder', `refcounts of 2^${raw.refcountOrder} bits are wider than 64 bits`);
  }
  if (raw.cryptMethod > 2) fail('UNSUPPORTED', 'cryptMethod', `encryption method ${raw.cryptMethod} is not known`);
  checkCrypto(raw, extensions, clusterSize);

  const geometry = makeGeometry({
    version: raw.version as 2 | 3,
    clusterBits: raw.clusterBits,
    refcountOrder: raw.refcountOrder,
    extendedL2,
  });
  checkTables(raw, geometry);
  const size = checkSize(raw, geometry, warnings);
  checkDataFile(raw, extensions);
  const backingFile = readBackingFile(view, raw, clusterSize);
  return {
    ...raw,
    size,
    geometry,
    compressionType,
    extensions,
    backingFile,
    backingFormat: extensions.backingFormat,
    dirty: (raw.incompatibleFeatures.low & INCOMPATIBLE.DIRTY) !== 0,
    corrupt: (raw.incompatibleFeatures.low & INCOMPATIBLE.CORRUPT) !== 0,
    warnings,
  };
}

function fail(code: ErrorCode, field: keyof Qcow2RawHeader, why: string): never {
  throw new ImageError(code, `qcow2 header: ${why}`, { field, offset: HEADER_V3.fields[field].at });
}

const NO_BITS = { high: 0, low: 0 } as const;
const V2_DEFAULTS = {
  incompatibleFeatures: NO_BITS,
  compatibleFeatures: NO_BITS,
  autoclearFeatures: NO_BITS,
  refcountOrder: 4,
  headerLength: HEADER_V2.size,
} as const;

function readV3(view: DataView, clusterSize: number): Qcow2RawHeader {
  if (view.byteLength < HEADER_V3.size) {
    throw new ImageError('TRUNCATED', 'the file ends inside the qcow2 header', { offset: view.byteLength });
  }
  const raw = HEADER_V3.read(view);
  if (raw.headerLength < HEADER_V3.size) {
    fail('BAD_HEADER', 'headerLength', `header_length ${raw.headerLength} is below 104`);
  }
  if (raw.headerLength > clusterSize) {
    fail('BAD_HEADER', 'headerLength', `header_length ${raw.headerLength} exceeds the cluster size`);
  }
  if (raw.headerLength > view.byteLength) {
    throw new ImageError('TRUNCATED', 'the file ends inside the qcow2 header', { offset: view.byteLength });
  }
  return raw;
}

function checkCompressionType(view: DataView, raw: Qcow2RawHeader): CompressionType {
  const present = raw.headerLength > COMPRESSION_TYPE_AT;
  const type = present ? view.getUint8(COMPRESSION_TYPE_AT) : 0;
  const bit = (raw.incompatibleFeatures.low & INCOMPATIBLE.COMPRESSION_TYPE) !== 0;
  const context = { field: 'compressionType', offset: COMPRESSION_TYPE_AT };
  if (type > 1) throw new ImageError('UNSUPPORTED', `qcow2 header: compression type ${type} is not known`, context);
  if (bit !== (type !== 0)) {
    const why = bit ? 'the compression type bit is set for zlib' : `compression type ${type} without its feature bit`;
    throw new ImageError('BAD_HEADER', `qcow2 header: ${why}`, context);
  }
  return type === 1 ? 'zstd' : 'zlib';
}

function checkCrypto(raw: Qcow2RawHeader, extensions: Qcow2Extensions, clusterSize: number): void {
  const crypto = extensions.crypto;
  if (crypto === undefined) {
    if (raw.cryptMethod === 2) fail('BAD_HEADER', 'cryptMethod', 'LUKS encryption without its header extension');
    return;
  }
  if (raw.cryptMethod !== 2) {
    throw new ImageError('BAD_HEADER', 'qcow2 header: an encryption header without LUKS encryption', {
      field: 'crypto',
      offset: crypto.at,
    });
  }
  if (crypto.offset % clusterSize !== 0) {
    throw new ImageError('BAD_HEADER', 'qcow2 header: the encryption header is not aligned to a cluster', {
      field: 'crypto',
      offset: crypto.at,
    });
  }
}

/** Bounds and alignment of the tables that the header points to; nothing has been read from them. */
function checkTables(raw: Qcow2RawHeader, geometry: Geometry): void {
  const { clusterSize } = geometry;
  const bytes = raw.refcountTableClusters * clusterSize;
  if (raw.refcountTableClusters === 0) {
    fail('BAD_HEADER', 'refcountTableClusters', 'there is no refcount table');
  }
  if (bytes > MAX_REFCOUNT_TABLE_BYTES) {
    fail('BAD_HEADER', 'refcountTableClusters', `a refcount table of ${bytes} bytes is above 8 MiB`);
  }
  if (misplaced(raw.refcountTableOffset, bytes, clusterSize)) {
    fail('BAD_HEADER', 'refcountTableOffset', 'the refcount table is not at a cluster boundary inside the file');
  }
  if (raw.snapshotCount > MAX_SNAPSHOTS) {
    fail('BAD_HEADER', 'snapshotCount', `${raw.snapshotCount} snapshots are more than ${MAX_SNAPSHOTS}`);
  }
  if (raw.snapshotCount > 0 && misplaced(raw.snapshotsOffset, 0, clusterSize)) {
    fail('BAD_HEADER', 'snapshotsOffset', 'the snapshot table is not at a cluster boundary');
  }
  if (raw.l1Size * 8 > MAX_L1_BYTES)
    fail('BAD_HEADER', 'l1Size', `an L1 table of ${raw.l1Size} entries is above 32 MiB`);
  if (misplaced(raw.l1TableOffset, raw.l1Size * 8, clusterSize)) {
    fail('BAD_HEADER', 'l1TableOffset', 'the L1 table is not at a cluster boundary');
  }
}

function misplaced(offset: number, bytes: number, clusterSize: number): boolean {
  return !Number.isSafeInteger(offset + bytes) || offset % clusterSize !== 0;
}

/** The virtual size, rounded down to sectors. */
function checkSize(raw: Qcow2RawHeader, geometry: Geometry, warnings: string[]): number {
  if (!Number.isSafeInteger(raw.size)) {
    fail('TOO_LARGE', 'size', 'the virtual disk is larger than 8 PiB, which this program cannot address');
  }
  const size = raw.size - (raw.size % 512);
  if (size !== raw.size)
    warnings.push(`the virtual size of ${raw.size} bytes is no multiple of 512: the rest is cut off`);
  const entries = divideUp(size, geometry.l2Coverage);
  if (entries > MAX_L1_ENTRIES) fail('BAD_HEADER', 'size', 'the image is too big for its cluster size');
  if (raw.l1Size < entries) {
    fail('BAD_HEADER', 'l1Size', `an L1 table of ${raw.l1Size} entries is too small for a disk that needs ${entries}`);
  }
  return size;
}

function checkDataFile(raw: Qcow2RawHeader, extensions: Qcow2Extensions): void {
  const external = (raw.incompatibleFeatures.low & INCOMPATIBLE.DATA_FILE) !== 0;
  if ((raw.autoclearFeatures.low & 2) !== 0 && !external) {
    fail('BAD_HEADER', 'autoclearFeatures', 'a raw external data file without an external data file');
  }
  if ((raw.autoclearFeatures.low & 2) !== 0 && raw.backingFileOffset !== 0) {
    fail('BAD_HEADER', 'autoclearFeatures', 'a raw external data file together with a backing file');
  }
  if (extensions.dataFile !== undefined && !external) {
    throw new ImageError('BAD_HEADER', 'qcow2 header: a data file is named, but its feature bit is not set', {
      field: 'dataFile',
      offset: extensions.list.find((entry: Qcow2Extension) => entry.type === EXTENSION.DATA_FILE)?.at,
    });
  }
}

function readBackingFile(view: DataView, raw: Qcow2RawHeader, clusterSize: number): string | undefined {
  if (raw.backingFileOffset === 0) return undefined;
  const length = raw.backingFileSize;
  if (length > MAX_BACKING_NAME || length > clusterSize - raw.backingFileOffset) {
    fail('BAD_HEADER', 'backingFileSize', `a backing file name of ${length} bytes is too long`);
  }
  if (raw.backingFileOffset + length > view.byteLength) {
    throw new ImageError('TRUNCATED', 'the file ends inside the backing file name', { offset: view.byteLength });
  }
  if (raw.backingFileOffset < raw.headerLength) {
    fail(
      'BAD_HEADER',
      'backingFileOffset',
      `the backing file name at ${hex(raw.backingFileOffset)} is inside the header`,
    );
  }
  if (length === 0) return undefined;
  const bytes = new Uint8Array(view.buffer, view.byteOffset + raw.backingFileOffset, length);
  return Buffer.from(bytes).toString('utf8');
}

/** Names for the feature bits, as the image gives them and as we know them. */
export type { FeatureName };
