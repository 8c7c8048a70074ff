import { codeOf, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp } from '../core/units.ts';
import { ALL_DIRTY, BitmapTable } from './bitmap-content.ts';
import { type OwnersHost, refuseOthersClusters } from './bitmap-owners.ts';
import { changeBitmapEntry, type Qcow2Bitmap } from './bitmaps.ts';
import { allBytesAre, clearedFrom, type DirtyBits } from './dirty-bits.ts';
import type { HeaderHost } from './header-rewrite.ts';
import { setEntry } from './l2.ts';
import type { SnapshotEditorHost } from './snapshot-editor.ts';

/** A bitmap as it shall be in a new directory. */
export interface BitmapDraft {
  /** What it is made from; undefined for a new one. */
  readonly of?: Qcow2Bitmap | undefined;
  readonly entry: Uint8Array;
  readonly flags: number;
  readonly granularity: number;
  /** As it is, with more bits, without any, or cut and continued with nothing dirty. */
  readonly content: 'same' | 'new' | 'add' | 'clear' | 'resize';
  readonly tableSize: number;
  /** add: what is added. */
  readonly bits?: DirtyBits | undefined;
  /** resize: bytes of the disk of which bits are kept. */
  readonly keep?: number | undefined;
}

export interface Place {
  readonly offset: number;
  readonly length: number;
}

/** A directory that nothing points to yet. */
export interface NewDirectory {
  readonly bytes: Uint8Array;
  readonly offset: number;
  readonly count: number;
  /** What was allocated for it: clusters. */
  readonly taken: readonly { readonly first: number; readonly count: number }[];
  /** What is not needed once it is in use, bytes of the file. */
  readonly dropped: readonly Place[];
}

/** Writes bitmaps into free clusters, beside what is there. */
export class BitmapWriter {
  readonly #host: SnapshotEditorHost & HeaderHost & OwnersHost;
  /** Clusters that the directory being written lets go of. */
  readonly #droppedBits = new Set<number>();
  /** Clusters that it still has. */
  readonly #keptBits = new Set<number>();
  /** Clusters that were written here, or are known to be nobody else's. */
  readonly #own = new Set<number>();

  constructor(host: SnapshotEditorHost & HeaderHost & OwnersHost) {
    this.#host = host;
  }

  /**
   * Writes a directory with everything that changes in it. Not synced.
   *
   * @param removed bitmaps that are left out
   * @param directory the one that it takes the place of
   * @throws {ImageError} CORRUPT when something would be let go that is not the bitmaps' alone; in any case after giving back what was taken
   */
  async write(
    drafts: readonly BitmapDraft[],
    removed: readonly Qcow2Bitmap[],
    directory: Place | undefined,
  ): Promise<NewDirectory> {
    const taken: { first: number; count: number }[] = [];
    const dropped: Place[] = directory === undefined ? [] : [directory];
    this.#droppedBits.clear();
    this.#keptBits.clear();
    try {
      const entries: Uint8Array[] = [];
      for (const draft of drafts) {
        const { of, tableSize, flags } = draft;
        const tableOffset =
          draft.content === 'same' && of !== undefined ? of.tableOffset : await this.#content(draft, taken, dropped);
        entries.push(changeBitmapEntry(draft.entry, { tableOffset, tableSize, flags }));
      }
      for (const bitmap of removed) await this.#dropAll(bitmap, dropped);
      await this.#checkDropped(drafts, dropped);
      const bytes = new Uint8Array(Buffer.concat(entries));
      const offset = bytes.length === 0 ? 0 : await this.#take(bytes, taken);
      return { bytes, offset, count: drafts.length, taken, dropped };
    } catch (error) {
      await this.#giveBack(taken);
      throw error;
    }
  }

  /** The directory is not going to be used after all. */
  async undo(next: NewDirectory): Promise<void> {
    await this.#giveBack(next.taken);
  }

  /** Space that nothing refers to any more: free with the flush after next. */
  letGo(offset: number, length: number): void {
    const { clusterSize, state } = this.#host;
    for (let at = offset; at < offset + length; at += clusterSize) this.#own.delete(at / clusterSize);
    state.unlinked.add(offset / clusterSize, divideUp(length, clusterSize), true);
  }

  /** What a damaged table has is not let go: it may be the guest's, or another bitmap's. */
  async #checkDropped(drafts: readonly BitmapDraft[], dropped: readonly Place[]): Promise<void> {
    const { clusterSize, storage } = this.#host;
    const clusters = new Set<number>();
    for (const { offset, length } of dropped) {
      for (let at = offset; at < offset + length; at += clusterSize) {
        if (!this.#own.has(at / clusterSize)) clusters.add(at / clusterSize);
      }
    }
    if (clusters.size === 0) return;
    for (const { of, content } of drafts) {
      if (content !== 'same' || of === undefined) continue;
      const table = await BitmapTable.load(storage, of, clusterSize).catch(() => undefined);
      for (let i = 0; table !== undefined && i < of.tableSize; i++) this.#keptBits.add(table.target(i));
    }
    await refuseOthersClusters(this.#host, clusters, (cluster) => this.#keptBits.has(cluster * clusterSize));
    for (const cluster of clusters) this.#own.add(cluster);
  }

  async #giveBack(taken: readonly { first: number; count: number }[]): Promise<void> {
    const { state, clusterSize } = this.#host;
    if (state.stopped !== undefined) return;
    for (const { first, count } of taken) {
      for (let i = 0; i < count; i++) this.#own.delete(first + i);
      state.parts.metadata.remove(first * clusterSize, count * clusterSize);
      await state.change(() => state.parts.allocator.free(first, count)).catch(() => undefined);
    }
  }

