import { promisify } from 'node:util';
import zlib from 'node:zlib';
import type { BlockSpace } from '../cache/cache.ts';
import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';
import type { CompressionType } from './header.ts';
import { loadZstd } from './zstd.ts';

/** Clusters that are decompressed at once: what bounds the memory of a deep queue of reads. */
const MAX_DECOMPRESSING = 8;

const inflateRaw = promisify<zlib.InputType, zlib.ZlibOptions, Buffer>(zlib.inflateRaw);

/**
 * Decompresses the first `size` bytes of a stream. Whatever follows them, or whether the stream goes on, does not matter: a cluster ends
 * when it is full.
 *
 * Raw deflate, up to 15 window bits (writers use 12; old tools did not), or zstd frames.
 *
 * @throws {ImageError} CORRUPT when the stream is broken or too short
 */
export async function decompress(type: CompressionType, input: Uint8Array, size: number): Promise<Uint8Array> {
  try {
    const output = type === 'zstd' ? (await loadZstd())(input, size) : await inflate(input, size);
    if (output.length === size) return output;
  } catch (error) {
    if (error instanceof ImageError) throw error;
    throw new ImageError('CORRUPT', `a compressed cluster is no valid ${type} stream`, { cause: error });
  }
  throw new ImageError('CORRUPT', `a compressed cluster holds less than a cluster of ${type} data`);
}

async function inflate(input: Uint8Array, size: number): Promise<Uint8Array> {
  try {
    return await inflateRaw(input, {
      windowBits: 15,
      chunkSize: Math.max(size, 64),
      maxOutputLength: size,
      finishFlush: zlib.constants.Z_SYNC_FLUSH,
    });
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ERR_BUFFER_TOO_LARGE') throw error;
    return inflateStart(input, size);
  }
}

/** The first bytes of a stream that holds more. */
function inflateStart(input: Uint8Array, size: number): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const stream = zlib.createInflateRaw({ windowBits: 15, finishFlush: zlib.constants.Z_SYNC_FLUSH });
    const output = new Uint8Array(size);
    let done = 0;
    stream.on('data', (chunk: Buffer) => {
      const take = Math.min(chunk.length, size - done);
      output.set(chunk.subarray(0, take), done);
      done += take;
      if (done < size) return;
      stream.destroy();
      resolve(output);
    });
    stream.on('end', () => resolve(output.subarray(0, done)));
    stream.on('error', reject);
    stream.end(input);
  });
}

export interface CompressedClustersOptions {
  readonly storage: Storage;
  readonly type: CompressionType;
  readonly clusterSize: number;
  /** Decompressed clusters by guest cluster number. */
  readonly cache: BlockSpace;
  /** Bytes in the file that the compressed cluster at a guest offset may take; undefined when its entry is not in memory or another one now. */
  readonly lengthOf: (guestOffset: number, hostOffset: number) => number | undefined;
}

/** Reads compressed clusters: each is decompressed once for all who wait for it, and kept in the block cache. */
export class CompressedClusters {
  readonly #options: CompressedClustersOptions;
  #cache: BlockSpace;
  /** By guest cluster: what is being decompressed, and from where. */
  readonly #pending = new Map<number, { hostOffset: number; bytes: Promise<Uint8Array> }>();
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(options: CompressedClustersOptions) {
    this.#options = options;
    this.#cache = options.cache;
  }

  /** Copies from a cluster that is in the cache. Offset is the guest's; the range stays in one cluster. */
  tryRead(offset: number, iov: IoVec): boolean {
    const { clusterSize } = this.#options;
    const cluster = Math.floor(offset / clusterSize);
    const bytes = this.#cache.get(cluster);
    if (bytes === undefined) return false;
    const within = offset - cluster * clusterSize;
    iov.copyIn(0, bytes.subarray(within, within + iov.byteLength));
    return true;
  }

  /** Reads a range of the cluster whose stream is at `hostOffset`. @throws {ImageError} CORRUPT */
  async read(offset: number, hostOffset: number, iov: IoVec): Promise<void> {
    if (this.tryRead(offset, iov)) return;
    const { clusterSize } = this.#options;
    const cluster = Math.floor(offset / clusterSize);
    let pending = this.#pending.get(cluster);
    if (pending === undefined || pending.hostOffset !== hostOffset) {
      pending = { hostOffset, bytes: this.#decompress(cluster, hostOffset) };
      this.#pending.set(cluster, pending);
    }
    const mine = pending;
    try {
      const bytes = await mine.bytes;
      const within = offset - cluster * clusterSize;
      iov.copyIn(0, bytes.subarray(within, within + iov.byteLength));
    } finally {
      if (this.#pending.get(cluster) === mine) this.#pending.delete(cluster);
    }
  }

  /** The cluster's mapping has changed: what was decompressed for it is history. */
  forget(guestOffset: number): void {
    this.#cache.delete(Math.floor(guestOffset / this.#options.clusterSize));
  }

  release(): void {
    this.#cache.release();
  }

  /** The disk is another one now, or of another size. */
  renew(cache: BlockSpace): void {
    this.#cache.release();
    this.#cache = cache;
  }

  async #decompress(cluster: number, hostOffset: number): Promise<Uint8Array> {
    const { storage, type, clusterSize, lengthOf } = this.#options;
    if (this.#running >= MAX_DECOMPRESSING) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running++;
    try {
      // An entry that has changed since it was mapped does not tell its old length: a stream takes at most two clusters.
      const most = lengthOf(cluster * clusterSize, hostOffset) ?? 2 * clusterSize;
      const length = Math.min(most, Math.max(0, storage.size - hostOffset));
      const input = new Uint8Array(length);
      if (length > 0) await storage.readv(hostOffset, IoVec.of(input));
      const bytes = await decompress(type, input, clusterSize);
      // Written over meanwhile: nobody may find the old content under this number.
      if (lengthOf(cluster * clusterSize, hostOffset) !== undefined) this.#cache.set(cluster, bytes);
      return bytes;
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      throw new ImageError(error.code, error.message, { path: storage.path, offset: hostOffset, cause: error.cause });
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }
}
