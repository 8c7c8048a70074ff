import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';
import { HEADER_V2, MAX_L1_BYTES, type Qcow2Header } from './header.ts';
import type { PointerTable } from './pointer-table.ts';
import type { SliceCache } from './slices.ts';
import { type Qcow2Snapshot, readSnapshotTable } from './snapshot.ts';

const SECTOR = 512;

/** Where an L1 table is. */
interface Place {
  readonly offset: number;
  readonly entries: number;
}

/** Reads the tables of an image anew that another program writes to: what is in memory may be of before. */
export class Renewal {
  readonly #storage: Storage;
  readonly #header: Qcow2Header;
  readonly #snapshot: Qcow2Snapshot | undefined;
  readonly #l1: PointerTable;
  readonly #slices: SliceCache;
  /** The snapshot table in which the snapshot was found last. */
  #snapshotsOffset: number;
  #snapshotCount: number;

  /** @param parts.snapshot undefined for the live disk */
  constructor(parts: {
    readonly storage: Storage;
    readonly header: Qcow2Header;
    readonly snapshot: Qcow2Snapshot | undefined;
    readonly l1: PointerTable;
    readonly slices: SliceCache;
  }) {
    this.#storage = parts.storage;
    this.#header = parts.header;
    this.#snapshot = parts.snapshot;
    this.#l1 = parts.l1;
    this.#slices = parts.slices;
    this.#snapshotsOffset = parts.header.snapshotsOffset;
    this.#snapshotCount = parts.header.snapshotCount;
  }

  /** As Layer.renew. */
  async renew(offset: number, length: number): Promise<void> {
    await this.#storage.lock('shared'); // the file may be longer by now
    const place = await this.#place();
    this.#slices.forgetAll();
    const { l2Coverage } = this.#header.geometry;
    await this.#l1.reload(
      this.#storage,
      place,
      Math.floor(offset / l2Coverage),
      Math.ceil((offset + length) / l2Coverage),
    );
  }

  async #place(): Promise<Place> {
    const bytes = new Uint8Array(SECTOR);
    await this.#storage.readv(0, IoVec.of(bytes, 0, Math.min(SECTOR, this.#storage.size)));
    const now = HEADER_V2.read(new DataView(bytes.buffer));
    const { clusterSize } = this.#header.geometry;
    if (2 ** now.clusterBits !== clusterSize) throw this.#changed('the image is another one by now');
    const { snapshotsOffset, snapshotCount } = now;
    if (this.#snapshot !== undefined) return this.#snapshotPlace(this.#snapshot, snapshotsOffset, snapshotCount);
    if (now.l1TableOffset % clusterSize !== 0 || now.l1Size * 8 > MAX_L1_BYTES) {
      throw new ImageError('CORRUPT', 'the L1 table is at no cluster boundary, or too large', {
        path: this.#storage.path,
        field: 'l1TableOffset',
        offset: 40,
      });
    }
    return { offset: now.l1TableOffset, entries: now.l1Size };
  }

  /** The tables of a snapshot do not change, as long as there is that snapshot. */
  async #snapshotPlace(snapshot: Qcow2Snapshot, snapshotsOffset: number, snapshotCount: number): Promise<Place> {
    const { id, l1TableOffset: offset, l1Size: entries, dateSeconds, dateNanoseconds } = snapshot;
    if (snapshotsOffset !== this.#snapshotsOffset || snapshotCount !== this.#snapshotCount) {
      const { snapshots } = await readSnapshotTable(this.#storage, { ...this.#header, snapshotsOffset, snapshotCount });
      const same = snapshots.some(
        (each) =>
          each.id === id &&
          each.l1TableOffset === offset &&
          each.dateSeconds === dateSeconds &&
          each.dateNanoseconds === dateNanoseconds,
      );
      if (!same) throw this.#changed(`snapshot ${id} was deleted while it was read`);
      this.#snapshotsOffset = snapshotsOffset;
      this.#snapshotCount = snapshotCount;
    }
    return { offset, entries };
  }

  #changed(why: string): ImageError {
    return new ImageError('LOCKED', why, { path: this.#storage.path });
  }
}
