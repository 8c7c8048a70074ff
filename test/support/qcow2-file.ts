/**
 * A second, plain reading of the qcow2 format for tests: over the bytes of a whole file, without anything of formats/qcow2. It counts references,
 * compares them with the refcounts, and takes internal snapshots, so that tests need no other program for that.
 */

/** What an image's metadata gets wrong. */
export interface Inspection {
  /** Refcount too low, overlaps, references out of the file, COPIED where it must not be: what destroys data. */
  readonly corruptions: string[];
  /** Refcount too high: space that is lost, nothing else. */
  readonly leaks: string[];
  /** COPIED missing where the refcount is one: costs a copy, nothing else. */
  readonly missingCopied: string[];
}

/** A dirty bitmap as the directory has it. */
export interface FileBitmap {
  readonly name: string;
  readonly table: number;
  readonly entries: number;
  readonly inUse: boolean;
  readonly auto: boolean;
  readonly granularity: number;
  readonly directory: { readonly at: number; readonly length: number } | undefined;
}

const BITMAPS = 0x23852875;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const OFFSET = 0x00fffffffffffe00n;

export class Qcow2File {
  bytes: Uint8Array;
  #view: DataView;
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly version: number;
  readonly refcountBits: number;
  /** Bytes of an L2 entry: 16 with subclusters. */
  readonly entrySize: number;
  /** Data is in another file. */
  readonly external: boolean;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.version = this.u32(4);
    this.clusterBits = this.u32(20);
    this.clusterSize = 2 ** this.clusterBits;
    this.refcountBits = this.version === 2 ? 16 : 2 ** this.u32(96);
    const features = this.version === 2 ? 0 : this.u32(76);
    this.entrySize = (features & 16) !== 0 ? 16 : 8;
    this.external = (features & 4) !== 0;
  }

  u32(at: number): number {
    return at + 4 <= this.bytes.length ? this.#view.getUint32(at) : 0;
  }

  u64(at: number): bigint {
    return at + 8 <= this.bytes.length ? this.#view.getBigUint64(at) : 0n;
  }

  /** A 64-bit field that is small: offsets, counts. */
  number(at: number): number {
    return at + 8 <= this.bytes.length ? this.#view.getUint32(at) * 0x100000000 + this.#view.getUint32(at + 4) : 0;
  }

  setU32(at: number, value: number): void {
    this.#view.setUint32(at, value);
  }

  setU64(at: number, value: bigint): void {
    this.#view.setBigUint64(at, value);
  }

  get dirty(): boolean {
    return this.version > 2 && (this.u64(72) & 1n) !== 0n;
  }

  get l1Offset(): number {
    return Number(this.u64(40));
  }

  get l1Size(): number {
    return this.u32(36);
  }

  /** Where a cluster's refcount is: byte offset in the file and bit; undefined when there is no block. */
  #refcountPlace(cluster: number): { at: number; bit: number } | undefined {
    const perBlock = (this.clusterSize * 8) / this.refcountBits;
    const index = Math.floor(cluster / perBlock);
    if (index * 8 >= this.u32(56) * this.clusterSize) return undefined;
    const block = this.number(this.number(48) + index * 8);
    if (block === 0) return undefined;
    const bits = (cluster % perBlock) * this.refcountBits;
    return { at: block + Math.floor(bits / 8), bit: bits % 8 };
  }

  refcount(cluster: number): number {
    const place = this.#refcountPlace(cluster);
    if (place === undefined) return 0;
    const { at, bit } = place;
    if (at >= this.bytes.length) return 0;
    switch (this.refcountBits) {
      case 64:
        return this.number(at);
      case 32:
        return this.u32(at);
      case 16:
        return this.#view.getUint16(at);
      default:
        return ((this.bytes[at] as number) >> bit) & (2 ** this.refcountBits - 1);
    }
  }

  setRefcount(cluster: number, value: number): void {
    const place = this.#refcountPlace(cluster);
    if (place === undefined) throw new Error(`cluster ${cluster} has no refcount block`);
    const { at, bit } = place;
    if (this.refcountBits === 64) this.setU64(at, BigInt(value));
    else if (this.refcountBits === 32) this.setU32(at, value);
    else if (this.refcountBits === 16) this.#view.setUint16(at, value);
    else {
      const mask = (2 ** this.refcountBits - 1) << bit;
      this.bytes[at] = ((this.bytes[at] as number) & ~mask) | (value << bit);
    }
  }

  /** L1 tables: the active one first, then those of the snapshots. */
  l1Tables(): { at: number; entries: number; active: boolean }[] {
    const tables = [{ at: this.l1Offset, entries: this.l1Size, active: true }];
    let at = Number(this.u64(64));
    for (let i = 0; i < this.u32(60); i++) {
      tables.push({ at: Number(this.u64(at)), entries: this.u32(at + 8), active: false });
      const size = 40 + this.u32(at + 36) + this.#view.getUint16(at + 12) + this.#view.getUint16(at + 14);
      at += Math.ceil(size / 8) * 8;
    }
    return tables;
  }

  /** Bytes of the snapshot table. */
  get #snapshotTableLength(): number {
    const start = Number(this.u64(64));
    let at = start;
    for (let i = 0; i < this.u32(60); i++) {
      const size = 40 + this.u32(at + 36) + this.#view.getUint16(at + 12) + this.#view.getUint16(at + 14);
      at += Math.ceil(size / 8) * 8;
    }
    return at - start;
  }

  /** Persistent dirty bitmaps, while the autoclear bit vouches for them. The first one carries the place of the directory. */
  bitmaps(): FileBitmap[] {
    if (this.version < 3 || (this.u64(88) & 1n) === 0n) return [];
    let at = this.u32(100);
    while (this.u32(at) !== BITMAPS) {
      if (this.u32(at) === 0) throw new Error('the bitmaps bit without the extension');
      at += 8 + Math.ceil(this.u32(at + 4) / 8) * 8;
    }
    const count = this.u32(at + 8);
    const length = Number(this.u64(at + 16));
    const start = Number(this.u64(at + 24));
    const result: FileBitmap[] = [];
    for (let entry = start; entry < start + length; ) {
      const extra = this.u32(entry + 20);
      const nameLength = this.#view.getUint16(entry + 18);
      const nameAt = entry + 24 + extra;
      result.push({
        name: Buffer.from(this.bytes.subarray(nameAt, nameAt + nameLength)).toString(),
        table: Number(this.u64(entry)),
        entries: this.u32(entry + 8),
        inUse: (this.u32(entry + 12) & 1) !== 0,
        auto: (this.u32(entry + 12) & 2) !== 0,
        granularity: 2 ** (this.bytes[entry + 17] as number),
        directory: entry === start ? { at: start, length } : undefined,
      });
      entry += Math.ceil((24 + extra + nameLength) / 8) * 8;
    }
    if (result.length !== count) throw new Error(`the directory holds ${result.length} bitmaps, not ${count}`);
    return result;
  }

  /** Whether a bitmap says that a granule is dirty. */
  isDirty({ table, entries }: FileBitmap, granule: number): boolean {
    const index = Math.floor(granule / (this.clusterSize * 8));
    if (index >= entries) throw new Error(`granule ${granule} is behind the end of the bitmap`);
    const entry = this.u64(table + index * 8);
    if (entry <= 1n) return entry === 1n;
    const byte = Number(entry & OFFSET) + Math.floor((granule % (this.clusterSize * 8)) / 8);
    return (((this.bytes[byte] as number) >> (granule % 8)) & 1) === 1;
  }

  /** Clusters that an L2 entry refers to. */
  entryClusters(entry: bigint): number[] {
    if ((entry & COMPRESSED) !== 0n) {
      const x = BigInt(62 - (this.clusterBits - 8));
      const offset = Number(entry & ((1n << x) - 1n));
      const sectors = Number((entry & (COMPRESSED - 1n)) >> x) + 1;
      const end = Math.floor(offset / 512) * 512 + sectors * 512;
      const result = [];
      for (let c = Math.floor(offset / this.clusterSize); c * this.clusterSize < end; c++) result.push(c);
      return result;
    }
    const offset = Number(entry & OFFSET);
    return offset === 0 ? [] : [offset / this.clusterSize];
  }

  /** Where the header extension "full disk encryption header pointer" leads. */
  #cryptoHeader(): { at: number; length: number } | undefined {
    for (let at = this.version === 2 ? 72 : this.u32(100); at + 8 <= this.clusterSize && this.u32(at) !== 0; ) {
      if (this.u32(at) === 0x0537be77) return { at: Number(this.u64(at + 8)), length: Number(this.u64(at + 16)) };
      at += 8 + Math.ceil(this.u32(at + 4) / 8) * 8;
    }
    return undefined;
  }

  /** Compares references with refcounts, and COPIED flags with both. */
  inspect(): Inspection {
    const corruptions: string[] = [];
    const counts = new Map<number, number>();
    const last = Math.ceil(this.bytes.length / this.clusterSize);
    const count = (cluster: number, what: string): void => {
      if (!Number.isInteger(cluster)) corruptions.push(`${what} is not aligned`);
      else if (cluster >= last) corruptions.push(`${what} refers to cluster ${cluster} outside the file of ${last}`);
      else counts.set(cluster, (counts.get(cluster) ?? 0) + 1);
    };
    const countRange = (at: number, length: number, what: string): void => {
      for (let c = at / this.clusterSize; c * this.clusterSize < at + length; c++) count(c, what);
    };
    countRange(0, this.clusterSize, 'header');
    const tableAt = Number(this.u64(48));
    const tableLength = this.u32(56) * this.clusterSize;
    countRange(tableAt, tableLength, 'refcount table');
    for (let i = 0; i < tableLength / 8; i++) {
      const block = this.number(tableAt + i * 8);
      if (block !== 0) countRange(block, this.clusterSize, `refcount block ${i}`);
    }
    const crypto = this.#cryptoHeader();
    if (crypto !== undefined) countRange(crypto.at, crypto.length, 'encryption header');
    if (this.u32(60) > 0) countRange(Number(this.u64(64)), this.#snapshotTableLength, 'snapshot table');
    const flags: { what: string; cluster: number; copied: boolean }[] = [];
    for (const { at, entries, active } of this.l1Tables()) {
      if (entries > 0) countRange(at, entries * 8, 'L1 table');
      for (let i = 0; i < entries; i++) {
        const l1 = this.u64(at + i * 8);
        const table = Number(l1 & OFFSET);
        if (table === 0) continue;
        count(table / this.clusterSize, `L1 entry ${i}`);
        if (active)
          flags.push({ what: `L1 entry ${i}`, cluster: table / this.clusterSize, copied: (l1 & COPIED) !== 0n });
        const perTable = this.clusterSize / this.entrySize;
        for (let j = 0; j < perTable; j++) {
          const at = table + j * this.entrySize;
          // Most entries are empty: told without big numbers.
          if (this.number(at) === 0 && (this.entrySize === 8 || this.number(at + 8) === 0)) continue;
          const entry = this.u64(at);
          if (this.entrySize === 16) this.#subclusters(entry, table + j * 16, `L2 entry ${i}/${j}`, corruptions);
          if (entry === 0n) continue;
          const copied = (entry & COPIED) !== 0n;
          if (this.external) {
            const offset = Number(entry & OFFSET);
            const placed = offset !== 0 || copied;
            if ((entry & COMPRESSED) !== 0n) corruptions.push(`L2 entry ${i}/${j} is compressed in another file`);
            if (placed && !copied) corruptions.push(`L2 entry ${i}/${j} lacks COPIED, but data is in another file`);
            if (placed && offset !== (i * perTable + j) * this.clusterSize)
              corruptions.push(`L2 entry ${i}/${j} is at ${offset} of the data file`);
            continue;
          }
          const clusters = this.entryClusters(entry);
          for (const cluster of clusters) count(cluster, `L2 entry ${i}/${j}`);
          if (!active || clusters.length === 0) continue;
          if ((entry & COMPRESSED) === 0n)
            flags.push({ what: `L2 entry ${i}/${j}`, cluster: clusters[0] as number, copied });
          else if (copied) corruptions.push(`L2 entry ${i}/${j} is compressed and COPIED`);
        }
      }
    }
    for (const { name, table, entries, directory } of this.bitmaps()) {
      if (directory !== undefined) countRange(directory.at, directory.length, 'bitmap directory');
      countRange(table, entries * 8, `table of bitmap ${name}`);
      for (let i = 0; i < entries; i++) {
        const cluster = Number(this.u64(table + i * 8) & OFFSET) / this.clusterSize;
        if (cluster !== 0) count(cluster, `entry ${i} of bitmap ${name}`);
      }
    }
    const leaks: string[] = [];
    const missingCopied: string[] = [];
    const perBlock = (this.clusterSize * 8) / this.refcountBits;
    const compare = (cluster: number): void => {
      const references = counts.get(cluster) ?? 0;
      const refcount = this.refcount(cluster);
      if (refcount === references) return;
      const list = refcount < references ? corruptions : leaks;
      list.push(`cluster ${cluster}: refcount ${refcount}, references ${references}`);
    };
    for (let cluster = 0; cluster < last; cluster++) compare(cluster);
    // Behind the end of the file nothing is referred to: only blocks that are not all zeros need a look.
    for (let i = 0; i < tableLength / 8; i++) {
      const block = this.number(tableAt + i * 8);
      if (block === 0) continue;
      const first = Math.max(last, i * perBlock);
      const from = Math.floor(((first - i * perBlock) * this.refcountBits) / 8);
      if (from >= this.clusterSize) continue;
      if (this.bytes.subarray(block + from, block + this.clusterSize).every((byte) => byte === 0)) continue;
      for (let c = first; c < (i + 1) * perBlock; c++) compare(c);
    }
    for (const { what, cluster, copied } of flags) {
      const refcount = this.refcount(cluster);
      if (copied && refcount !== 1) corruptions.push(`${what} is COPIED, refcount of ${cluster} is ${refcount}`);
      if (!copied && refcount === 1) missingCopied.push(`${what} is not COPIED, refcount of ${cluster} is 1`);
    }
    return { corruptions, leaks, missingCopied };
  }

  /** What the second half of an extended entry may say. */
  #subclusters(entry: bigint, at: number, what: string, corruptions: string[]): void {
    const zeros = this.u32(at + 8);
    const allocated = this.u32(at + 12);
    const placed = (entry & OFFSET) !== 0n || (this.external && (entry & COPIED) !== 0n);
    if ((zeros & allocated) !== 0) corruptions.push(`${what} has subclusters that are zeros and data`);
    if ((entry & COMPRESSED) !== 0n && (zeros | allocated) !== 0) corruptions.push(`${what} is compressed in parts`);
    if (!placed && allocated !== 0) corruptions.push(`${what} has subclusters of no cluster`);
    if ((entry & 1n) !== 0n && (entry & COMPRESSED) === 0n)
      corruptions.push(`${what} has the zero flag beside subclusters`);
  }

  /** Free clusters for new structures: behind the end of the file. Needs a refcount table that reaches that far. */
  #append(length: number): number {
    const clusters = Math.ceil(length / this.clusterSize);
    this.#addRefcountBlocks(clusters);
    const at = this.#grow(clusters);
    for (let i = 0; i < clusters; i++) this.setRefcount(at / this.clusterSize + i, 1);
    return at;
  }

  /** Blocks that count clusters to come, each behind the end of the file. */
  #addRefcountBlocks(clusters: number): void {
    const perBlock = (this.clusterSize * 8) / this.refcountBits;
    for (let i = 0; i < clusters; i++) {
      const cluster = Math.ceil(this.bytes.length / this.clusterSize) + i;
      if (this.#refcountPlace(cluster) !== undefined) continue;
      const index = Math.floor(cluster / perBlock);
      if (index * 8 >= this.u32(56) * this.clusterSize)
        throw new Error(`the refcount table ends before cluster ${cluster}`);
      const block = this.#grow(1);
      this.setU64(this.number(48) + index * 8, BigInt(block));
      this.setRefcount(block / this.clusterSize, 1);
      i = -1; // the file has another end
    }
  }

  /** @returns where the new clusters are */
  #grow(clusters: number): number {
    const at = Math.ceil(this.bytes.length / this.clusterSize) * this.clusterSize;
    const bytes = new Uint8Array(at + clusters * this.clusterSize);
    bytes.set(this.bytes);
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer);
    return at;
  }

  /** Takes an internal snapshot of a clean image. Snapshots that are there stay. */
  takeSnapshot(id: string, name: string): void {
    const l1Length = this.l1Size * 8;
    const oldTable = this.bytes.slice(Number(this.u64(64)), Number(this.u64(64)) + this.#snapshotTableLength);
    const l1Copy = this.#append(Math.max(l1Length, 1));
    for (let i = 0; i < this.l1Size; i++) {
      const l1 = this.u64(this.l1Offset + i * 8);
      const table = Number(l1 & OFFSET);
      if (table !== 0) {
        this.setRefcount(table / this.clusterSize, this.refcount(table / this.clusterSize) + 1);
        for (let j = 0; j < this.clusterSize; j += this.entrySize) {
          const entry = this.u64(table + j);
          for (const cluster of this.entryClusters(entry)) this.setRefcount(cluster, this.refcount(cluster) + 1);
          this.setU64(table + j, (entry & COMPRESSED) !== 0n ? entry : entry & ~COPIED);
        }
        this.setU64(this.l1Offset + i * 8, l1 & ~COPIED);
      }
      this.setU64(l1Copy + i * 8, l1 & ~COPIED);
    }
    const entryLength = Math.ceil((56 + id.length + name.length) / 8) * 8;
    const table = this.#append(oldTable.length + entryLength);
    if (this.u32(60) > 0) {
      const old = Number(this.u64(64));
      for (let c = old; c < old + oldTable.length; c += this.clusterSize) this.setRefcount(c / this.clusterSize, 0);
    }
    this.bytes.set(oldTable, table);
    const at = table + oldTable.length;
    this.setU64(at, BigInt(l1Copy));
    this.setU32(at + 8, this.l1Size);
    this.#view.setUint16(at + 12, id.length);
    this.#view.setUint16(at + 14, name.length);
    this.setU32(at + 36, 16);
    this.setU64(at + 48, this.u64(24));
    this.bytes.set(new TextEncoder().encode(id + name), at + 56);
    this.setU64(64, BigInt(table));
    this.setU32(60, this.u32(60) + 1);
  }
}
