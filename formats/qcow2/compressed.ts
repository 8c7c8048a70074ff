import type { BlockSpace } from '../cache/cache.ts';
import { ImageError } from '../core/errors.ts';
import type { Inflate } from '../core/inflate.ts';
import { IoVec } from '../core/iov.ts';
import { MiB } from '../core/units.ts';
import type { Unpack } from '../core/unpack.ts';
import type { Storage } from '../storage/storage.ts';
import { decompress } from './cluster-codec.ts';
import type { CompressionType } from './header.ts';

/** Clusters that are decompressed at once, and how many bytes of them: what bounds the memory of a deep queue of reads. */
const MAX_DECOMPRESSING = 8;
const MAX_DECOMPRESSING_BYTES = 4 * MiB;

export interface CompressedClustersOptions {
  readonly storage: Storage;
  readonly type: CompressionType;
  readonly clusterSize: number;
  /** Default: Node's. */
  readonly inflate?: Inflate | undefined;
  /** Default: Node's, and zstd-napi. */
  readonly unpack?: Unpack | undefined;
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
  readonly #maxRunning: number;
  #running = 0;
  /** Buffers for streams, a cluster each: the next one is read into what the last one was in. */
  readonly #inputs: Uint8Array[] = [];
  readonly #waiting: (() => void)[] = [];

  constructor(options: CompressedClustersOptions) {
    this.#options = options;
    this.#cache = options.cache;
    const most = Math.floor(MAX_DECOMPRESSING_BYTES / options.clusterSize);
    this.#maxRunning = Math.max(2, Math.min(MAX_DECOMPRESSING, most));
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

  /** The cluster's mapping has changed: what was decompressed for it is history. Behind the disk's end nothing is ever decompressed. */
  forget(guestOffset: number): void {
    const cluster = Math.floor(guestOffset / this.#options.clusterSize);
    if (cluster < this.#cache.count) this.#cache.delete(cluster);
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
    const { storage, type, clusterSize, inflate, unpack, lengthOf } = this.#options;
    if (this.#running >= this.#maxRunning) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    else this.#running++;
    try {
      // An entry that has changed since it was mapped does not tell its old length: a stream takes at most two clusters.
      const most = lengthOf(cluster * clusterSize, hostOffset) ?? 2 * clusterSize;
      const length = Math.min(most, Math.max(0, storage.size - hostOffset));
      const pooled = length <= clusterSize;
      const buffer = (pooled ? this.#inputs.pop() : undefined) ?? new Uint8Array(pooled ? clusterSize : length);
      const input = buffer.subarray(0, length);
      if (length > 0) {
        const list = IoVec.of(input);
        if (!storage.tryReadv(hostOffset, list)) await storage.readv(hostOffset, list);
      }
      const bytes = await decompress(type, input, clusterSize, inflate, unpack);
      if (pooled) this.#inputs.push(buffer);
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
