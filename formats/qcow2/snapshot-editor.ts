import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp } from '../core/units.ts';
import type { NewSnapshotOptions } from '../image/layer.ts';
import { clearCopied, restoreCopied, tablesOf } from './copied-flags.ts';
import { countThroughL1 } from './count-references.ts';
import { expandSnapshotZeros, planZeroExpansion } from './expand-snapshot-zeros.ts';
import { HEADER_V2, MAX_L1_BYTES, type Qcow2Header } from './header.ts';
import { COPIED } from './l2.ts';
import { PointerTable } from './pointer-table.ts';
import { readBytes } from './refcount.ts';
import { RefcountBatch } from './refcount-batch.ts';
import { ReferenceCounts } from './reference-counts.ts';
import {
  checkSnapshotL1,
  findSnapshot,
  type Qcow2Snapshot,
  readSnapshotTable,
  type SnapshotTable,
} from './snapshot.ts';
import {
  admitEntry,
  completeSnapshot,
  encodeSnapshot,
  joinTable,
  nextSnapshotId,
  splitTable,
} from './snapshot-write.ts';
import type { WriteState } from './write-state.ts';

/** What the editor asks of the writer and of the layer. */
export interface SnapshotEditorHost {
  readonly state: WriteState;
  readonly header: Qcow2Header;
  flush(): Promise<void>;
  /** Flushes until nothing is dirty, and nothing waits to be freed. */
  quiet(): Promise<void>;
  /** Changes header fields, durably. After a failure other than a full disk nobody knows what is there: writing stops. */
  switchHeader(change: (view: DataView) => void): Promise<void>;
  /** Sets or clears the dirty bit, durably, where the version has one: refcounts and COPIED flags may be wrong. */
  markDirty(dirty: boolean): Promise<void>;
  /** From now on the dirty bit stays, whatever succeeds later: only counting all references puts right what is wrong. */
  keepDirty(): void;
  /** As switchHeader, when the disk has another size then: whatever else depends on that changes at the same time. */
  switchSize(size: number, change: (view: DataView) => void): Promise<void>;
}

/** What takes a change back when it fails, in the order of doing. */
type Undo = (() => Promise<void>)[];

/**
 * Takes, applies and deletes internal snapshots, while no write is in flight; reads go on.
 *
 * Nothing that an entry says COPIED of ever has another refcount than one on disk: COPIED is cleared, durably, before refcounts are
 * raised, and set after they were lowered, durably. One write of the header's sector makes the change; before it everything new is in
 * place, after it the old is let go. The dirty bit (version 3) is set meanwhile: when the power goes, opening for writing puts leaked
 * counts and missing flags right.
 */
export class SnapshotEditor {
  readonly #host: SnapshotEditorHost;
  #table: SnapshotTable;

  constructor(host: SnapshotEditorHost, table: SnapshotTable) {
    this.#host = host;
    this.#table = table;
  }

  get table(): SnapshotTable {
    return this.#table;
  }

