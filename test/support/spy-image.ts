import type { IoVec } from '../../formats/core/iov.ts';
import type { ExtentBuffer } from '../../formats/image/extent.ts';
import type { Image, ImageLimits } from '../../formats/image/image.ts';
import type { ResizeOptions } from '../../formats/image/layer.ts';

/** An image in front of another: notes what changes it, can be made to fail, to be slow, or to look different. */
export class SpyImage implements Image {
  readonly inner: Image;
  /** Calls other than reads, in words. */
  readonly log: string[] = [];
  /** Makes every call of a name fail. */
  readonly failures = new Map<string, Error>();
  /** While set, calls that return promises wait for it before they do anything, and nothing completes at once. */
  gate: Promise<void> | undefined;
  /** Looks like an image of this size. */
  sizeShown: number | undefined;
  limitsShown: ImageLimits | undefined;
  readonly #listeners = new Set<(size: number) => void>();

  constructor(inner: Image) {
    this.inner = inner;
  }

  get path(): string {
    return this.inner.path;
  }

  get format(): string {
    return this.inner.format;
  }

  get size(): number {
    return this.sizeShown ?? this.inner.size;
  }

  get readOnly(): boolean {
    return this.inner.readOnly;
  }

  get limits(): ImageLimits {
    return this.limitsShown ?? this.inner.limits;
  }

  /** Sets a gate. @returns what opens it */
  hold(): () => void {
    let open = (): void => undefined;
    this.gate = new Promise((resolve) => {
      open = () => {
        this.gate = undefined;
        resolve();
      };
    });
    return open;
  }

  async #pass(call: string, note?: string): Promise<void> {
    if (note !== undefined) this.log.push(note);
    if (this.gate !== undefined) await this.gate;
    const failure = this.failures.get(call);
    if (failure !== undefined) throw failure;
  }

  tryReadv(offset: number, iov: IoVec): boolean {
    if (this.gate !== undefined || this.failures.has('readv')) return false;
    return this.inner.tryReadv(offset, iov);
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    await this.#pass('readv');
    await this.inner.readv(offset, iov);
  }

  tryWritev(offset: number, iov: IoVec): boolean {
    if (this.gate !== undefined || this.failures.has('writev')) return false;
    if (!this.inner.tryWritev(offset, iov)) return false;
    this.log.push(`write ${offset} ${iov.byteLength}`);
    return true;
  }

  async writev(offset: number, iov: IoVec): Promise<void> {
    await this.#pass('writev', `write ${offset} ${iov.byteLength}`);
    await this.inner.writev(offset, iov);
  }

  async writeZeroes(offset: number, length: number, unmap: boolean): Promise<void> {
    await this.#pass('writeZeroes', `${unmap ? 'unmap' : 'zero'} ${offset} ${length}`);
    await this.inner.writeZeroes(offset, length, unmap);
  }

  async discard(offset: number, length: number): Promise<boolean> {
    await this.#pass('discard', `discard ${offset} ${length}`);
    return this.inner.discard(offset, length);
  }

  async readModifyWrite(offset: number, length: number, change: (bytes: Uint8Array) => boolean): Promise<void> {
    await this.#pass('readModifyWrite', `modify ${offset} ${length}`);
    await this.inner.readModifyWrite(offset, length, change);
  }

  async flush(): Promise<void> {
    await this.#pass('flush', 'flush');
    await this.inner.flush();
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    await this.#pass('map');
    return this.inner.map(offset, length, out);
  }

  async resize(size: number, options?: Partial<ResizeOptions>): Promise<void> {
    await this.inner.resize(size, options);
    this.showSize(size);
  }

  /** Looks like an image that was resized. */
  showSize(size: number): void {
    this.sizeShown = size;
    for (const listener of this.#listeners) listener(size);
  }

  onResize(listener: (size: number) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): Promise<void> {
    return this.inner.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
