import { ImageError } from '../core/errors.ts';
import { divideUp } from '../core/units.ts';
import type { SnapshotInfo } from '../image/layer.ts';
import type { Storage } from '../storage/storage.ts';
import { readBitmapDirectory } from './bitmaps.ts';
import { MAX_PASSES } from './check-pages.ts';
import { bitmapsOf } from './check-subject.ts';
import { ClusterMap } from './cluster-map.ts';
import { plainSnapshot } from './describe.ts';
import { readHeader } from './driver.ts';
import { INCOMPATIBLE } from './features.ts';
import type { Qcow2Header } from './header.ts';
import { COMPRESSED_BIT, compressedLength, compressedOffset, getU32, hostOffset, OFFSET_LOW, ZERO_BIT } from './l2.ts';
import { OwnerSets } from './owner-sets.ts';
import { PAGE_CLUSTERS } from './pass-pages.ts';
import { PointerTable } from './pointer-table.ts';
import { readBytes } from './refcount.ts';
import { getRefcount } from './refcount-codec.ts';
import { checkSnapshotL1, readSnapshotTable, type SnapshotTable } from './snapshot.ts';
import { UsagePages } from './usage-pages.ts';

/** Owners by number: what the file needs for itself, the disk as it is now, then the snapshots. */
const FILE = 0;
const LIVE = 1;
const FIRST_SNAPSHOT = 2;
const READ_AHEAD = 1024 * 1024;
/** L1 tables may lie on each other: what is read of them is bounded by the file, times this. */
const MAX_L1_READS = 4;

/** What one state of the disk costs, bytes in whole clusters of the file. */
export interface StateUsage {
  /** All that it refers to: data, tables, saved machine state. */
  readonly referenced: number;
  /** Of that, what nothing else refers to. */
  readonly exclusive: number;
  /** Of that, what others refer to as well. */
  readonly shared: number;
  /** Guest clusters that it maps, by kind; the machine's state included. */
  readonly clusters: { readonly data: number; readonly compressed: number; readonly zero: number };
}

export interface SnapshotUsage extends StateUsage {
  readonly snapshot: SnapshotInfo;
  /** Bytes that deleting this one would give free: what is exclusive, and the snapshot table's part if that gets shorter. */
  readonly freed: number;
}

/**
 * Who needs the clusters of a qcow2 file, bytes. `metadata` + `shared` + what is exclusive to the live disk and to each snapshot +
 * `leaked` is `used`; with `free` that is `fileSize`.
 */
export interface Qcow2Usage {
  readonly clusterSize: number;
  readonly live: StateUsage;
  readonly snapshots: readonly SnapshotUsage[];
  /** Header, refcounts, snapshot table, bitmaps, encryption header. */
  readonly metadata: number;
  /** What two or more of the live disk and the snapshots refer to, counted once. */
  readonly shared: number;
  /** Counted as used, but nothing refers to it: a check gives it free. */
  readonly leaked: number;
  readonly used: number;
  /** Clusters of the file that are free for new data. */
  readonly free: number;
  /** The file's length, rounded up to clusters. */
  readonly fileSize: number;
  /** References that lead out of the file, or to clusters that count as free: more than 0 asks for a check. */
  readonly damaged: number;
}

/**
 * Counts who refers to the clusters of a qcow2 file, from its tables; data is not read. Each table is read once a pass, however many
 * snapshots have it. Memory: 48 MiB of counters, with as many passes as that takes.
 *
 * @param storage nobody writes to it meanwhile
 * @throws {ImageError} CORRUPT and others when tables cannot be read: what is left would be a wrong answer
 */
export async function measureQcow2Usage(
  storage: Storage,
  options: { readonly counterBytes?: number | undefined } = {},
): Promise<Qcow2Usage> {
  const header = await readHeader(storage);
  const snapshotTable = await readSnapshotTable(storage, header);
  const count = new UsageCount(storage, header, snapshotTable, options.counterBytes);
  await count.run();
  return count.result();
}

