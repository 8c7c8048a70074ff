import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { Struct, u16, u32, u64 } from '../core/struct.ts';
import { alignUp } from '../core/units.ts';
import type { SnapshotInfo } from '../image/layer.ts';
import type { Storage } from '../storage/storage.ts';
import { MAX_L1_BYTES, type Qcow2Header } from './header.ts';

/** Most bytes of a snapshot table. */
export const MAX_TABLE_BYTES = 64 * 1024 * 1024;
const MAX_EXTRA = 1024;
const READ_AHEAD = 64 * 1024;

/** The fixed part of a snapshot table entry. Specification: "Snapshots". */
export const SNAPSHOT_ENTRY = new Struct(
  'snapshot table entry',
  { size: 40, endian: 'big' },
  {
    l1TableOffset: u64(0),
    l1Size: u32(8),
    idLength: u16(12),
    nameLength: u16(14),
    dateSeconds: u32(16),
    dateNanoseconds: u32(20),
    vmClock: u64(24),
    vmStateSize32: u32(32),
    extraSize: u32(36),
  },
);

/** One internal snapshot. */
export interface Qcow2Snapshot extends SnapshotInfo {
  /** Where its entry is in the file, bytes. */
  readonly at: number;
  readonly l1TableOffset: number;
  /** Entries of its L1 table. */
  readonly l1Size: number;
  /** Extra data as it is in the table: later versions may know more of it. */
  readonly extra: Uint8Array;
}

export interface SnapshotTable {
  readonly offset: number;
  /** Bytes of all entries with their padding. */
  readonly byteLength: number;
  readonly snapshots: readonly Qcow2Snapshot[];
}

/**
 * Reads the snapshot table.
 *
 * @throws {ImageError} CORRUPT, TRUNCATED, TOO_LARGE with the entry's offset
 */
export async function readSnapshotTable(storage: Storage, header: Qcow2Header): Promise<SnapshotTable> {
  const snapshots: Qcow2Snapshot[] = [];
  const start = header.snapshotsOffset;
  const window = new Window(storage);
  let at = start;
  for (let index = 0; index < header.snapshotCount; index++) {
    const fixed = SNAPSHOT_ENTRY.read(await window.view(at, SNAPSHOT_ENTRY.size));
    if (fixed.extraSize > MAX_EXTRA) {
      fail('CORRUPT', 'extraSize', at + 36, `snapshot table entry ${index} has too much extra data`);
    }
    const size = SNAPSHOT_ENTRY.size + fixed.extraSize + fixed.idLength + fixed.nameLength;
    if (at - start + size > MAX_TABLE_BYTES) {
      fail('TOO_LARGE', 'snapshotsOffset', at, 'the snapshot table is larger than 64 MiB');
    }
    const view = await window.view(at, size);
    snapshots.push(decode(view, at, fixed));
    at += alignUp(size, 8);
  }
  return { offset: start, byteLength: at - start, snapshots };
}

function decode(view: DataView, at: number, fixed: ReturnType<typeof SNAPSHOT_ENTRY.read>): Qcow2Snapshot {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const idAt = SNAPSHOT_ENTRY.size + fixed.extraSize;
  const extra = bytes.slice(SNAPSHOT_ENTRY.size, idAt);
  const extraU64 = (offset: number): number | undefined => {
    if (extra.length < offset + 8) return undefined;
    const high = view.getUint32(SNAPSHOT_ENTRY.size + offset);
    return high * 0x100000000 + view.getUint32(SNAPSHOT_ENTRY.size + offset + 4);
  };
  const diskSize = extraU64(8);
  const icount = extraU64(16);
  return {
    at,
    l1TableOffset: fixed.l1TableOffset,
    l1Size: fixed.l1Size,
    extra,
    id: text(bytes.subarray(idAt, idAt + fixed.idLength)),
    name: text(bytes.subarray(idAt + fixed.idLength, idAt + fixed.idLength + fixed.nameLength)),
    vmStateSize: extraU64(0) ?? fixed.vmStateSize32,
    dateSeconds: fixed.dateSeconds,
    dateNanoseconds: fixed.dateNanoseconds,
    vmClockSeconds: Math.floor(fixed.vmClock / 1e9),
    vmClockNanoseconds: fixed.vmClock % 1e9,
    // All ones: the guest's clock did not count instructions.
    ...(icount !== undefined && icount < 2 ** 63 ? { icount } : {}),
    ...(diskSize !== undefined ? { diskSize } : {}),
  };
}

/** The snapshot that `reference` means: its id first, then its name. @throws {ImageError} NOT_FOUND */
export function findSnapshot(snapshots: readonly Qcow2Snapshot[], reference: string): Qcow2Snapshot {
  const found =
    snapshots.find((snapshot) => snapshot.id === reference) ??
    snapshots.find((snapshot) => snapshot.name === reference);
  if (found !== undefined) return found;
  const names = snapshots.slice(0, 10).map((snapshot) => `${snapshot.id} (${snapshot.name})`);
  throw new ImageError('NOT_FOUND', `there is no snapshot ${JSON.stringify(reference)}`, {
    help: names.length > 0 ? `Snapshots: ${names.join(', ')}` : 'The image has no internal snapshots.',
  });
}

/** Checks what is only looked at when a snapshot is used. @throws {ImageError} CORRUPT with the entry's offset */
export function checkSnapshotL1(snapshot: Qcow2Snapshot, clusterSize: number): void {
  if (snapshot.l1Size * 8 > MAX_L1_BYTES) {
    fail('CORRUPT', 'l1Size', snapshot.at + 8, `the L1 table of snapshot ${snapshot.id} is larger than 32 MiB`);
  }
  if (!Number.isSafeInteger(snapshot.l1TableOffset) || snapshot.l1TableOffset % clusterSize !== 0) {
    fail('CORRUPT', 'l1TableOffset', snapshot.at, `the L1 table of snapshot ${snapshot.id} is at no cluster boundary`);
  }
}

function fail(code: 'CORRUPT' | 'TOO_LARGE', field: string, offset: number, why: string): never {
  throw new ImageError(code, why, { field, offset });
}

function text(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf8');
}

/** Reads entry after entry with one buffer. */
class Window {
  readonly #storage: Storage;
  #start = 0;
  #bytes = new Uint8Array(0);

  constructor(storage: Storage) {
    this.#storage = storage;
  }

  async view(at: number, length: number): Promise<DataView> {
    const size = this.#storage.size;
    if (at + length > size) {
      throw new ImageError('TRUNCATED', 'the file ends inside the snapshot table', {
        field: 'snapshotsOffset',
        offset: at,
      });
    }
    if (at < this.#start || at + length > this.#start + this.#bytes.length) {
      this.#bytes = new Uint8Array(Math.min(Math.max(length, READ_AHEAD), size - at));
      this.#start = at;
      await this.#storage.readv(at, IoVec.of(this.#bytes));
    }
    return new DataView(this.#bytes.buffer, this.#bytes.byteOffset + at - this.#start, length);
  }
}
