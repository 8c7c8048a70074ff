import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp, divideUp, KiB } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';
import { EXTENSION, encodeExtensions, featureNameTable } from './extensions.ts';
import { COMPATIBLE, INCOMPATIBLE } from './features.ts';
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
import { setRefcount } from './refcount-codec.ts';

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
}

const HEADER_LENGTH = 112;
const MAX_BACKING_NAME = 1023;
const ENTRY = 8;

/** Where the structures of a new image are, in clusters: header, refcount table, refcount blocks, L1 table. */
interface Layout {
  readonly tableClusters: number;
  readonly blocks: number;
  readonly l1Entries: number;
  readonly l1Clusters: number;
  readonly clusters: number;
}

/**
 * Makes an empty qcow2 image in a storage, whatever that held before. The header comes last: before it the storage is no image.
 *
 * @throws {LunetteError} INVALID for options that contradict each other, TOO_LARGE for a size that the cluster size cannot do
 */
export async function createQcow2(storage: Storage, options: CreateQcow2Options): Promise<void> {
  const geometry = checkOptions(options);
  const size = alignUp(options.size, 512);
  const layout = makeLayout(geometry, size);
  const header = encodeHeader(options, geometry, layout, size);
  // What we write must be what we read: a name that does not fit or the like shows here, before anything is written.
  parseHeader(new DataView(header.buffer, header.byteOffset, header.byteLength));

  const { clusterSize } = geometry;
  await storage.resize(0);
  await storage.resize(layout.clusters * clusterSize);
  await writeRefcounts(storage, geometry, layout);
  await storage.sync();
  await storage.writev(0, IoVec.of(header));
  await storage.sync();
}

function checkOptions(options: CreateQcow2Options): Geometry {
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
  return makeGeometry({ version, clusterBits, refcountOrder, extendedL2: false });
}

function invalid(why: string): never {
  throw new LunetteError('INVALID', why);
}

function makeLayout(geometry: Geometry, size: number): Layout {
  const { clusterSize } = geometry;
  const l1Entries = divideUp(size, geometry.l2Coverage);
  if (l1Entries * ENTRY > MAX_L1_BYTES) {
    throw new ImageError('TOO_LARGE', `${size} bytes are too many for clusters of ${clusterSize} bytes`, {
      help: 'Use a larger cluster size.',
    });
  }
  const l1Clusters = divideUp(l1Entries * ENTRY, clusterSize);
  let tableClusters = 1;
  let blocks = 1;
  // The refcount structures count themselves: grow them until they cover everything.
  for (;;) {
    const clusters = 1 + tableClusters + blocks + l1Clusters;
    const needed = divideUp(clusters, geometry.refcountsPerBlock);
    const table = divideUp(needed * ENTRY, clusterSize);
    if (needed <= blocks && table <= tableClusters) return { tableClusters, blocks, l1Entries, l1Clusters, clusters };
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

  const wanted =
    options.backingFormat === undefined
      ? []
      : [{ type: EXTENSION.BACKING_FORMAT, data: new TextEncoder().encode(options.backingFormat) }];
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
    l1Size: layout.l1Entries,
    l1TableOffset: layout.l1Entries === 0 ? 0 : (1 + layout.tableClusters + layout.blocks) * clusterSize,
    refcountTableOffset: clusterSize,
    refcountTableClusters: layout.tableClusters,
  });
  if (version === 3) {
    HEADER_V3.write(view, {
      incompatibleFeatures: { high: 0, low: zstd ? INCOMPATIBLE.COMPRESSION_TYPE : 0 },
      compatibleFeatures: { high: 0, low: options.lazyRefcounts ? COMPATIBLE.LAZY_REFCOUNTS : 0 },
      refcountOrder: geometry.refcountOrder,
      headerLength,
    });
    view.setUint8(HEADER_V3.size, zstd ? 1 : 0);
  }
  cluster.set(extensions, headerLength);
  cluster.set(name, nameAt);
  return cluster;
}
