/** Lunette's formats: open, map, read and write virtual disk images. The library face: `import … from 'lunette/formats'`. */
export { SharedBlockCache } from './cache/block-cache.ts';
export type { BlockCache, BlockCacheStats } from './cache/cache.ts';
export * from './core/errors.ts';
export { IoVec } from './core/iov.ts';
export { formatSize, parseSize } from './core/units.ts';
export type { FormatDriver } from './driver.ts';
export { ChainImage } from './image/chain.ts';
export * from './image/extent.ts';
export { DirectoryGate, OPEN_GATE, type OpenGate } from './image/gate.ts';
export type { Image, ImageLimits } from './image/image.ts';
export type { Layer, LayerInfo, ResizeOptions, SnapshotInfo } from './image/layer.ts';
export { ImageHost, type ImageHostOptions, type OpenImageOptions } from './open.ts';
export { createQcow2 } from './qcow2/create.ts';
export { DRIVERS } from './registry.ts';
export { MemoryStorage } from './storage/memory.ts';
export type { LockMode, Storage, StorageOpener } from './storage/storage.ts';
export { WindowStorage } from './storage/window.ts';
