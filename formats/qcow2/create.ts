import { SharedBlockCache } from '../cache/block-cache.ts';
import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp, divideUp, KiB, MiB } from '../core/units.ts';
import { LeaseBook } from '../image/lease.ts';
import { checkLuksOptions, type LuksOptions, makeLuksVolume } from '../luks/create.ts';
import { EncryptedStorage } from '../luks/encrypted-storage.ts';
import { makeSectorCipher } from '../luks/sector-cipher.ts';
import type { Storage } from '../storage/storage.ts';
import { readHeader } from './driver.ts';
import { CRYPT_LUKS, CRYPT_NONE } from './encryption.ts';
import { EXTENSION, encodeExtensions, featureNameTable } from './extensions.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from './features.ts';
import { type Geometry, makeGeometry } from './geometry.ts';
import {
  type CompressionType,
  HEADER_V2,
  HEADER_V3,
  MAGIC,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  parseHeader,
} from './header.ts';
import { setEntry } from './l2.ts';
import { PointerTable } from './pointer-table.ts';
import type { Preallocation } from './preallocate.ts';
import { setRefcount } from './refcount-codec.ts';
import { SliceCache } from './slices.ts';
import { Qcow2Writer } from './writer.ts';
import { zeroFill } from './zero-fill.ts';

/** Options of a new image; the defaults are those of `qemu-img create`. */
export interface CreateQcow2Options {
  /** Virtual size, bytes; rounded up to 512. */
  readonly size: number;
  /** 512 to 2 MiB, a power of two. Default 64 KiB. */
  readonly clusterSize?: number;
  /** 2 or 3. Default 3. */
  readonly version?: 2 | 3;
  /** 1 to 64, a power of two; 16 in version 2. Default 16. */
  readonly refcountBits?: number;
  /** Name of the backing file as it shall stand in the image: relative names are relative to the image. */
  readonly backingFile?: string | undefined;
  readonly backingFormat?: string | undefined;
  /** Default zlib; zstd needs version 3. */
  readonly compressionType?: CompressionType;
  /** Allow writers to postpone refcounts. Needs version 3. Default false. */
  readonly lazyRefcounts?: boolean;
  /** Entries with 32 subclusters each: small writes over a backing file copy little. Needs version 3, clusters of 16 KiB or more. Default false. */
  readonly extendedL2?: boolean;
  /** Name of a file of its own for the data, as it shall stand in the image. Needs version 3 and `dataStorage`. */
  readonly dataFile?: string | undefined;
  /** That file: emptied and made as large as the disk. Not closed. */
  readonly dataStorage?: Storage | undefined;
  /** The data file shall be the disk as a raw image at all times. Not with a backing file; implies preallocated metadata. Default false. */
  readonly dataFileRaw?: boolean;
  /** Clusters that are mapped beforehand: see preallocate.ts. With a backing file only together with extendedL2. Default off. */
  readonly preallocation?: Preallocation;
  /** Encrypt the data with LUKS. Default: no. */
  readonly encryption?: LuksOptions | undefined;
}

const HEADER_LENGTH = 112;
const MAX_BACKING_NAME = 1023;
const ENTRY = 8;
const MIN_EXTENDED_CLUSTER = 16 * KiB;
/** Tables that are in memory while an image is preallocated, bytes. */
const PREALLOCATION_CACHE = 16 * MiB;

/** Where the structures of a new image are, in clusters: header, refcount table, refcount blocks, L1 table, encryption header. */
interface Layout {
  readonly tableClusters: number;
  readonly blocks: number;
  readonly l1Entries: number;
  readonly l1Clusters: number;
  /** Bytes of the encryption header, and where it is in the file. */
  readonly cryptoBytes: number;
  readonly cryptoOffset: number;
  readonly clusters: number;
}

/**
 * Makes an empty qcow2 image in a storage, whatever that held before. The header comes last: before it the storage is no image. Only
 * preallocation follows it.
 *
 * @throws {LunetteError} INVALID for options that contradict each other, TOO_LARGE for a size that the cluster size cannot do
 */
