import { CHUNK_SIZE, type Chunk, type ChunkShare } from './chunk-pool.ts';

/** Bytes that go out in one write: pieces of chunks, in order. Reused; `taken` tells that the socket has the bytes. */
export class Batch {
  count = 0;
  bytes = 0;
  readonly chunks: Chunk[] = [];
  readonly starts: number[] = [];
  readonly ends: number[] = [];
  /** To be called once, when the socket has taken (or will never take) the bytes. Bound, so that it can be a callback as it is. */
  readonly taken: () => void;

  constructor(taken: (batch: Batch) => void) {
    this.taken = () => taken(this);
  }

  /** The memory of piece i. Valid until `taken`. */
  piece(i: number): Uint8Array {
    return (this.chunks[i] as Chunk).memory.subarray(this.starts[i], this.ends[i]);
  }
}

/** Where batches go: a socket, or a test. */
export interface BatchSink {
  write(batch: Batch): void;
}

/**
 * The sending side of a connection: PDUs are built in place at the tail of a chunk, data right behind its header, and all
 * of a tick goes out as one batch. Pieces that touch are one piece, so that a batch of short reads is one write of one buffer.
 */
export class Output {
  /** Memory of the tail; valid after ensure(), up to the next ensure(). */
  chunk: Chunk | undefined;
  /** Where the tail starts in it. */
  at = 0;
  /** Bytes committed and not yet taken by the socket. */
  queued = 0;
  /** Bytes that the socket has taken so far: progress, for time-outs. */
  sent = 0;
  /** Called after the socket has taken a batch. */
  onTaken: () => void = () => {};
  readonly #share: ChunkShare;
  readonly #sink: BatchSink;
  readonly #spare: Batch[] = [];
  #open: Batch;
  #closed = false;

  constructor(share: ChunkShare, sink: BatchSink) {
    this.#share = share;
    this.#sink = sink;
    this.#open = this.#newBatch();
  }

  /** Bytes committed and not flushed yet. */
  get pending(): number {
    return this.#open.bytes;
  }

  /** Makes room for `length` bytes at the tail, at most CHUNK_SIZE. Its content is what an earlier use left. */
  ensure(length: number): Chunk {
    const chunk = this.chunk;
    if (chunk !== undefined) {
      if (CHUNK_SIZE - this.at >= length) return chunk;
      chunk.release();
    }
    this.at = 0;
    return (this.chunk = this.#share.take());
  }

  /** Queues the first `length` bytes of the tail. */
  commit(length: number): void {
    const chunk = this.chunk as Chunk;
    const start = this.at;
    this.at = start + length;
    if (this.#closed) {
      chunk.release();
      this.chunk = undefined;
      return;
    }
    this.#append(chunk, start, this.at, true);
  }

  /** Keeps the first `length` bytes of the tail for later: the caller holds the chunk, and gives it to push() or releases it. */
  setAside(length: number): Chunk {
    const chunk = this.chunk as Chunk;
    chunk.hold();
    this.at += length;
    return chunk;
  }

  /** Queues bytes that were set aside. The caller's hold on the chunk passes to the queue. */
  push(chunk: Chunk, start: number, end: number): void {
    if (this.#closed) chunk.release();
    else this.#append(chunk, start, end, false);
  }

  /** Sends what is queued. */
  flush(): void {
    const batch = this.#open;
    if (batch.count === 0) return;
    this.#open = this.#spare.pop() ?? this.#newBatch();
    this.#sink.write(batch);
  }

  /** Drops what is not flushed, the tail, and all that is queued later. Batches that the sink has are still to be taken. */
  close(): void {
    this.#closed = true;
    this.onTaken = () => {};
    const batch = this.#open;
    if (batch.count > 0) {
      this.#open = this.#newBatch();
      this.#release(batch);
    }
    this.chunk?.release();
    this.chunk = undefined;
  }

  #append(chunk: Chunk, start: number, end: number, hold: boolean): void {
    const batch = this.#open;
    const last = batch.count - 1;
    if (last >= 0 && batch.chunks[last] === chunk && batch.ends[last] === start) {
      batch.ends[last] = end;
      if (!hold) chunk.release(); // the piece has a hold already
    } else {
      const i = batch.count++;
      batch.chunks[i] = chunk;
      batch.starts[i] = start;
      batch.ends[i] = end;
      if (hold) chunk.hold();
    }
    batch.bytes += end - start;
    this.queued += end - start;
  }

  #newBatch(): Batch {
    return new Batch((batch) => {
      this.sent += batch.bytes;
      this.#release(batch);
      // Nothing is in the tail's chunk any more: give it back. An idle session holds no memory, and a busy one gets the same
      // chunk again, which is still in the processor's cache.
      if (this.chunk?.references === 1) {
        this.chunk.release();
        this.chunk = undefined;
      }
      this.onTaken();
    });
  }

  #release(batch: Batch): void {
    this.queued -= batch.bytes;
    for (let i = 0; i < batch.count; i++) (batch.chunks[i] as Chunk).release();
    batch.chunks.length = 0;
    batch.count = 0;
    batch.bytes = 0;
    if (this.#spare.length < 8) this.#spare.push(batch);
  }
}
