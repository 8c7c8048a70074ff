/** What a process keeps in memory of its images: one byte budget for all. */
export interface BlockCache {
  /** Bytes. */
  readonly budget: number;
  /** Room for the blocks of one open image, numbered 0 to count-1 (cluster or table-slice numbers). Dropped whole by release(). */
  space(count: number): BlockSpace;
  /**
   * Accounts for memory that cannot be evicted (dirty tables): it lowers what clean blocks may take.
   *
   * @param delta bytes, negative when given back
   */
  adjustPinned(delta: number): void;
  /** True while pinned memory is above a quarter of the budget: writers flush and wait. */
  readonly pinnedFull: boolean;
  readonly stats: BlockCacheStats;
}

export interface BlockSpace {
  /** How many blocks it has numbers for. */
  readonly count: number;
  /** The block's bytes, as they were set: callers must not change them. Undefined when it is not in memory. */
  get(block: number): Uint8Array | undefined;
  /** Keeps `bytes` (the array itself; callers give it up). A block larger than the budget is not kept. */
  set(block: number, bytes: Uint8Array): void;
  /** Lets go of a block: its array is the caller's again, to be changed, and to be set again. */
  delete(block: number): void;
  /** Drops everything and gives the numbers back. */
  release(): void;
}

export interface BlockCacheStats {
  readonly hits: number;
  /** Blocks that were asked for and not there; asking again before the block is set does not count. */
  readonly misses: number;
  /** Hits that had to be decompressed first. */
  readonly coldHits: number;
  readonly evictions: number;
  /** Bytes of plain blocks, of compressed cold blocks, of pinned memory. */
  readonly warmBytes: number;
  readonly coldBytes: number;
  readonly pinnedBytes: number;
}