class UsageCount {
  readonly #storage: Storage;
  readonly #header: Qcow2Header;
  readonly #snapshotTable: SnapshotTable;
  readonly #sets = new OwnerSets();
  readonly #pages: UsagePages;
  readonly #fileClusters: number;
  readonly #external: boolean;
  /** L2 tables, with the set of those who have them. */
  readonly #tables = new ClusterMap();
  /** L1 tables by place. */
  readonly #l1Tables: { offset: number; entries: number; set: number }[] = [];
  /** Clusters of the file by set of owners. */
  #clusters: number[] = [];
  /** Guest clusters by the owners of their L2 table: data, compressed, zero. */
  readonly #mapped = new Map<number, [data: number, compressed: number, zero: number]>();
  #leaked = 0;
  #damaged = 0;
  #buffer: Uint8Array = new Uint8Array(0);
  #bufferStart = 0;
  #bufferLength = 0;
  #first = true;

  constructor(storage: Storage, header: Qcow2Header, snapshotTable: SnapshotTable, counterBytes: number | undefined) {
    this.#storage = storage;
    this.#header = header;
    this.#snapshotTable = snapshotTable;
    this.#pages = new UsagePages(counterBytes);
    this.#fileClusters = divideUp(storage.size, header.geometry.clusterSize);
    this.#external = (header.incompatibleFeatures.low & INCOMPATIBLE.DATA_FILE) !== 0;
    this.#buffer = new Uint8Array(Math.max(READ_AHEAD, header.geometry.clusterSize));
  }

