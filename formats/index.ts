/** Lunette's formats: open, map, read and write virtual disk images. The library face: `import … from 'lunette/formats'`. */
export { SharedBlockCache } from './cache/block-cache.ts';
export type { BlockCache, BlockCacheStats } from './cache/cache.ts';
export { loadLz4 } from './cache/lz4.ts';
export { type CheckImageOptions, checkImage, type ImageCheck } from './check.ts';
export * from './core/errors.ts';
export { IoVec } from './core/iov.ts';
export { formatSize, parseSize, sizeProblem } from './core/units.ts';
export {
  CREATORS,
  type CreatedImage,
  type CreateImageOptions,
  createImage,
  creatorOf,
  readCreateValues,
} from './create.ts';
export type { CreateBacking, CreateOption, CreateValue, CreateValues, FormatCreator, FormatDriver } from './driver.ts';
export {
  addBitmap,
  type BitmapInfo,
  type BitmapReader,
  clearBitmap,
  disableBitmap,
  enableBitmap,
  listBitmaps,
  mergeBitmap,
  type NewBitmapOptions,
  openBitmap,
  removeBitmap,
} from './image/bitmaps.ts';
export { ChainImage } from './image/chain.ts';
export type { CheckOptions, CheckResult } from './image/check.ts';
export * from './image/extent.ts';
export { DirectoryGate, OPEN_GATE, type OpenGate } from './image/gate.ts';
export type { Image, ImageLimits } from './image/image.ts';
export type {
  Compression,
  EncodedUnit,
  Layer,
  LayerInfo,
  NewSnapshotOptions,
  ParentName,
  ResizeOptions,
  SnapshotInfo,
  SnapshotReference,
} from './image/layer.ts';
export { applySnapshot, createSnapshot, deleteSnapshot, openVmState, VmState } from './image/snapshots.ts';
export type { KeySlotChange } from './luks/amend.ts';
export type { LuksOptions } from './luks/create.ts';
export { ImageHost, type ImageHostOptions, type OpenImageOptions } from './open.ts';
export { type AmendQcow2Options, amendQcow2, type CheckAmendOptions, checkAmendQcow2 } from './qcow2/amend.ts';
export { type CheckQcow2Options, checkQcow2 } from './qcow2/check.ts';
export { encodeCluster, loadClusterEncoder } from './qcow2/cluster-codec.ts';
export { createQcow2 } from './qcow2/create.ts';
export { encryptionHeaderBytes } from './qcow2/creator.ts';
export { diffQcow2, type MappingDiff, type MappingDifference, type MappingState, openDiffs } from './qcow2/diff.ts';
export { amendQcow2KeySlots } from './qcow2/key-slots.ts';
export { visitOwnClusters } from './qcow2/own-clusters.ts';
export { measureQcow2Usage, type Qcow2Usage, type SnapshotUsage, type StateUsage } from './qcow2/usage.ts';
export { loadZstd } from './qcow2/zstd.ts';
export { DRIVERS } from './registry.ts';
export { MemoryStorage } from './storage/memory.ts';
export type { LockMode, Storage, StorageOpener } from './storage/storage.ts';
export { WindowStorage } from './storage/window.ts';
export { checkVdi } from './vdi/check.ts';
export { createVdi, type VdiCreateOptions } from './vdi/create.ts';
export { parseVbox, type VboxDisk, type VboxMachine, type VboxSnapshot } from './vdi/vbox.ts';
export { checkVmdk } from './vmdk/check.ts';
export {
  CREATE_TYPES as VMDK_CREATE_TYPES,
  createVmdk,
  type VmdkCreateOptions,
  type VmdkCreateType,
} from './vmdk/create.ts';
export { listOvaDisks } from './vmdk/ova.ts';
export { type StreamOptions, type StreamTarget, writeStreamOptimized } from './vmdk/stream-writer.ts';
export { parseVmsd, parseVmxDisks, type VmsdFile, type VmsdSnapshot, type VmxDisk } from './vmdk/vmsd.ts';