  /** Writes table and clusters of one bitmap. @returns where its table is */
  async #content(draft: BitmapDraft, taken: { first: number; count: number }[], dropped: Place[]): Promise<number> {
    const { clusterSize } = this.#host;
    const { of, content } = draft;
    const table = new Uint8Array(draft.tableSize * 8);
    if (of !== undefined && content === 'clear') await this.#dropAll(of, dropped);
    if (of !== undefined && content !== 'clear') {
      const old = await BitmapTable.load(this.#host.storage, of, clusterSize);
      const end = draft.keep === undefined ? Number.POSITIVE_INFINITY : Math.ceil(draft.keep / draft.granularity);
      for (let i = 0; i < of.tableSize; i++) {
        const target = old.target(i);
        const now = i < draft.tableSize ? await this.#cluster(draft, old, i, end, taken) : 0;
        if (now === target && target > ALL_DIRTY) this.#keptBits.add(target);
        if (now !== 0) setEntry(table, i * 8, now === ALL_DIRTY ? 0 : now, 0, now === ALL_DIRTY ? ALL_DIRTY : 0);
        if (target > ALL_DIRTY && now !== target) this.#drop(target, dropped);
      }
      dropped.push({ offset: of.tableOffset, length: of.tableSize * 8 });
    }
    return this.#take(table, taken);
  }

  /** What one table entry becomes. @param end first bit of the bitmap that is not kept */
  async #cluster(
    draft: BitmapDraft,
    old: BitmapTable,
    index: number,
    end: number,
    taken: { first: number; count: number }[],
  ): Promise<number> {
    const { clusterSize } = this.#host;
    const target = old.target(index);
    const first = index * clusterSize * 8;
    const cut = end < first + clusterSize * 8;
    const added = target !== ALL_DIRTY && draft.bits !== undefined && draft.bits.any(index * clusterSize, clusterSize);
    if (cut && end <= first) return 0;
    if (!added && (!cut || target === 0)) return target;
    const before = new Uint8Array(clusterSize);
    await old.read(index, before);
    const bytes = cut ? clearedFrom(before, end - first) : before.slice();
    if (added) draft.bits?.addTo(bytes, index * clusterSize);
    if (target > ALL_DIRTY && Buffer.compare(bytes, before) === 0) return target;
    if (allBytesAre(bytes, 0xff)) return ALL_DIRTY;
    if (allBytesAre(bytes, 0)) return 0;
    return this.#take(bytes, taken, false);
  }

  /** Takes clusters and writes into them. @returns their offset */
  async #take(bytes: Uint8Array, taken: { first: number; count: number }[], metadata = true): Promise<number> {
    const { state, clusterSize, storage } = this.#host;
    const { allocator, slices, geometry } = state.parts;
    const count = divideUp(bytes.length, clusterSize);
    const first = await state.change(() => allocator.allocateTogether(count));
    taken.push({ first, count });
    for (let i = 0; i < count; i++) this.#own.add(first + i);
    const padded = new Uint8Array(count * clusterSize);
    padded.set(bytes);
    slices.forget(first * geometry.slicesPerCluster, count * geometry.slicesPerCluster);
    if (metadata) state.parts.metadata.add(first * clusterSize, padded.length);
    await storage.writev(first * clusterSize, IoVec.of(padded));
    return first * clusterSize;
  }

  /** Everything of a bitmap is let go of; clusters of a table that cannot be read are left to a repair. */
  async #dropAll(bitmap: Qcow2Bitmap, dropped: Place[]): Promise<void> {
    const { storage, clusterSize } = this.#host;
    try {
      const table = await BitmapTable.load(storage, bitmap, clusterSize);
      for (let i = 0; i < bitmap.tableSize; i++) {
        const target = table.target(i);
        if (target > ALL_DIRTY) this.#drop(target, dropped);
      }
    } catch (error) {
      if (!(error instanceof LunetteError) || codeOf(error) === 'IO') throw error;
    }
    dropped.push({ offset: bitmap.tableOffset, length: bitmap.tableSize * 8 });
  }

  /** Space of bits is let go of, once, and unless a damaged table points to what is metadata: that stays, and may be leaked. */
  #drop(target: number, dropped: Place[]): void {
    const { clusterSize, state } = this.#host;
    if (state.parts.metadata.has(target / clusterSize)) return;
    if (this.#droppedBits.has(target)) return;
    this.#droppedBits.add(target);
    dropped.push({ offset: target, length: clusterSize });
  }
}

/** Data of the bitmaps extension; undefined when there is no bitmap. */
export function directoryExtension({ bytes, offset, count }: NewDirectory): Uint8Array | undefined {
  if (count === 0) return undefined;
  const data = new Uint8Array(24);
  const view = new DataView(data.buffer);
  view.setUint32(0, count);
  view.setBigUint64(8, BigInt(bytes.length));
  view.setBigUint64(16, BigInt(offset));
  return data;
}
