import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { CheckResult } from '../image/check.ts';
import { report } from '../image/check.ts';
import type { Storage } from '../storage/storage.ts';
import { type Qcow2Bitmap, readBitmapDirectory } from './bitmaps.ts';
import { AUTOCLEAR } from './features.ts';
import { announcedClusterSize, HEADER_V2, parseHeader, type Qcow2Header } from './header.ts';
import { PointerTable } from './pointer-table.ts';
import { checkSnapshotL1, readSnapshotTable, type SnapshotTable } from './snapshot.ts';

/** An L1 table with how many snapshots have it. */
export interface L1Place {
  readonly offset: number;
  readonly entries: number;
  readonly references: number;
  readonly active: boolean;
}

/** An image as the check sees it: nothing in it has to be right but the header's own fields. */
export interface CheckSubject {
  readonly storage: Storage;
  readonly header: Qcow2Header;
  /** The header points to no refcount table that could be one. */
  readonly refcountTableGone: boolean;
  /** Without entries when it is gone. */
  readonly refcountTable: PointerTable;
  readonly snapshotTable: SnapshotTable;
  /** The active one first. */
  readonly l1Tables: readonly L1Place[];
  readonly bitmaps: readonly Qcow2Bitmap[];
  /** Something that refers to clusters could not be read: nothing may be taken for free. */
  readonly incomplete: boolean;
}

/** Reads what the check starts from, and enters what is wrong with it. @throws {ImageError} when it is no qcow2 image that can be checked */
export async function readSubject(storage: Storage, result: CheckResult): Promise<CheckSubject> {
  const { header, refcountTableGone } = await readTolerantly(storage);
  const { clusterSize } = header.geometry;
  // Not counted by itself: every cluster in use is an error then.
  if (refcountTableGone) report(result, 'the header points to no refcount table');
  const refcountTable = await PointerTable.load(storage, {
    name: 'refcount table',
    offset: header.refcountTableOffset,
    entries: refcountTableGone ? 0 : (header.refcountTableClusters * clusterSize) / 8,
    clusterSize,
  });
  let incomplete = false;
  const tolerate = async <T>(read: () => Promise<T> | T, otherwise: T): Promise<T> => {
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof LunetteError)) throw error;
      incomplete = true;
      if (error instanceof ImageError) result.corruptions++;
      else result.checkErrors++;
      report(result, error.offset === undefined ? error.message : `${error.message} (at offset ${error.offset})`);
      return otherwise;
    }
  };
  const noTable: SnapshotTable = { offset: 0, byteLength: 0, snapshots: [] };
  const snapshotTable = await tolerate(() => readSnapshotTable(storage, header), noTable);
  const places = new Map<string, L1Place>();
  for (const snapshot of snapshotTable.snapshots) {
    const fine = await tolerate(() => {
      checkSnapshotL1(snapshot, clusterSize);
      return true;
    }, false);
    if (!fine) continue;
    const { l1TableOffset: offset, l1Size: entries } = snapshot;
    const key = `${offset} ${entries}`;
    places.set(key, { offset, entries, references: (places.get(key)?.references ?? 0) + 1, active: false });
  }
  if (header.geometry.version === 3) {
    for (const { at, extra } of snapshotTable.snapshots) {
      if (extra.length >= 16) continue;
      result.corruptions++;
      report(result, `the snapshot table entry at ${at} lacks the size of the disk`);
    }
  }
  const reference = bitmapsOf(header);
  const bitmaps =
    reference === undefined
      ? []
      : await tolerate(() => readBitmapDirectory(storage, reference, clusterSize), [] as Qcow2Bitmap[]);
  const active = { offset: header.l1TableOffset, entries: header.l1Size, references: 1, active: true };
  return {
    storage,
    header,
    refcountTableGone,
    refcountTable,
    snapshotTable,
    l1Tables: [active, ...places.values()],
    bitmaps,
    incomplete,
  };
}

/** Bitmaps count while the autoclear bit vouches for them. */
export function bitmapsOf(header: Qcow2Header): Qcow2Header['extensions']['bitmaps'] {
  return (header.autoclearFeatures.low & AUTOCLEAR.BITMAPS) === 0 ? undefined : header.extensions.bitmaps;
}

async function readTolerantly(storage: Storage): Promise<{ header: Qcow2Header; refcountTableGone: boolean }> {
  const head = await readStart(storage, 512);
  const view = await readStart(storage, announcedClusterSize(head));
  try {
    return { header: parseHeader(view), refcountTableGone: false };
  } catch (error) {
    const field = error instanceof ImageError ? error.field : undefined;
    if (field !== 'refcountTableClusters' && field !== 'refcountTableOffset') throw error;
  }
  // The rest of the header may be fine: parsed as if there were a table.
  HEADER_V2.write(view, { refcountTableOffset: 0, refcountTableClusters: 1 });
  return { header: parseHeader(view), refcountTableGone: true };
}

async function readStart(storage: Storage, length: number): Promise<DataView> {
  const bytes = new Uint8Array(Math.min(length, storage.size));
  if (bytes.length > 0) await storage.readv(0, IoVec.of(bytes));
  return new DataView(bytes.buffer);
}