export async function createQcow2(storage: Storage, options: CreateQcow2Options): Promise<void> {
  const geometry = checkCreateOptions(options);
  if ((options.dataFile === undefined) !== (options.dataStorage === undefined)) {
    invalid('an external data file needs both a name and a storage');
  }
  // What a raw data file holds must never be hidden by an entry that says less.
  const preallocation = options.preallocation ?? 'off';
  const mode = options.dataFileRaw && preallocation === 'off' ? 'metadata' : preallocation;
  const size = alignUp(options.size, 512);
  const volume = options.encryption === undefined ? undefined : await makeLuksVolume(options.encryption);
  const layout = makeLayout(geometry, size, volume?.bytes.length ?? 0);
  const header = encodeHeader(options, geometry, layout, size);
  // What we write must be what we read: a name that does not fit or the like shows here, before anything is written.
  parseHeader(new DataView(header.buffer, header.byteOffset, header.byteLength));

  const { clusterSize } = geometry;
  await storage.resize(0);
  await storage.resize(layout.clusters * clusterSize);
  await writeRefcounts(storage, geometry, layout);
  if (volume !== undefined) await storage.writev(layout.cryptoOffset, IoVec.of(volume.bytes));
  await storage.sync();
  if (options.dataStorage !== undefined) await emptyDataFile(options.dataStorage, size, mode !== 'off');
  await storage.writev(0, IoVec.of(header));
  await storage.sync();
  if (mode === 'off') return;
  const data = options.dataStorage ?? storage;
  const payload = volume === undefined ? data : new EncryptedStorage(data, makeSectorCipher(volume.cipher, volume.key));
  await preallocateNew(storage, data, payload, size, mode);
}

/** Makes a data file as large as the disk. @param shown its content will be seen before it is written: all of it shall be zeros */
async function emptyDataFile(dataStorage: Storage, size: number, shown: boolean): Promise<void> {
  if (dataStorage.growsZeroed) {
    await dataStorage.resize(0);
    await dataStorage.resize(size);
  } else if (dataStorage.size < size) {
    throw new LunetteError('NO_SPACE', `the device is smaller than a disk of ${size} bytes`, {
      path: dataStorage.path,
    });
  } else if (shown) {
    await zeroFill(dataStorage, 0, size);
  }
  await dataStorage.sync();
}

/** Maps all clusters of an image that was made a moment ago. */
async function preallocateNew(
  storage: Storage,
  dataStorage: Storage,
  payload: Storage,
  size: number,
  mode: Preallocation,
): Promise<void> {
  const header = await readHeader(storage);
  const cache = new SharedBlockCache(PREALLOCATION_CACHE);
  const { clusterSize, sliceSize } = header.geometry;
  const slices = new SliceCache(storage, cache, sliceSize);
  const place = { name: 'L1 table', offset: header.l1TableOffset, entries: header.l1Size, clusterSize };
  const writer = await Qcow2Writer.open({
    storage,
    dataStorage,
    payload,
    header,
    snapshotTable: { offset: 0, byteLength: 0, snapshots: [] },
    l1: await PointerTable.load(storage, place),
    slices,
    leases: new LeaseBook(),
    cache,
    warn: () => undefined,
  });
  try {
    await writer.preallocate(0, size, mode);
    await writer.close();
  } finally {
    slices.release();
  }
}

