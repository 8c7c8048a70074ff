import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp, hex } from '../core/units.ts';
import { type CheckResult, report } from '../image/check.ts';
import type { CheckWalk, L2Visitor } from './check-walk.ts';
import { decompress } from './cluster-codec.ts';

/** Clusters that are decompressed at once. */
const AT_ONCE = 4;
/** Entries that wait for it: more than one table has at most would cost memory. */
const MAX_WAITING = 1024;

/** What QEMU's check does not look at: whether compressed clusters can be read, and data that lies on metadata with refcounts that agree. */
export class DeepCheck implements L2Visitor {
  readonly #walk: CheckWalk;
  readonly #result: CheckResult;
  readonly #blocks = new Set<number>();
  /** Clusters of other tables: [first, end), in order. */
  readonly #ranges: { first: number; end: number }[] = [];
  #waiting: { offset: number; length: number; entry: number }[] = [];

  constructor(walk: CheckWalk, result: CheckResult) {
    this.#walk = walk;
    this.#result = result;
    const { header, refcountTable, snapshotTable, l1Tables, bitmaps } = walk.subject;
    const { clusterSize } = header.geometry;
    for (let i = 0; i < refcountTable.entries; i++) {
      const block = refcountTable.target(i);
      if (block > 0) this.#blocks.add(block / clusterSize);
    }
    const ranges: { first: number; end: number }[] = [];
    const add = (offset: number, length: number): void => {
      if (length <= 0) return;
      ranges.push({ first: Math.floor(offset / clusterSize), end: divideUp(offset + length, clusterSize) });
    };
    add(0, clusterSize);
    add(refcountTable.offset, refcountTable.byteLength);
    add(snapshotTable.offset, snapshotTable.byteLength);
    for (const { offset, entries } of l1Tables) add(offset, entries * 8);
    for (const { tableOffset, tableSize } of bitmaps) add(tableOffset, tableSize * 8);
    const { crypto } = header.extensions;
    if (crypto !== undefined) add(crypto.offset, crypto.length);
    // In a damaged image they may lie in each other: a search needs them apart.
    for (const range of ranges.sort((a, b) => a.first - b.first)) {
      const last = this.#ranges.at(-1);
      if (last !== undefined && range.first <= last.end) last.end = Math.max(last.end, range.end);
      else this.#ranges.push(range);
    }
  }

  data(hostOffset: number, entryOffset: number): void {
    if (this.#walk.external) return;
    this.#refuseMetadata(hostOffset, 1, entryOffset);
  }

  compressed(hostOffset: number, length: number, entryOffset: number): void {
    this.#refuseMetadata(hostOffset, length, entryOffset);
    this.#waiting.push({ offset: hostOffset, length, entry: entryOffset });
  }

  after(): Promise<void> | undefined {
    return this.#waiting.length >= MAX_WAITING ? this.finish() : undefined;
  }

  /** Decompresses what still waits. */
  async finish(): Promise<void> {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (let i = 0; i < waiting.length; i += AT_ONCE) {
      await Promise.all(waiting.slice(i, i + AT_ONCE).map((each) => this.#decompress(each)));
    }
  }

  async #decompress(place: { offset: number; length: number; entry: number }): Promise<void> {
    const { storage, header } = this.#walk.subject;
    const bytes = new Uint8Array(Math.max(0, Math.min(place.length, storage.size - place.offset)));
    try {
      await storage.readv(place.offset, IoVec.of(bytes));
      await decompress(header.compressionType, bytes, header.geometry.clusterSize);
    } catch (error) {
      if (!(error instanceof LunetteError)) throw error;
      if (error instanceof ImageError && error.code === 'CORRUPT') this.#result.corruptions++;
      else this.#result.checkErrors++;
      report(this.#result, `compressed data at ${hex(place.offset)} (entry at ${hex(place.entry)}): ${error.message}`);
    }
  }

  #refuseMetadata(offset: number, length: number, entryOffset: number): void {
    const { clusterSize } = this.#walk.subject.header.geometry;
    const last = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) {
      if (!this.#isMetadata(cluster)) continue;
      this.#result.corruptions++;
      report(this.#result, `the L2 entry at ${hex(entryOffset)} points to metadata at ${hex(cluster * clusterSize)}`);
    }
  }

  #isMetadata(cluster: number): boolean {
    if (this.#blocks.has(cluster) || this.#walk.tables.all(cluster) > 0) return true;
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ranges[middle] as { first: number }).first <= cluster) low = middle + 1;
      else high = middle;
    }
    return low > 0 && cluster < (this.#ranges[low - 1] as { end: number }).end;
  }
}
