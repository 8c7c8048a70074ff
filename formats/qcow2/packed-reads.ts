import { outputOf } from '../core/inflate.ts';
import { IoVec } from '../core/iov.ts';
import { KiB, MiB } from '../core/units.ts';
import { PLACE_WORDS } from '../core/unpack.ts';
import { begin, settle } from '../image/chain-read.ts';
import type { ExtentBuffer } from '../image/extent.ts';
import { fullCluster, unpackClusters } from './cluster-codec.ts';
import type { CompressedClusters, CompressedClustersOptions } from './compressed.ts';

/** Streams that lie within so many bytes of the file are read at once: those of a mebibyte of the disk, where they lie together. */
const MAX_SPAN = MiB + 64 * KiB;
/** Bytes between two streams that are worth reading for nothing. */
const MAX_GAP = 32 * KiB;
/** Buffers that wait for their next use. */
const MAX_BUFFERS = 8;
/** Less than this is read into memory of its own size. */
const MIN_BUFFER = 64 * KiB;
/** Memory that is read into at once: clusters of a disk may lie anywhere in its file, and then each is read by itself. */
const MAX_MEMORY = 32 * MiB;

interface Stream {
  readonly host: number;
  readonly length: number;
  readonly output: IoVec;
}

/**
 * Reads of disks that are read once, from start to end: whole clusters are unpacked into the memory of who reads, past the block cache, and those whose
 * streams lie together are read and unpacked together.
 */
export class PackedReads {
  readonly #options: Omit<CompressedClustersOptions, 'cache'>;
  readonly #clusters: CompressedClusters;
  readonly #buffers: Uint8Array[] = [];
  /** Bytes of buffers in use. */
  #used = 0;
  /** Who waits for so many bytes, in the order in which they came. */
  readonly #waiting: { bytes: number; resolve: () => void }[] = [];

  /** @param clusters reads what is not a whole cluster */
  constructor(options: Omit<CompressedClustersOptions, 'cache'>, clusters: CompressedClusters) {
    this.#options = options;
    this.#clusters = clusters;
  }

  /**
   * Reads compressed extents [first, end), which follow each other.
   *
   * @param offset guest offset of the first byte of `iov`. @throws {ImageError} CORRUPT
   */
  async read(extents: ExtentBuffer, first: number, end: number, offset: number, iov: IoVec): Promise<void> {
    const { clusterSize, lengthOf, storage } = this.#options;
    const pending: Promise<void>[] = [];
    const streams: Stream[] = [];
    for (let i = first; i < end; i++) {
      const at = extents.offsets[i] as number;
      const length = extents.lengths[i] as number;
      const host = extents.storageOffsets[i] as number;
      const output = iov.slice(at - offset, length);
      const most = length === clusterSize && output.count === 1 ? lengthOf(at, host) : undefined;
      const inside = Math.min(most ?? 0, storage.size - host);
      if (inside > 0) streams.push({ host, length: inside, output });
      else begin(pending, this.#clusters.read(at, host, output));
    }
    for (const group of together(streams)) begin(pending, this.#unpack(group));
    await settle(pending);
  }

  async #unpack(streams: readonly Stream[]): Promise<void> {
    const start = (streams[0] as Stream).host;
    const length = Math.max(...streams.map((each) => each.host + each.length)) - start;
    const pooled = length > MIN_BUFFER && length <= MAX_SPAN;
    const bytes = pooled ? MAX_SPAN : length;
    await this.#reserve(bytes);
    try {
      const buffer = (pooled ? this.#buffers.pop() : undefined) ?? outputOf(bytes);
      await this.#unpackFrom(start, buffer.subarray(0, length), streams);
      if (pooled && this.#buffers.length < MAX_BUFFERS) this.#buffers.push(buffer);
    } finally {
      this.#used -= bytes;
      this.#admit();
    }
  }

  /** @param memory for the bytes of the file from `start` on in which the streams lie */
  async #unpackFrom(start: number, memory: Uint8Array, streams: readonly Stream[]): Promise<void> {
    const { storage, type, clusterSize, unpack } = this.#options;
    await storage.readv(start, IoVec.of(memory));
    const places = new Int32Array(PLACE_WORDS * streams.length);
    const outputs = new IoVec();
    streams.forEach(({ host, length, output }, i) => {
      places[PLACE_WORDS * i] = host - start;
      places[PLACE_WORDS * i + 1] = length;
      outputs.appendSlice(output, 0, clusterSize);
    });
    await unpackClusters(type, memory, places, outputs, unpack);
    streams.forEach(({ host }, i) => {
      fullCluster(type, places[PLACE_WORDS * i + 2] as number, clusterSize, { path: storage.path, offset: host });
    });
  }

  /** Waits until there may be so much more memory in use. Who wants more than there may be at all is alone. */
  async #reserve(bytes: number): Promise<void> {
    if (this.#waiting.length === 0 && this.#fits(bytes)) this.#used += bytes;
    else await new Promise<void>((resolve) => this.#waiting.push({ bytes, resolve }));
  }

  #fits(bytes: number): boolean {
    return this.#used === 0 || this.#used + bytes <= MAX_MEMORY;
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#used += next.bytes;
      next.resolve();
    }
  }
}

/** Streams in groups that are worth one read each. */
function* together(streams: Stream[]): Generator<readonly Stream[]> {
  streams.sort((a, b) => a.host - b.host);
  for (let first = 0; first < streams.length; ) {
    const { host, length } = streams[first] as Stream;
    let stop = host + length;
    let end = first + 1;
    for (; end < streams.length; end++) {
      const next = streams[end] as Stream;
      const reach = Math.max(stop, next.host + next.length);
      if (next.host > stop + MAX_GAP || reach - host > MAX_SPAN) break;
      stop = reach;
    }
    yield streams.slice(first, end);
    first = end;
  }
}