  /** @param diskSize bytes, as of now. @throws {ImageError} TOO_LARGE when refcounts, table or name do not fit */
  async create(name: string, diskSize: number, options: NewSnapshotOptions): Promise<Qcow2Snapshot> {
    const { state } = this.#host;
    const { l1, geometry, storage } = state.parts;
    const now = options.dateMs ?? Date.now();
    const entryFor = (l1TableOffset: number): Uint8Array =>
      encodeSnapshot({
        id: nextSnapshotId(this.#table.snapshots),
        name,
        dateSeconds: Math.floor(now / 1000),
        dateNanoseconds: (now % 1000) * 1_000_000,
        l1TableOffset,
        l1Size: l1.entries,
        diskSize,
      });
    admitEntry(this.#table, entryFor(0).length, storage.path);
    await this.#marked(async (undo) => {
      const batch = this.#batch(await countThroughL1(this.#counted, l1));
      await batch.check(true);
      const bytes = new Uint8Array(divideUp(l1.byteLength, geometry.clusterSize) * geometry.clusterSize);
      bytes.set(l1.copy());
      clearHighBits(bytes);
      const at = await this.#take(undo, bytes);
      const table = joinTable([...(await this.#entries()), entryFor(at)], geometry.clusterSize);
      const tableAt = await this.#take(undo, table);
      undo.push(() => batch.undo());
      await state.change(() => clearCopied(state, tablesOf(l1)));
      for (let i = 0; i < l1.entries; i++) if (l1.copied(i)) l1.set(i, l1.checkedTarget(i), false);
      await this.#host.flush();
      await batch.raise();
      await this.#host.flush();
      await this.#switchTable(tableAt, this.#table.snapshots.length + 1);
      state.parts.metadata.add(at, bytes.length);
      return undefined;
    });
    return this.#table.snapshots[this.#table.snapshots.length - 1] as Qcow2Snapshot;
  }

  /** Gives every entry the size of the disk, which version 3 wants. @param diskSize bytes, of those that do not say */
  async complete(diskSize: number): Promise<void> {
    const { snapshots } = this.#table;
    if (snapshots.every(({ extra }) => extra.length >= 16)) return;
    const { clusterSize } = this.#host.state.parts.geometry;
    await this.#marked(async (undo) => {
      const entries = (await this.#entries()).map((entry, i) =>
        (snapshots[i] as Qcow2Snapshot).extra.length >= 16 ? entry : completeSnapshot(entry, diskSize),
      );
      const tableAt = await this.#take(undo, joinTable(entries, clusterSize));
      await this.#host.flush();
      await this.#switchTable(tableAt, entries.length);
      return undefined;
    });
  }

  /** Takes the zero flag, which version 2 does not have, out of the tables of all snapshots; they show the same. */
  async expandZeros(): Promise<void> {
    const { state } = this.#host;
    const { leases, storage, geometry } = state.parts;
    if (this.#table.snapshots.length === 0) return;
    await this.#host.quiet();
    const plan = await planZeroExpansion(state, this.#table.snapshots);
    if (plan.tables.size === 0) return;
    await this.#marked(async (undo) => {
      const lost = this.#batch(plan.losses);
      await lost.check(false);
      const clusters: number[] = [];
      for (const _ of plan.fills) {
        clusters.push((await this.#take(undo, new Uint8Array(geometry.clusterSize))) / geometry.clusterSize);
      }
      const gains = new ReferenceCounts(divideUp(storage.size, geometry.clusterSize) + 1);
      for (const [i, references] of plan.fills.entries()) gains.add(clusters[i] as number, 1, references - 1);
      const gained = this.#batch(gains); // shared out so that refcounts can count them
      undo.push(() => gained.undo());
      await gained.raise();
      await this.#host.flush();
      undo.push(() => Promise.reject(new LunetteError('IO', 'some tables refer to the new clusters already')));
      await state.change(() => expandSnapshotZeros(state, plan, clusters));
      await this.#host.flush();
      return async () => {
        await leases.quiesced();
        await lost.lower();
      };
    });
  }

  async delete(snapshot: Qcow2Snapshot): Promise<void> {
    const { state } = this.#host;
    const { geometry, leases } = state.parts;
    checkSnapshotL1(snapshot, geometry.clusterSize);
    await this.#marked(async (undo) => {
      const l1 = await this.#loadL1(snapshot);
      const batch = this.#batch(await this.#countWhole(l1));
      await batch.check(false);
      const index = this.#table.snapshots.indexOf(snapshot);
      const entries = (await this.#entries()).filter((_, i) => i !== index);
      const tableAt = await this.#take(undo, joinTable(entries, geometry.clusterSize));
      await this.#host.flush();
      await this.#switchTable(tableAt, entries.length);
      return async () => {
        await leases.quiesced();
        await batch.lower();
        await this.#restoreCopied();
      };
    });
  }

  /**
   * Makes the disk what it was when the snapshot was taken.
   *
   * @param size bytes that the disk has then
   * @param switched called in the tick in which readers begin to see it
   */
  async apply(snapshot: Qcow2Snapshot, size: number, switched: () => void): Promise<void> {
    const { state } = this.#host;
    const { geometry, l1, leases, metadata } = state.parts;
    checkSnapshotL1(snapshot, geometry.clusterSize);
    const entries = Math.max(snapshot.l1Size, divideUp(size, geometry.l2Coverage));
    if (entries * 8 > MAX_L1_BYTES)
      throw new ImageError('TOO_LARGE', 'the L1 table of the snapshot would be larger than 32 MiB');
    await this.#marked(async (undo) => {
      const target = await this.#loadL1(snapshot);
      const tables = tablesOf(target);
      this.#refuseMetadata(tables, snapshot);
      const gains = await countThroughL1(this.#counted, target);
      const losses = await this.#countWhole(l1);
      const [gained, lost] = [this.#batch(gains), this.#batch(losses)];
      await gained.check(false);
      await lost.check(false);
      // What both have keeps its refcount: the snapshot goes on to refer to it as well.
      gains.cancel(losses);
      await gained.check(true);
      const bytes = new Uint8Array(divideUp(entries * 8, geometry.clusterSize) * geometry.clusterSize);
      bytes.set(target.copy());
      clearHighBits(bytes);
      const at = await this.#take(undo, bytes);
      undo.push(() => gained.undo());
      await state.change(() => clearCopied(state, tables));
      await this.#host.flush();
      await gained.raise();
      await this.#host.flush();
      await this.#host.switchSize(size, (view) => {
        HEADER_V2.write(view, { l1TableOffset: at, l1Size: entries, size });
      });
      metadata.add(at, bytes.length);
      for (const table of tables) metadata.add(table, geometry.clusterSize);
      l1.replace(at, bytes.slice(0, entries * 8));
      switched();
      return async () => {
        await leases.quiesced();
        // All that is mapped now is shared with the snapshot: no entry gets COPIED back.
        await lost.lower();
      };
    });
  }

