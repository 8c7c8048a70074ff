import { ImageError } from '../core/errors.ts';
import { alignUp, divideUp, formatSize } from '../core/units.ts';
import { MAX_SNAPSHOTS } from './header.ts';
import { MAX_TABLE_BYTES, type Qcow2Snapshot, SNAPSHOT_ENTRY, type SnapshotTable } from './snapshot.ts';

/** Extra data that we write: VM state size, disk size, instruction count. */
const EXTRA_SIZE = 24;
const MAX_TEXT = 65535;

/** What a new snapshot says of itself; the rest is zeros: no VM state. */
export interface NewSnapshot {
  readonly id: string;
  readonly name: string;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly l1TableOffset: number;
  readonly l1Size: number;
  readonly diskSize: number;
}

/** The id of the next snapshot: one more than the largest number that an id begins with, as QEMU's. */
export function nextSnapshotId(snapshots: readonly { readonly id: string }[]): string {
  let most = 0n;
  for (const { id } of snapshots) {
    const digits = /^\s*\+?(\d{1,20})/.exec(id)?.[1];
    if (digits !== undefined && BigInt(digits) > most) most = BigInt(digits);
  }
  return String(most + 1n);
}

/** One entry of the snapshot table, padded. @throws {ImageError} TOO_LARGE for a name that its length field cannot say */
export function encodeSnapshot(snapshot: NewSnapshot): Uint8Array {
  const id = new TextEncoder().encode(snapshot.id);
  const name = new TextEncoder().encode(snapshot.name);
  if (name.length > MAX_TEXT) throw new ImageError('TOO_LARGE', `a snapshot name of ${name.length} bytes is too long`);
  const bytes = new Uint8Array(alignUp(SNAPSHOT_ENTRY.size + EXTRA_SIZE + id.length + name.length, 8));
  const view = new DataView(bytes.buffer);
  SNAPSHOT_ENTRY.write(view, {
    l1TableOffset: snapshot.l1TableOffset,
    l1Size: snapshot.l1Size,
    idLength: id.length,
    nameLength: name.length,
    dateSeconds: snapshot.dateSeconds,
    dateNanoseconds: snapshot.dateNanoseconds,
    extraSize: EXTRA_SIZE,
  });
  view.setBigUint64(SNAPSHOT_ENTRY.size + 8, BigInt(snapshot.diskSize));
  // Nobody counted instructions.
  view.setBigUint64(SNAPSHOT_ENTRY.size + 16, 0xffffffffffffffffn);
  bytes.set(id, SNAPSHOT_ENTRY.size + EXTRA_SIZE);
  bytes.set(name, SNAPSHOT_ENTRY.size + EXTRA_SIZE + id.length);
  return bytes;
}

/** An entry with less extra data than version 3 wants: made longer by the sizes of VM state and disk. */
export function completeSnapshot(entry: Uint8Array, diskSize: number): Uint8Array {
  const from = new DataView(entry.buffer, entry.byteOffset, entry.length);
  const { extraSize, idLength, nameLength, vmStateSize32 } = SNAPSHOT_ENTRY.read(from);
  const extra = new Uint8Array(16);
  const view = new DataView(extra.buffer);
  view.setBigUint64(0, BigInt(vmStateSize32));
  view.setBigUint64(8, BigInt(diskSize));
  if (extraSize >= 8) extra.set(entry.subarray(SNAPSHOT_ENTRY.size, SNAPSHOT_ENTRY.size + 8));
  const textAt = SNAPSHOT_ENTRY.size + extraSize;
  const result = new Uint8Array(alignUp(SNAPSHOT_ENTRY.size + extra.length + idLength + nameLength, 8));
  result.set(entry.subarray(0, SNAPSHOT_ENTRY.size));
  SNAPSHOT_ENTRY.write(new DataView(result.buffer), { extraSize: extra.length });
  result.set(extra, SNAPSHOT_ENTRY.size);
  result.set(entry.subarray(textAt, textAt + idLength + nameLength), SNAPSHOT_ENTRY.size + extra.length);
  return result;
}

/**
 * Splits the bytes of a snapshot table into its entries as they are, with whatever extra data and text they hold.
 *
 * @param tableOffset where the table is in the file: entries know their own place
 */
export function splitTable(bytes: Uint8Array, tableOffset: number, snapshots: readonly Qcow2Snapshot[]): Uint8Array[] {
  return snapshots.map(({ at }, i) =>
    bytes.subarray(at - tableOffset, (snapshots[i + 1]?.at ?? Infinity) - tableOffset),
  );
}

/** Refuses one entry more, of `length` bytes, where the table cannot take it. @throws {ImageError} TOO_LARGE */
export function admitEntry(table: SnapshotTable, length: number, path: string): void {
  const { snapshots, byteLength } = table;
  const full = snapshots.length >= MAX_SNAPSHOTS;
  if (!full && byteLength + length <= MAX_TABLE_BYTES) return;
  const why = full
    ? `the image has ${snapshots.length} snapshots, and there can be no more`
    : `the snapshot table would be larger than ${formatSize(MAX_TABLE_BYTES)}`;
  throw new ImageError('TOO_LARGE', why, {
    path,
    help: 'Delete one first. lunette snapshot export keeps it as an image of its own.',
  });
}

/** Joins entries into a table that fills whole clusters. */
export function joinTable(entries: readonly Uint8Array[], clusterSize: number): Uint8Array {
  const length = entries.reduce((sum, entry) => sum + entry.length, 0);
  const bytes = new Uint8Array(divideUp(length, clusterSize) * clusterSize);
  let at = 0;
  for (const entry of entries) {
    bytes.set(entry, at);
    at += entry.length;
  }
  return bytes;
}
