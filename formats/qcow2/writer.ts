import { ImageError } from '../core/errors.ts';
import type { Reservation, ResizeOptions } from '../image/layer.ts';
import type { CompressedClusters } from './compressed.ts';
import type { Mapping } from './mapping.ts';
import { MetadataMap } from './metadata-map.ts';

/** Placeholder for the first commits of the room; replaced by the write path. */
export class Qcow2Writer {
  readonly metadata = new MetadataMap(65536);
  static async open(_parts: unknown): Promise<Qcow2Writer> {
    throw new ImageError('UNSUPPORTED', 'qcow2 images cannot be written yet');
  }
  attach(_mapping: Mapping, _compressed: CompressedClusters): void {}
  async beginWrite(): Promise<void> {}
  async reserve(_offset: number, _length: number): Promise<Reservation> {
    throw new ImageError('UNSUPPORTED', 'qcow2 images cannot be written yet');
  }
  async zero(_offset: number, _length: number, _unmap: boolean): Promise<boolean> {
    return false;
  }
  async release(_offset: number, _length: number): Promise<boolean> {
    return false;
  }
  async resize(_size: number, _options: ResizeOptions): Promise<void> {}
  async flush(): Promise<void> {}
  async close(): Promise<void> {}
}