/** What follows from the options of a new image. @throws {LunetteError} INVALID for options that contradict each other */
export function checkCreateOptions(options: CreateQcow2Options): Geometry {
  const { clusterSize = 64 * KiB, version = 3, refcountBits = 16, size } = options;
  const clusterBits = Math.log2(clusterSize);
  const refcountOrder = Math.log2(refcountBits);
  if (!Number.isSafeInteger(size) || size < 0) invalid(`${size} is no size for an image`);
  if (!Number.isInteger(clusterBits) || clusterBits < 9 || clusterBits > 21) {
    invalid(`the cluster size must be a power of two from 512 bytes to 2 MiB, not ${clusterSize}`);
  }
  if (!Number.isInteger(refcountOrder) || refcountOrder < 0 || refcountOrder > 6) {
    invalid(`refcounts have 1 to 64 bits, a power of two, not ${refcountBits}`);
  }
  if (version === 2 && refcountBits !== 16) invalid('version 2 (compat 0.10) has refcounts of 16 bits');
  if (version === 2 && options.lazyRefcounts) invalid('lazy refcounts need version 3 (compat 1.1)');
  if (version === 2 && (options.compressionType ?? 'zlib') !== 'zlib') invalid('zstd needs version 3 (compat 1.1)');
  if (options.backingFormat !== undefined && options.backingFile === undefined) {
    invalid('a backing format without a backing file');
  }
  if (options.extendedL2) {
    if (version === 2) invalid('extended L2 entries need version 3 (compat 1.1)');
    if (clusterSize < MIN_EXTENDED_CLUSTER) invalid('extended L2 entries need clusters of 16 KiB or more');
  }
  checkDataFile(options, version);
  if (options.encryption !== undefined) {
    checkLuksOptions(options.encryption);
    if (options.dataFileRaw)
      invalid('what is encrypted is no raw image: data_file_raw and encryption exclude each other');
  }
  if ((options.preallocation ?? 'off') !== 'off' && options.backingFile !== undefined && !options.extendedL2) {
    invalid('preallocated clusters would hide the backing file: together they need extended L2 entries');
  }
  return makeGeometry({ version, clusterBits, refcountOrder, extendedL2: options.extendedL2 ?? false });
}

function cryptoExtension(layout: Layout): Uint8Array {
  const data = new Uint8Array(16);
  const view = new DataView(data.buffer);
  view.setBigUint64(0, BigInt(layout.cryptoOffset));
  view.setBigUint64(8, BigInt(layout.cryptoBytes));
  return data;
}

function checkDataFile(options: CreateQcow2Options, version: 2 | 3): void {
  const { dataFile, dataFileRaw } = options;
  if (dataFileRaw && dataFile === undefined) invalid('a raw data file without a data file');
  if (dataFile === undefined) return;
  if (version === 2) invalid('an external data file needs version 3 (compat 1.1)');
  if (dataFile === '') invalid('the external data file has no name');
  if (dataFileRaw && options.backingFile !== undefined) invalid('a raw data file cannot show a backing file');
}

function invalid(why: string): never {
  throw new LunetteError('INVALID', why);
}

function makeLayout(geometry: Geometry, size: number, cryptoBytes: number): Layout {
  const { clusterSize } = geometry;
  const l1Entries = divideUp(size, geometry.l2Coverage);
  if (l1Entries * ENTRY > MAX_L1_BYTES) {
    throw new ImageError('TOO_LARGE', `${size} bytes are too many for clusters of ${clusterSize} bytes`, {
      help: 'Use a larger cluster size.',
    });
  }
  const l1Clusters = divideUp(l1Entries * ENTRY, clusterSize);
  const cryptoClusters = divideUp(cryptoBytes, clusterSize);
  let tableClusters = 1;
  let blocks = 1;
  // The refcount structures count themselves: grow them until they cover everything.
  for (;;) {
    const clusters = 1 + tableClusters + blocks + l1Clusters + cryptoClusters;
    const needed = divideUp(clusters, geometry.refcountsPerBlock);
    const table = divideUp(needed * ENTRY, clusterSize);
    if (needed <= blocks && table <= tableClusters) {
      const cryptoOffset = (clusters - cryptoClusters) * clusterSize;
      return { tableClusters, blocks, l1Entries, l1Clusters, cryptoBytes, cryptoOffset, clusters };
    }
    blocks = Math.max(blocks, needed);
    tableClusters = Math.max(tableClusters, table);
    if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      throw new ImageError('TOO_LARGE', 'the refcount table would be larger than 8 MiB');
    }
  }
}

