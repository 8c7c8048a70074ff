import type { BlockCache, BlockSpace } from '../cache/cache.ts';
import { ImageError } from '../core/errors.ts';
import { type Inflate, inflatePlain, outputOf } from '../core/inflate.ts';
import { IoVec } from '../core/iov.ts';
import { getU32LE } from '../core/words.ts';
import type { Storage } from '../storage/storage.ts';
import { SECTOR } from './header.ts';

/** Bytes before a compressed grain: its first sector on the disk and its size, or the size alone. */
const MARKER_SIZE = 12;
const SIZE_ONLY = 4;

/** Reads the compressed grains of a streamOptimized extent; keeps what it unpacked in the block cache. */
export class CompressedGrains {
  readonly #storage: Storage;
  /** Bytes. */
  readonly #grain: number;
  readonly #markers: boolean;
  readonly #inflate: Inflate;
  readonly #space: BlockSpace;
  readonly #loading = new Map<number, Promise<Uint8Array>>();

  /** @param options.markers grains say which sector of the disk they are for; inflate: default Node's */
  constructor(
    storage: Storage,
    cache: BlockCache,
    options: { grain: number; count: number; markers: boolean; inflate?: Inflate | undefined },
  ) {
    this.#storage = storage;
    this.#grain = options.grain;
    this.#markers = options.markers;
    this.#inflate = options.inflate ?? inflatePlain;
    this.#space = cache.space(options.count);
  }

  tryRead(index: number, at: number, iov: IoVec): boolean {
    const bytes = this.#space.get(index);
    if (bytes === undefined) return false;
    iov.copyIn(0, bytes.subarray(at, at + iov.byteLength));
    return true;
  }

  /**
   * @param sector where the grain is, @param length how many of its bytes belong to the disk, @param at byte in the grain
   * @throws {ImageError} CORRUPT
   */
  async read(index: number, sector: number, length: number, at: number, iov: IoVec): Promise<void> {
    if (this.tryRead(index, at, iov)) return;
    let loading = this.#loading.get(index);
    if (loading === undefined) {
      loading = this.#load(index, sector, length).finally(() => this.#loading.delete(index));
      this.#loading.set(index, loading);
    }
    const bytes = await loading;
    iov.copyIn(0, bytes.subarray(at, at + iov.byteLength));
  }

  async #load(index: number, sector: number, length: number): Promise<Uint8Array> {
    const offset = sector * SECTOR;
    const fail = (why: string): never => {
      throw new ImageError('CORRUPT', `the compressed grain ${index} ${why}`, {
        path: this.#storage.path,
        offset,
      });
    };
    const head = this.#markers ? MARKER_SIZE : SIZE_ONLY;
    // Most grains compress: one read gets marker and data.
    let packed = new Uint8Array(Math.min(head + this.#grain, Math.max(0, this.#storage.size - offset)));
    if (packed.length < head) fail('is past the end of the file');
    await this.#storage.readv(offset, IoVec.of(packed));
    const size = getU32LE(packed, head - 4);
    if (this.#markers) {
      const lba = getU32LE(packed, 0) + getU32LE(packed, 4) * 2 ** 32;
      if (lba * SECTOR !== index * this.#grain) fail(`has the marker of sector ${lba}`);
    }
    if (size === 0 || size > 2 * this.#grain + SECTOR) fail(`has ${size} bytes`);
    if (offset + head + size > this.#storage.size) fail('ends past the end of the file');
    if (head + size > packed.length) {
      const whole = new Uint8Array(head + size);
      whole.set(packed);
      await this.#storage.readv(offset + packed.length, IoVec.of(whole, packed.length));
      packed = whole;
    }
    const data = packed.subarray(head, head + size);
    const plain = outputOf(this.#grain);
    const done = await this.#inflate(hasZlibHeader(data) ? 'zlib' : 'raw', data, plain);
    if (done === undefined) return fail('cannot be unpacked');
    if (done < length) fail(`has ${done} bytes when unpacked, instead of ${length}`);
    const bytes = done === plain.length ? plain : new Uint8Array(plain.subarray(0, done));
    this.#space.set(index, bytes);
    return bytes;
  }

  release(): void {
    this.#space.release();
  }
}

/** The specification says plain deflate (RFC 1951), all programs write the zlib form (RFC 1950). */
function hasZlibHeader(data: Uint8Array): boolean {
  const [method = 0, flags = 0] = data;
  return (method & 0x0f) === 8 && (method * 256 + flags) % 31 === 0;
}