  async run(): Promise<void> {
    await this.#readL1Tables();
    const refcountTable = await this.#refcountTable();
    for (let pass = 0; ; pass++) {
      if (pass === MAX_PASSES) throw new ImageError('TOO_LARGE', 'the clusters in use are too far from each other');
      await this.#refcounts(refcountTable);
      await this.#ownMetadata(refcountTable);
      for (const { offset, entries, set } of this.#l1Tables) this.#mark(offset, entries * 8, set);
      await this.#l2Tables();
      this.#tally();
      this.#first = false;
      if (!this.#pages.next()) return;
    }
  }

  result(): Qcow2Usage {
    const { clusterSize } = this.#header.geometry;
    const { snapshots, byteLength } = this.#snapshotTable;
    const owners = FIRST_SNAPSHOT + snapshots.length;
    const referenced = new Float64Array(owners);
    const exclusive = new Float64Array(owners);
    let shared = 0;
    let used = this.#leaked;
    for (let set = 0; set < this.#clusters.length; set++) {
      const clusters = this.#clusters[set] ?? 0;
      if (clusters === 0) continue;
      used += clusters;
      this.#eachOwner(set, (owner) => {
        referenced[owner] = (referenced[owner] as number) + clusters;
      });
      const only = this.#sets.only(set);
      if (only >= 0) exclusive[only] = (exclusive[only] as number) + clusters;
      else shared += clusters;
    }
    const mapped = Array.from({ length: owners }, () => ({ data: 0, compressed: 0, zero: 0 }));
    for (const [set, [data, compressed, zero]] of this.#mapped) {
      this.#eachOwner(set, (owner) => {
        const sums = mapped[owner];
        if (sums === undefined) return;
        sums.data += data;
        sums.compressed += compressed;
        sums.zero += zero;
      });
    }
    const state = (owner: number): StateUsage => ({
      referenced: (referenced[owner] as number) * clusterSize,
      exclusive: (exclusive[owner] as number) * clusterSize,
      shared: ((referenced[owner] as number) - (exclusive[owner] as number)) * clusterSize,
      clusters: mapped[owner] ?? { data: 0, compressed: 0, zero: 0 },
    });
    const fileSize = this.#fileClusters * clusterSize;
    return {
      clusterSize,
      live: state(LIVE),
      snapshots: snapshots.map((snapshot, i) => {
        const next = snapshots[i + 1]?.at ?? this.#snapshotTable.offset + byteLength;
        const shorter = byteLength - (next - snapshot.at);
        const table = (divideUp(byteLength, clusterSize) - divideUp(shorter, clusterSize)) * clusterSize;
        const usage = state(FIRST_SNAPSHOT + i);
        return { snapshot: plainSnapshot(snapshot), ...usage, freed: usage.exclusive + table };
      }),
      metadata: (exclusive[FILE] as number) * clusterSize,
      shared: shared * clusterSize,
      leaked: this.#leaked * clusterSize,
      used: used * clusterSize,
      free: fileSize - used * clusterSize,
      fileSize,
      damaged: this.#damaged,
    };
  }

  #eachOwner(set: number, act: (owner: number) => void): void {
    const runs = this.#sets.runs(set);
    for (let i = 0; i < runs.length; i += 2) {
      for (let owner = runs[i] as number; owner < (runs[i + 1] as number); owner++) act(owner);
    }
  }

  /** Collects the L2 tables with who has them. L1 tables that several snapshots have in one place are read once. */
  async #readL1Tables(): Promise<void> {
    const { clusterSize } = this.#header.geometry;
    const places = new Map<string, { offset: number; entries: number; set: number }>();
    const add = (offset: number, entries: number, owner: number): void => {
      const key = `${offset} ${entries}`;
      const known = places.get(key);
      if (known !== undefined) known.set = this.#sets.union(known.set, this.#sets.single(owner));
      else places.set(key, { offset, entries, set: this.#sets.single(owner) });
    };
    add(this.#header.l1TableOffset, this.#header.l1Size, LIVE);
    for (const [i, snapshot] of this.#snapshotTable.snapshots.entries()) {
      checkSnapshotL1(snapshot, clusterSize);
      add(snapshot.l1TableOffset, snapshot.l1Size, FIRST_SNAPSHOT + i);
    }
    this.#l1Tables.push(...places.values());
    let allowance = Math.max(this.#storage.size * MAX_L1_READS, READ_AHEAD);
    for (const { offset, entries, set } of this.#l1Tables) {
      const inFile = Math.max(0, Math.min(entries, Math.ceil((this.#storage.size - offset) / 8)));
      allowance -= inFile * 8;
      if (allowance < 0) throw new ImageError('CORRUPT', 'the L1 tables of its snapshots lie on each other');
      const table = await PointerTable.load(this.#storage, { name: 'L1 table', offset, entries: inFile, clusterSize });
      for (let i = 0; i < inFile; i++) {
        const target = table.checkedTarget(i);
        if (target === 0) continue;
        const cluster = target / clusterSize;
        if (cluster >= this.#fileClusters) this.#damaged++;
        else this.#tables.set(cluster, this.#sets.union(this.#tables.get(cluster), set));
      }
    }
  }

  #refcountTable(): Promise<PointerTable> {
    const { refcountTableOffset: offset, refcountTableClusters, geometry } = this.#header;
    const { clusterSize, refcountsPerBlock } = geometry;
    // Entries for what the file does not reach count nothing.
    const entries = Math.min(
      (refcountTableClusters * clusterSize) / 8,
      Math.floor(this.#fileClusters / refcountsPerBlock) + 1,
    );
    return PointerTable.load(this.#storage, { name: 'refcount table', offset, entries, clusterSize });
  }

  /** Which clusters count as used. */
  async #refcounts(table: PointerTable): Promise<void> {
    const { clusterSize, refcountsPerBlock, refcountOrder } = this.#header.geometry;
    for (let index = 0; index < table.entries; index++) {
      const offset = table.checkedTarget(index);
      if (offset === 0) continue;
      const block = await readBytes(this.#storage, offset, clusterSize);
      const first = index * refcountsPerBlock;
      const end = Math.min(refcountsPerBlock, this.#fileClusters - first);
      for (let i = 0; i < end; i++) if (getRefcount(block, refcountOrder, i) !== 0) this.#pages.count(first + i);
    }
  }

  /** What the file needs for itself. */
  async #ownMetadata(refcountTable: PointerTable): Promise<void> {
    const { clusterSize } = this.#header.geometry;
    const { extensions, refcountTableOffset, refcountTableClusters } = this.#header;
    const own = this.#sets.single(FILE);
    this.#mark(0, clusterSize, own);
    this.#mark(refcountTableOffset, refcountTableClusters * clusterSize, own);
    for (let i = 0; i < refcountTable.entries; i++) {
      const block = refcountTable.checkedTarget(i);
      if (block !== 0) this.#mark(block, clusterSize, own);
    }
    this.#mark(this.#snapshotTable.offset, this.#snapshotTable.byteLength, own);
    if (extensions.crypto !== undefined) this.#mark(extensions.crypto.offset, extensions.crypto.length, own);
    const reference = bitmapsOf(this.#header);
    if (reference === undefined) return;
    this.#mark(reference.directoryOffset, reference.directorySize, own);
    for (const { tableOffset, tableSize } of await readBitmapDirectory(this.#storage, reference, clusterSize)) {
      this.#mark(tableOffset, tableSize * 8, own);
      const entries = Math.max(0, Math.min(tableSize, Math.ceil((this.#storage.size - tableOffset) / 8)));
      const place = { name: 'bitmap table', offset: tableOffset, entries, clusterSize };
      const table = await PointerTable.load(this.#storage, place);
      for (let i = 0; i < entries; i++) {
        const target = table.checkedTarget(i);
        if (target !== 0) this.#mark(target, clusterSize, own);
      }
    }
  }

  /** Enters that `set` refers to all clusters of a range. */
  #mark(offset: number, length: number, set: number): void {
    if (!(length > 0)) return;
    const { clusterSize } = this.#header.geometry;
    const last = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) {
      // Whatever an entry says, the walk ends with the file.
      if (!(cluster < this.#fileClusters)) {
        if (this.#first) this.#damaged++;
        return;
      }
      this.#add(cluster, set);
    }
  }

  #add(cluster: number, set: number): void {
    const before = this.#pages.get(cluster);
    if (before === undefined || before === set) return;
    this.#pages.set(cluster, this.#sets.union(before, set));
  }

  async #l2Tables(): Promise<void> {
    const { clusterSize } = this.#header.geometry;
    const clusters = this.#tables.clusters();
    for (let i = 0; i < clusters.length; i++) {
      const cluster = clusters[i] as number;
      const set = this.#tables.get(cluster);
      this.#add(cluster, set);
      this.#entries(await this.#table(cluster * clusterSize, clusters, i), set);
    }
  }

  /** The bytes of an L2 table; those that follow it closely are read along with it. */
  async #table(offset: number, clusters: Float64Array, index: number): Promise<Uint8Array> {
    const { clusterSize } = this.#header.geometry;
    if (offset < this.#bufferStart || offset + clusterSize > this.#bufferStart + this.#bufferLength) {
      let last = index;
      const near = (i: number) => (clusters[i] as number) - (clusters[i - 1] as number) <= 4;
      const fits = (i: number) => (clusters[i] as number) * clusterSize + clusterSize - offset <= this.#buffer.length;
      while (last + 1 < clusters.length && near(last + 1) && fits(last + 1)) last++;
      const length = (clusters[last] as number) * clusterSize + clusterSize - offset;
      this.#bufferLength = 0;
      const bytes = await readBytes(this.#storage, offset, length);
      this.#buffer.set(bytes);
      this.#bufferStart = offset;
      this.#bufferLength = length;
    }
    return this.#buffer.subarray(offset - this.#bufferStart, offset - this.#bufferStart + clusterSize);
  }

  #entries(bytes: Uint8Array, set: number): void {
    const { clusterSize, entrySize, extendedL2, compressedOffsetBits } = this.#header.geometry;
    let [data, compressed, zero] = [0, 0, 0];
    for (let at = 0; at < clusterSize; at += entrySize) {
      const high = getU32(bytes, at);
      const low = getU32(bytes, at + 4);
      if ((high & COMPRESSED_BIT) !== 0) {
        compressed++;
        const offset = compressedOffset(high, low, compressedOffsetBits);
        this.#mark(offset, compressedLength(high, low, compressedOffsetBits), set);
        continue;
      }
      const isZero = !extendedL2 && (low & ZERO_BIT) !== 0;
      if (isZero) zero++;
      const host = hostOffset(high, low);
      if (host === 0) {
        // Subclusters that read as zeros need no place.
        if (extendedL2 && getU32(bytes, at + 8) !== 0) zero++;
        continue;
      }
      if (!isZero) data++;
      if (this.#external) continue;
      if ((low & OFFSET_LOW & (clusterSize - 1)) !== 0) {
        if (this.#first) this.#damaged++;
        continue;
      }
      const cluster = host / clusterSize;
      if (cluster < this.#fileClusters) this.#add(cluster, set);
      else if (this.#first) this.#damaged++;
    }
    if (!this.#first || data + compressed + zero === 0) return;
    const sums = this.#mapped.get(set);
    if (sums === undefined) this.#mapped.set(set, [data, compressed, zero]);
    else {
      sums[0] += data;
      sums[1] += compressed;
      sums[2] += zero;
    }
  }

  #tally(): void {
    for (const page of this.#pages.all()) {
      const end = Math.min(PAGE_CLUSTERS, this.#fileClusters - page.first);
      for (let i = 0; i < end; i++) {
        const set = page.set(i);
        if (set !== 0) {
          this.#clusters[set] = (this.#clusters[set] ?? 0) + 1;
          if (!page.isCounted(i)) this.#damaged++;
        } else if (page.isCounted(i)) this.#leaked++;
      }
    }
  }
}
