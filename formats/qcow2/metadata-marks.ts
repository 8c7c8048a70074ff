import { ImageError } from '../core/errors.ts';
import type { Storage } from '../storage/storage.ts';
import type { Qcow2Header } from './header.ts';
import { MetadataMap } from './metadata-map.ts';
import { PointerTable } from './pointer-table.ts';
import { checkSnapshotL1, type SnapshotTable } from './snapshot.ts';

/** L1 tables of snapshots may lie on each other: what is read of them is bounded by the file, times this. */
const MAX_L1_READS = 4;
const MIN_L1_READS = 1024 * 1024;

export interface MarkedImage {
  readonly storage: Storage;
  readonly header: Qcow2Header;
  readonly snapshotTable: SnapshotTable;
  /** The active L1 table. */
  readonly l1: PointerTable;
  readonly refcountTable: PointerTable;
}

/**
 * Marks everything that no data may be written to: header, L1 and L2 tables of the disk and of its snapshots, refcount structures,
 * snapshot table, encryption header. Bitmaps mark theirs when they are loaded.
 *
 * @returns also the active L1 entries that point to what is something else already: nothing is written through them
 * @throws {ImageError} CORRUPT where tables that are written lie on each other
 */
export async function markMetadata(image: MarkedImage): Promise<{ metadata: MetadataMap; brokenTables: Set<number> }> {
  const { clusterSize } = image.header.geometry;
  const metadata = markTables(image);
  const inactive = await markSnapshotL1(image, metadata);
  const brokenTables = markL2Tables(image.l1, metadata, clusterSize);
  // Last: what a snapshot shares with the disk is no conflict.
  for (const table of inactive) {
    for (let i = table.nextUsed(0); i < table.entries; i = table.nextUsed(i + 1)) {
      const target = table.target(i);
      if (target > 0) addInFile(image.storage, metadata, target, clusterSize);
    }
  }
  return { metadata, brokenTables };
}

/** Header, L1 table, refcount structures, snapshot table and encryption header. */
function markTables({ storage, header, l1, snapshotTable, refcountTable }: MarkedImage): MetadataMap {
  const { clusterSize } = header.geometry;
  const metadata = new MetadataMap(clusterSize);
  const claim = (offset: number, length: number, field: string, at: number): void => {
    for (let cluster = offset / clusterSize; cluster * clusterSize < offset + length; cluster++) {
      if (!metadata.has(cluster)) continue;
      throw new ImageError('CORRUPT', `the ${field} lies on other metadata`, { path: storage.path, field, offset: at });
    }
    metadata.add(offset, length);
  };
  metadata.add(0, clusterSize);
  claim(header.refcountTableOffset, refcountTable.byteLength, 'refcount table', 48);
  const { crypto } = header.extensions;
  if (crypto !== undefined) claim(crypto.offset, crypto.length, 'encryption header', crypto.at);
  if (l1.byteLength > 0) claim(l1.offset, l1.byteLength, 'L1 table', 40);
  if (snapshotTable.byteLength > 0) claim(snapshotTable.offset, snapshotTable.byteLength, 'snapshot table', 64);
  for (let i = refcountTable.nextUsed(0); i < refcountTable.entries; i = refcountTable.nextUsed(i + 1)) {
    const block = refcountTable.checkedTarget(i);
    if (block === 0) continue;
    const at = refcountTable.offset + i * 8;
    if (block >= storage.size) {
      throw new ImageError('CORRUPT', `refcount block ${i} is outside the file`, {
        path: storage.path,
        field: 'refcount table',
        offset: at,
      });
    }
    claim(block, clusterSize, 'refcount block', at);
  }
  return metadata;
}

/** The L1 tables of snapshots. @returns them, each once */
async function markSnapshotL1(image: MarkedImage, metadata: MetadataMap): Promise<PointerTable[]> {
  const { storage, header, snapshotTable } = image;
  const { clusterSize } = header.geometry;
  const seen = new Set<string>();
  const tables: PointerTable[] = [];
  let allowance = Math.max(storage.size * MAX_L1_READS, MIN_L1_READS);
  for (const snapshot of snapshotTable.snapshots) {
    const { l1TableOffset: offset, l1Size, id } = snapshot;
    const key = `${offset} ${l1Size}`;
    if (seen.has(key)) continue;
    seen.add(key);
    try {
      checkSnapshotL1(snapshot, clusterSize);
    } catch (error) {
      if (error instanceof ImageError) continue; // whoever uses this snapshot is told
      throw error;
    }
    const entries = Math.max(0, Math.min(l1Size, Math.ceil((storage.size - offset) / 8)));
    allowance -= entries * 8;
    if (allowance < 0) {
      throw new ImageError('CORRUPT', `the L1 table of snapshot ${id} lies on those of others`, {
        path: storage.path,
        field: 'snapshot L1 table',
        offset,
      });
    }
    addInFile(storage, metadata, offset, entries * 8);
    tables.push(await PointerTable.load(storage, { name: 'snapshot L1 table', offset, entries, clusterSize }));
  }
  return tables;
}

/** The active L2 tables. @returns L1 entries that point to what is something else already */
function markL2Tables(l1: PointerTable, metadata: MetadataMap, clusterSize: number): Set<number> {
  const broken = new Set<number>();
  for (let i = l1.nextUsed(0); i < l1.entries; i = l1.nextUsed(i + 1)) {
    const table = l1.target(i);
    if (table <= 0) continue;
    if (metadata.has(table / clusterSize) || !Number.isSafeInteger(table + clusterSize)) broken.add(i);
    else metadata.add(table, clusterSize);
  }
  return broken;
}

/** What lies outside the file is nothing that could be written over. */
function addInFile(storage: Storage, metadata: MetadataMap, offset: number, length: number): void {
  if (offset < storage.size) metadata.add(offset, Math.min(length, storage.size - offset));
}
