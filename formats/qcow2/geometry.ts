/** What follows from the few header fields that never change while an image is open. Sizes in bytes unless a name says otherwise. */
export interface Geometry {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterSize: number;
  /** 16-byte L2 entries with 32 subclusters each. */
  readonly extendedL2: boolean;
  /** Bytes of an L2 entry: 8, or 16 when extended. */
  readonly entrySize: number;
  /** Entries of an L2 table. */
  readonly l2Entries: number;
  /** Guest bytes that one L2 table maps. */
  readonly l2Coverage: number;
  /** Tables are held and written in slices of this size: a part of a cluster, or one that is small. */
  readonly sliceSize: number;
  readonly slicesPerCluster: number;
  /** L2 entries in a slice, and the guest bytes that they map. */
  readonly sliceEntries: number;
  readonly sliceCoverage: number;
  readonly subclusterSize: number;
  readonly refcountOrder: number;
  readonly refcountBits: number;
  /** The largest refcount; Infinity where it exceeds what is exact. */
  readonly refcountMax: number;
  readonly refcountsPerBlock: number;
  readonly refcountsPerSlice: number;
  /** Bits of a compressed cluster's descriptor that are its host offset ("x" in the specification). */
  readonly compressedOffsetBits: number;
}

/** Tables are cached, copied and written in pieces of at most this size. */
const MAX_SLICE = 4096;

export function makeGeometry(header: {
  version: 2 | 3;
  clusterBits: number;
  refcountOrder: number;
  extendedL2: boolean;
}): Geometry {
  const clusterSize = 2 ** header.clusterBits;
  const entrySize = header.extendedL2 ? 16 : 8;
  const sliceSize = Math.min(clusterSize, MAX_SLICE);
  const refcountBits = 2 ** header.refcountOrder;
  return {
    version: header.version,
    clusterBits: header.clusterBits,
    clusterSize,
    extendedL2: header.extendedL2,
    entrySize,
    l2Entries: clusterSize / entrySize,
    l2Coverage: (clusterSize / entrySize) * clusterSize,
    sliceSize,
    slicesPerCluster: clusterSize / sliceSize,
    sliceEntries: sliceSize / entrySize,
    sliceCoverage: (sliceSize / entrySize) * clusterSize,
    subclusterSize: header.extendedL2 ? clusterSize / 32 : clusterSize,
    refcountOrder: header.refcountOrder,
    refcountBits,
    refcountMax: refcountBits > 53 ? Number.MAX_SAFE_INTEGER : 2 ** refcountBits - 1,
    refcountsPerBlock: (clusterSize * 8) / refcountBits,
    refcountsPerSlice: (sliceSize * 8) / refcountBits,
    compressedOffsetBits: 62 - (header.clusterBits - 8),
  };
}
