import { ImageError } from '../core/errors.ts';
import type { Storage } from '../storage/storage.ts';
import { COMPRESSED_BIT, compressedLength, compressedOffset, getU32, hostOffset, OFFSET_LOW } from './l2.ts';
import { PointerTable } from './pointer-table.ts';
import { checkSnapshotL1, type Qcow2Snapshot } from './snapshot.ts';
import { scanTables } from './table-scan.ts';
import type { WriteState } from './write-state.ts';

/** What looking for other owners asks of the writer. */
export interface OwnersHost {
  readonly state: WriteState;
  readonly snapshotList: readonly Qcow2Snapshot[];
  flush(): Promise<void>;
}

/**
 * Makes sure that clusters of bitmaps can be given free: a damaged table may name clusters of the guest, which would lose what it has written.
 * A count of two or more leaves them to the other owner in any case; of those with a count of one the tables of the disk and of its snapshots
 * tell. They are all read.
 *
 * @param clusters numbers of clusters, each to lose one reference
 * @param kept whether another bitmap has the cluster
 * @throws {ImageError} CORRUPT, and nothing has been changed
 */
export async function refuseOthersClusters(
  host: OwnersHost,
  clusters: Iterable<number>,
  kept: (cluster: number) => boolean,
): Promise<void> {
  const { refcounts, geometry } = host.state.parts;
  const alone = new Set<number>();
  for (const cluster of clusters) {
    const count = await refcounts.get(cluster);
    if (count === 0) refuse(host, cluster * geometry.clusterSize, 'the refcounts call free');
    if (count === 1 && kept(cluster)) refuse(host, cluster * geometry.clusterSize, 'another bitmap has as well');
    if (count === 1) alone.add(cluster);
  }
  // Data in a file of its own is not in this one.
  if (alone.size === 0 || host.state.external) return;
  await host.flush(); // the tables are read from the file
  await scanTables(host.state.parts.storage, await l2Tables(host), geometry.clusterSize, {
    visit: (bytes) => {
      const found = firstReference(host, bytes, alone);
      if (found !== undefined) refuse(host, found * geometry.clusterSize, 'a guest’s data is in as well');
      return undefined;
    },
  });
}

function refuse({ state }: OwnersHost, offset: number, what: string): never {
  throw new ImageError('CORRUPT', `a bitmap has a cluster that ${what}: letting go of it would lose data`, {
    path: state.parts.storage.path,
    field: 'bitmaps',
    offset,
    help: 'Make a copy, then repair it first: lunette check -r all.',
  });
}

/** Offsets of all L2 tables, ascending. */
async function l2Tables({ state, snapshotList }: OwnersHost): Promise<Float64Array> {
  const { l1, storage, geometry } = state.parts;
  const found = new Set<number>();
  collect(l1, storage, found);
  for (const snapshot of snapshotList) {
    checkSnapshotL1(snapshot, geometry.clusterSize);
    const { l1TableOffset: offset, l1Size: entries } = snapshot;
    const place = { name: 'snapshot L1 table', offset, entries, clusterSize: geometry.clusterSize };
    collect(await PointerTable.load(storage, place), storage, found);
  }
  return Float64Array.from(found).sort();
}

/** Tables that lead nowhere refer to nothing. */
function collect(table: PointerTable, storage: Storage, found: Set<number>): void {
  for (let i = 0; i < table.entries; i++) {
    const target = table.target(i);
    if (target > 0 && target < storage.size) found.add(target);
  }
}

/** The first of these clusters that an L2 table refers to. */
function firstReference({ state }: OwnersHost, table: Uint8Array, clusters: ReadonlySet<number>): number | undefined {
  const { clusterSize, entrySize, compressedOffsetBits } = state.parts.geometry;
  for (let at = 0; at < table.length; at += entrySize) {
    const high = getU32(table, at);
    const low = getU32(table, at + 4);
    if ((high | low) === 0) continue;
    if ((high & COMPRESSED_BIT) === 0) {
      const cluster = Math.floor(hostOffset(high, low & OFFSET_LOW) / clusterSize);
      if (cluster > 0 && clusters.has(cluster)) return cluster;
      continue;
    }
    const start = compressedOffset(high, low, compressedOffsetBits);
    const end = start + compressedLength(high, low, compressedOffsetBits);
    for (let cluster = Math.floor(start / clusterSize); cluster * clusterSize < end; cluster++) {
      if (clusters.has(cluster)) return cluster;
    }
  }
  return undefined;
}
