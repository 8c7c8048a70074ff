import type { IoVec } from '../../formats/core/iov.ts';
import type { ExtentBuffer } from '../../formats/image/extent.ts';
import type { Image, ImageLimits } from '../../formats/image/image.ts';
import type { ResizeOptions } from '../../formats/image/layer.ts';

/**
 * An image that acknowledges a change only when the end of this process cannot undo it: when the system knows all of it.
 *
 * An initiator of the kernel's target keeps its session when the daemon dies. It does not hear of it, so it does not send again what was
 * acknowledged and not flushed: to it that is in the disk's cache, and the next flush succeeds. Data is safe then, the system has it; but
 * where new data is, in tables that this process holds, is not. So while the system does not have those changes, writes wait until they are
 * published, which all that wait share. Writes into space that is allocated, with nothing waiting, go on as they are.
 */
export class SettledImage implements Image {
  readonly #image: Image;
  /** The last change that is out of this process's hands. */
  #settled: number;

  constructor(image: Image) {
    this.#image = image;
    this.#settled = changesOf(image);
  }

  get path(): string {
    return this.#image.path;
  }
  get format(): string {
    return this.#image.format;
  }
  get size(): number {
    return this.#image.size;
  }
  get readOnly(): boolean {
    return this.#image.readOnly;
  }
  get limits(): ImageLimits {
    return this.#image.limits;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    return this.#image.tryReadv(offset, iov);
  }

  readv(offset: number, iov: IoVec): Promise<void> {
    return this.#image.readv(offset, iov);
  }

  readsZero(offset: number, length: number): boolean {
    return this.#image.readsZero?.(offset, length) ?? false;
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    // What it goes into may be space that only this process knows of.
    return changesOf(this.#image) === this.#settled && this.#image.tryWritev(offset, iov);
  }

  writev(offset: number, iov: IoVec): Promise<void> {
    return this.#settling(this.#image.writev(offset, iov));
  }

  writeZeroes(offset: number, length: number, unmap: boolean): Promise<void> {
    return this.#settling(this.#image.writeZeroes(offset, length, unmap));
  }

  discard(offset: number, length: number): Promise<boolean> {
    return this.#settling(this.#image.discard(offset, length));
  }

  readModifyWrite(offset: number, length: number, change: (bytes: Uint8Array) => boolean): Promise<void> {
    return this.#settling(this.#image.readModifyWrite(offset, length, change));
  }

  flush(): Promise<void> {
    return this.#covering(() => this.#image.flush());
  }

  publish(): Promise<void> {
    return this.#covering(() => this.#image.publish?.() ?? this.#image.flush());
  }

  map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    return this.#image.map(offset, length, out);
  }

  async resize(size: number, options?: Partial<ResizeOptions>): Promise<void> {
    await this.#image.resize(size, options);
    await this.flush();
  }

  onResize(listener: (size: number) => void): () => void {
    return this.#image.onResize(listener);
  }

  close(): Promise<void> {
    return this.#image.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #settling<T>(change: Promise<T>): Promise<T> {
    const result = await change;
    if (changesOf(this.#image) > this.#settled) await this.publish();
    return result;
  }

  async #covering(act: () => Promise<void>): Promise<void> {
    const covered = changesOf(this.#image);
    await act();
    this.#settled = Math.max(this.#settled, covered);
  }
}

function changesOf(image: Image): number {
  return image.mappingChanges ?? 0;
}