  get #counted() {
    return { storage: this.#host.state.parts.storage, header: this.#host.header };
  }

  #batch(counts: ReferenceCounts): RefcountBatch {
    return new RefcountBatch(this.#host.state, counts, () => this.#host.flush());
  }

  /** The references of an L1 table with those to its own clusters. */
  async #countWhole(l1: PointerTable): Promise<ReferenceCounts> {
    const { geometry, storage } = this.#host.state.parts;
    const counts = await countThroughL1(this.#counted, l1);
    const clusters = divideUp(l1.byteLength, geometry.clusterSize);
    if (!counts.add(l1.offset / geometry.clusterSize, clusters, 1)) {
      throw new ImageError('CORRUPT', 'an L1 table is outside the file', { path: storage.path, offset: l1.offset });
    }
    return counts;
  }

  #loadL1(snapshot: Qcow2Snapshot): Promise<PointerTable> {
    const { storage, geometry } = this.#host.state.parts;
    return PointerTable.load(storage, {
      name: 'snapshot L1 table',
      offset: snapshot.l1TableOffset,
      entries: snapshot.l1Size,
      clusterSize: geometry.clusterSize,
    });
  }

  /** The entries of the table as they are in the file. */
  async #entries(): Promise<Uint8Array[]> {
    const { offset, byteLength, snapshots } = this.#table;
    const bytes = await readBytes(this.#host.state.parts.storage, offset, byteLength);
    return splitTable(bytes, offset, snapshots);
  }

  /** Takes clusters for a table and writes it. @returns its offset, 0 for none */
  async #take(undo: Undo, bytes: Uint8Array): Promise<number> {
    if (bytes.length === 0) return 0;
    const { state } = this.#host;
    const { allocator, geometry, storage, slices } = state.parts;
    const count = bytes.length / geometry.clusterSize;
    const first = await state.change(() => allocator.allocateTogether(count));
    undo.push(() => state.change(() => allocator.free(first, count)));
    slices.forget(first * geometry.slicesPerCluster, count * geometry.slicesPerCluster);
    await storage.writev(first * geometry.clusterSize, IoVec.of(bytes));
    return first * geometry.clusterSize;
  }

  /** Makes the file use a new snapshot table; the old one is free after the next flush. */
  async #switchTable(offset: number, count: number): Promise<void> {
    const { state, header } = this.#host;
    const { metadata, storage, geometry } = state.parts;
    // Read before it is in use: what we wrote must be what we read.
    const table = await readSnapshotTable(storage, { ...header, snapshotsOffset: offset, snapshotCount: count });
    await this.#host.switchHeader((view) => {
      HEADER_V2.write(view, { snapshotsOffset: offset, snapshotCount: count });
    });
    const old = this.#table;
    if (old.byteLength > 0) {
      state.unlinked.add(old.offset / geometry.clusterSize, divideUp(old.byteLength, geometry.clusterSize), true);
    }
    if (table.byteLength > 0) metadata.add(table.offset, table.byteLength);
    this.#table = table;
  }

  /** Tables of a snapshot that lie on something else would have us write into it. */
  #refuseMetadata(tables: readonly number[], snapshot: Qcow2Snapshot): void {
    const { l1, refcounts, geometry, storage } = this.#host.state.parts;
    const { clusterSize } = geometry;
    const blocks = new Set<number>([0]);
    for (let i = 0; i < refcounts.table.entries; i++) blocks.add(refcounts.table.target(i));
    const ranges = [l1, refcounts.table, this.#table];
    for (const table of tables) {
      const within = ranges.some(
        ({ offset, byteLength }) => table + clusterSize > offset && table < offset + byteLength,
      );
      if (!within && !blocks.has(table)) continue;
      throw new ImageError('CORRUPT', `an L2 table of snapshot ${snapshot.id} lies on other metadata`, {
        path: storage.path,
        field: 'snapshot L1 table',
        offset: snapshot.l1TableOffset,
      });
    }
  }

  /**
   * Runs a change: marked in the file, begun with nothing dirty, undone when it fails.
   *
   * @param act everything up to the header's switch. What it returns lets go of the old, where that changes refcounts: a failure there leaves leaks, and the mark, so
   *   that the next open for writing mends them
   */
  async #marked(act: (undo: Undo) => Promise<(() => Promise<void>) | undefined>): Promise<void> {
    const { state } = this.#host;
    const { brokenTables, l1 } = state.parts;
    state.check();
    if (brokenTables.size > 0) {
      throw new ImageError('CORRUPT', 'an L2 table lies on other metadata', { field: 'L1 table', offset: l1.offset });
    }
    await this.#host.quiet();
    await this.#host.markDirty(true);
    const undo: Undo = [];
    let release: (() => Promise<void>) | undefined;
    try {
      release = await act(undo);
    } catch (error) {
      await this.#settled(async () => {
        for (const step of undo.reverse()) await step();
        await this.#restoreCopied();
      });
      throw error;
    }
    await this.#settled(release);
  }

  /** Lets go of what is not needed and takes the mark away. What cannot be done now is left to the next open for writing, and the mark with it. */
  async #settled(release: (() => Promise<void>) | undefined): Promise<void> {
    try {
      if (release !== undefined) {
        await release();
      }
      await this.#host.quiet();
      await this.#host.markDirty(false);
    } catch (error) {
      this.#host.keepDirty();
      if (error instanceof LunetteError) return;
      throw error;
    }
  }

  /** Gives COPIED back where the refcount, once that is durable, is one. */
  async #restoreCopied(): Promise<void> {
    const { state } = this.#host;
    await this.#host.quiet();
    await state.change(() => restoreCopied(state));
  }
}

/** Clears COPIED in all entries of an L1 table. */
function clearHighBits(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; at += 8) bytes[at] = (bytes[at] as number) & ~(COPIED >>> 24);
}

/** The snapshot that a reference means: of ids and names, of ids alone, or (as `qemu-img snapshot -d`) of names alone. */
export function selectSnapshot(
  snapshots: readonly Qcow2Snapshot[],
  reference: string | { readonly id: string } | { readonly name: string },
): Qcow2Snapshot {
  if (typeof reference === 'string') return findSnapshot(snapshots, reference);
  const found = snapshots.find((each) => ('id' in reference ? each.id === reference.id : each.name === reference.name));
  if (found !== undefined) return found;
  const what = 'id' in reference ? `with the id ${reference.id}` : `named ${JSON.stringify(reference.name)}`;
  throw new ImageError('NOT_FOUND', `there is no snapshot ${what}`);
}
