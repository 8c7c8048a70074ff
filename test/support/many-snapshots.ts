/** Builds qcow2 images with very many snapshots, byte by byte: taking them one by one writes the table anew each time. */

const CLUSTER = 512;
const L2_ENTRIES = CLUSTER / 8;
const REFCOUNTS_PER_BLOCK = CLUSTER / 4;
const COPIED = 1n << 63n;

export interface ManySnapshots {
  readonly bytes: Uint8Array;
  /** Bytes of the snapshot table. */
  readonly tableLength: number;
  /** Size of the disk. */
  readonly diskSize: number;
}

/**
 * An image of version 3 with clusters of 512 bytes and refcounts of 32 bits. The live disk is `0xaa` in its first cluster; snapshot i (from 1 on, named
 * `s<i>`) has bytes of i % 251 in its first cluster if `own` has it, and shares the cluster of `0x55` of the others otherwise.
 */
export function manySnapshots(count: number, own: ReadonlySet<number>): ManySnapshots {
  const entries = Array.from({ length: count }, (_, i) => encodeEntry(i + 1));
  const tableLength = entries.reduce((sum, { length }) => sum + length, 0);
  const tableClusters = Math.ceil(tableLength / CLUSTER);
  // Header, live L1, L2, data; shared L2, data; two clusters for each of their own; L1 tables; snapshot table.
  const used = 1 + 3 + 2 + 2 * own.size + count + tableClusters;
  let blocks = 0;
  let refcountTable = 0;
  for (let before = -1; before !== blocks + refcountTable; ) {
    before = blocks + refcountTable;
    blocks = Math.ceil((used + before) / REFCOUNTS_PER_BLOCK);
    refcountTable = Math.ceil((blocks * 8) / CLUSTER);
  }
  const clusters = used + blocks + refcountTable;
  const bytes = new Uint8Array(clusters * CLUSTER);
  const view = new DataView(bytes.buffer);
  const counts = new Uint32Array(clusters).fill(1);
  let next = 1;
  const take = (n: number): number => {
    const first = next;
    next += n;
    return first;
  };
  const u64 = (at: number, value: bigint): void => view.setBigUint64(at, value);
  const at = (cluster: number): bigint => BigInt(cluster * CLUSTER);

  const tableAt = take(refcountTable);
  const blocksAt = take(blocks);
  const live = take(3);
  u64(live * CLUSTER, at(live + 1) | COPIED);
  u64((live + 1) * CLUSTER, at(live + 2) | COPIED);
  bytes.fill(0xaa, (live + 2) * CLUSTER, (live + 3) * CLUSTER);
  const shared = take(2);
  u64(shared * CLUSTER, at(shared + 1));
  bytes.fill(0x55, (shared + 1) * CLUSTER, (shared + 2) * CLUSTER);
  counts[shared] = count - own.size;
  counts[shared + 1] = count - own.size;
  const l1 = take(count);
  for (let i = 1; i <= count; i++) {
    let l2 = shared;
    if (own.has(i)) {
      l2 = take(2);
      u64(l2 * CLUSTER, at(l2 + 1));
      bytes.fill(i % 251, (l2 + 1) * CLUSTER, (l2 + 2) * CLUSTER);
    }
    u64((l1 + i - 1) * CLUSTER, at(l2));
    new DataView((entries[i - 1] as Uint8Array).buffer).setBigUint64(0, at(l1 + i - 1));
  }
  const snapshots = take(tableClusters);
  let to = snapshots * CLUSTER;
  for (const entry of entries) {
    bytes.set(entry, to);
    to += entry.length;
  }
  for (let block = 0; block < blocks; block++) u64(tableAt * CLUSTER + block * 8, at(blocksAt + block));
  for (const [cluster, references] of counts.entries()) view.setUint32(blocksAt * CLUSTER + cluster * 4, references);

  const diskSize = L2_ENTRIES * CLUSTER;
  bytes.set([0x51, 0x46, 0x49, 0xfb]);
  view.setUint32(4, 3);
  view.setUint32(20, 9);
  u64(24, BigInt(diskSize));
  view.setUint32(36, 1);
  u64(40, at(live));
  u64(48, at(tableAt));
  view.setUint32(56, refcountTable);
  view.setUint32(60, count);
  u64(64, at(snapshots));
  view.setUint32(96, 5);
  view.setUint32(100, 104);
  return { bytes, tableLength, diskSize };
}

function encodeEntry(number: number): Uint8Array {
  const id = Buffer.from(`${number}`);
  const name = Buffer.from(`s${number}`);
  const bytes = new Uint8Array(Math.ceil((40 + 16 + id.length + name.length) / 8) * 8);
  const view = new DataView(bytes.buffer);
  view.setUint32(8, 1);
  view.setUint16(12, id.length);
  view.setUint16(14, name.length);
  view.setUint32(16, 1_700_000_000);
  view.setUint32(36, 16);
  view.setBigUint64(48, BigInt(L2_ENTRIES * CLUSTER));
  bytes.set(id, 56);
  bytes.set(name, 56 + id.length);
  return bytes;
}