async function writeRefcounts(storage: Storage, geometry: Geometry, layout: Layout): Promise<void> {
  const { clusterSize, refcountsPerBlock, refcountOrder } = geometry;
  const table = new Uint8Array(layout.tableClusters * clusterSize);
  for (let i = 0; i < layout.blocks; i++) {
    const offset = (1 + layout.tableClusters + i) * clusterSize;
    setEntry(table, i * ENTRY, offset, 0, 0);
    const block = new Uint8Array(clusterSize);
    const used = Math.min(refcountsPerBlock, layout.clusters - i * refcountsPerBlock);
    for (let cluster = 0; cluster < used; cluster++) setRefcount(block, refcountOrder, cluster, 1);
    await storage.writev(offset, IoVec.of(block));
  }
  await storage.writev(clusterSize, IoVec.of(table));
}

/** The first cluster: header, extensions, backing file name. */
function encodeHeader(options: CreateQcow2Options, geometry: Geometry, layout: Layout, size: number): Uint8Array {
  const { clusterSize, version } = geometry;
  const zstd = options.compressionType === 'zstd';
  const name = new TextEncoder().encode(options.backingFile ?? '');
  const headerLength = version === 2 ? HEADER_V2.size : HEADER_LENGTH;

  const wanted: { type: number; data: Uint8Array }[] = [
    { type: EXTENSION.BACKING_FORMAT, text: options.backingFormat },
    { type: EXTENSION.DATA_FILE, text: options.dataFile },
  ].flatMap(({ type, text }) => (text === undefined ? [] : [{ type, data: new TextEncoder().encode(text) }]));
  if (layout.cryptoBytes > 0) wanted.unshift({ type: EXTENSION.CRYPTO, data: cryptoExtension(layout) });
  // The table of names is a courtesy: left out where it would crowd out the backing file's name.
  let extensions = encodeExtensions(version === 3 ? [...wanted, featureNameTable()] : wanted);
  if (headerLength + extensions.length + MAX_BACKING_NAME > clusterSize) extensions = encodeExtensions(wanted);

  const nameAt = headerLength + extensions.length;
  if (name.length > MAX_BACKING_NAME || nameAt + name.length > clusterSize) {
    invalid(`a backing file name of ${name.length} bytes does not fit into the image`);
  }
  const cluster = new Uint8Array(clusterSize);
  const view = new DataView(cluster.buffer);
  HEADER_V2.write(view, {
    magic: MAGIC,
    version,
    backingFileOffset: name.length > 0 ? nameAt : 0,
    backingFileSize: name.length,
    clusterBits: geometry.clusterBits,
    size,
    cryptMethod: layout.cryptoBytes > 0 ? CRYPT_LUKS : CRYPT_NONE,
    l1Size: layout.l1Entries,
    l1TableOffset: layout.l1Entries === 0 ? 0 : (1 + layout.tableClusters + layout.blocks) * clusterSize,
    refcountTableOffset: clusterSize,
    refcountTableClusters: layout.tableClusters,
  });
  if (version === 3) {
    HEADER_V3.write(view, {
      incompatibleFeatures: {
        high: 0,
        low:
          (zstd ? INCOMPATIBLE.COMPRESSION_TYPE : 0) |
          (options.dataFile !== undefined ? INCOMPATIBLE.DATA_FILE : 0) |
          (geometry.extendedL2 ? INCOMPATIBLE.EXTENDED_L2 : 0),
      },
      compatibleFeatures: { high: 0, low: options.lazyRefcounts ? COMPATIBLE.LAZY_REFCOUNTS : 0 },
      autoclearFeatures: { high: 0, low: options.dataFileRaw ? AUTOCLEAR.DATA_FILE_RAW : 0 },
      refcountOrder: geometry.refcountOrder,
      headerLength,
    });
    view.setUint8(HEADER_V3.size, zstd ? 1 : 0);
  }
  cluster.set(extensions, headerLength);
  cluster.set(name, nameAt);
  return cluster;
}
