import { ImageError } from '../core/errors.ts';
import type { Storage } from '../storage/storage.ts';
import { COMPRESSED_BIT, compressedLength, compressedOffset, hostOffset, runLength } from './l2.ts';
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
  const clustersAlone = [...alone].sort((a, b) => a - b);
  await scanTables(host.state.parts.storage, await l2Tables(host), geometry.clusterSize, {
    visit: (bytes) => {
      const found = firstReference(host, bytes, clustersAlone);
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

/** The first of these clusters, ascending, that an L2 table refers to. */
function firstReference({ state }: OwnersHost, table: Uint8Array, clusters: readonly number[]): number | undefined {
  const { clusterSize, entrySize, compressedOffsetBits } = state.parts.geometry;
  const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
  const [least, most] = [clusters[0] as number, clusters[clusters.length - 1] as number];
  let step = entrySize;
  for (let at = 0; at < table.length; at += step) {
    step = entrySize;
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    if ((high | low) === 0) continue;
    let start: number;
    let end: number;
    if ((high & COMPRESSED_BIT) === 0) {
      // Data that lies in order is looked at once.
      const count = entrySize === 8 ? runLength(view, at, high, low, clusterSize) : 1;
      step = count * entrySize;
      start = Math.floor(hostOffset(high, low) / clusterSize);
      end = start + count;
    } else {
      const offset = compressedOffset(high, low, compressedOffsetBits);
      start = Math.floor(offset / clusterSize);
      end = Math.ceil((offset + compressedLength(high, low, compressedOffsetBits)) / clusterSize);
    }
    if (end <= least || start > most) continue;
    // Cluster 0 is the header's: an entry without an offset.
    const found = clusters.find((cluster) => cluster >= start && cluster < end && cluster > 0);
    if (found !== undefined) return found;
  }
  return undefined;
}
