import type { LayerInfo, SnapshotInfo } from '../image/layer.ts';
import { actualSize } from '../storage/actual-size.ts';
import type { Storage } from '../storage/storage.ts';
import { readBitmapDirectory } from './bitmaps.ts';
import { CRYPT_NONE, describeEncryption } from './encryption.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from './features.ts';
import type { Qcow2Header } from './header.ts';
import type { Qcow2Snapshot } from './snapshot.ts';

/** What an image is, from its header and snapshot table; follows no reference. Names of `specific` are those of QEMU's JSON. */
export async function describeQcow2(image: {
  storage: Storage;
  header: Qcow2Header;
  /** Guest size now: the header's, or a snapshot's. */
  size: number;
  snapshots: readonly Qcow2Snapshot[];
}): Promise<LayerInfo> {
  const { header, storage, snapshots } = image;
  const { geometry, extensions } = header;
  const specific: Record<string, unknown> = {
    compat: geometry.version === 2 ? '0.10' : '1.1',
    'compression-type': header.compressionType,
    'refcount-bits': geometry.refcountBits,
  };
  if (geometry.version === 3) {
    specific['lazy-refcounts'] = (header.compatibleFeatures.low & COMPATIBLE.LAZY_REFCOUNTS) !== 0;
    specific.corrupt = header.corrupt;
    specific['extended-l2'] = geometry.extendedL2;
  }
  const external = (header.incompatibleFeatures.low & INCOMPATIBLE.DATA_FILE) !== 0;
  if (external) {
    if (extensions.dataFile !== undefined) specific['data-file'] = extensions.dataFile;
    specific['data-file-raw'] = (header.autoclearFeatures.low & AUTOCLEAR.DATA_FILE_RAW) !== 0;
  }
  if (header.cryptMethod !== CRYPT_NONE) specific.encrypt = await describeEncryption(storage, header);
  if (extensions.bitmaps !== undefined && (header.autoclearFeatures.low & AUTOCLEAR.BITMAPS) !== 0) {
    const bitmaps = await readBitmapDirectory(storage, extensions.bitmaps, geometry.clusterSize);
    specific.bitmaps = bitmaps.map(({ flags, name, granularity }) => ({ flags, name, granularity }));
  }
  return {
    format: 'qcow2',
    virtualSize: image.size,
    ...(await actualSize(storage)),
    clusterSize: geometry.clusterSize,
    ...(header.cryptMethod !== CRYPT_NONE ? { encrypted: true } : {}),
    dirty: header.dirty,
    ...(header.backingFile !== undefined ? { backingFile: header.backingFile } : {}),
    ...(header.backingFormat !== undefined ? { backingFormat: header.backingFormat } : {}),
    ...(snapshots.length > 0 ? { snapshots: snapshots.map(plainSnapshot) } : {}),
    specific,
    ...(external && extensions.dataFile !== undefined
      ? { children: [{ name: 'data-file', path: storage.resolve(extensions.dataFile) }] }
      : {}),
  };
}

/** What everybody may know of a snapshot. */
export function plainSnapshot(snapshot: Qcow2Snapshot): SnapshotInfo {
  const { at: _at, l1TableOffset: _offset, l1Size: _size, extra: _extra, ...info } = snapshot;
  return info;
}
