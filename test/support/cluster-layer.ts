import { type IoVec, IoVec as List } from '../../formats/core/iov.ts';
import { alignDown, alignUp } from '../../formats/core/units.ts';
import { ABSENT, DATA, type ExtentBuffer, OPAQUE, WRITABLE, ZERO } from '../../formats/image/extent.ts';
import type { Layer, LayerInfo, LayerLimits, Region, Reservation } from '../../formats/image/layer.ts';
import { LeaseBook } from '../../formats/image/lease.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';

/** What a cluster is: absent, zero, data at a host offset (shared ones are not writable), or bytes only the layer can produce. */
type Cluster =
  | { kind: typeof ABSENT | typeof ZERO }
  | { kind: typeof DATA; at: number; shared: boolean }
  | { kind: typeof OPAQUE; bytes: Uint8Array };

/**
 * The simplest layer that allocates: a map of clusters in memory, so that the mover can be tested without a format.
 * Every second tryMap of a cluster that was not asked for before says -1, so that both paths are walked.
 */
export class ClusterLayer implements Layer {
  readonly format = 'cluster';
  readonly readOnly: boolean;
  readonly storage: MemoryStorage;
  readonly parent = undefined;
  readonly leases = new LeaseBook();
  readonly limits: LayerLimits;
  readonly clusterSize: number;
  size: number;
  /** What happened, in words, for tests to assert on. */
  readonly log: string[] = [];
  /** Most clusters of one reservation. */
  reservationLimit = 3;
  /** zero() and release() say that they cannot. */
  metadataOnly = true;
  /** Makes the next call of that name fail. */
  failure: { call: string; error: Error } | undefined;
  readonly #clusters = new Map<number, Cluster>();
  readonly #known = new Set<number>();
  #end = 0;

  constructor(options: { size: number; clusterSize: number; readOnly?: boolean }) {
    this.size = options.size;
    this.clusterSize = options.clusterSize;
    this.readOnly = options.readOnly ?? false;
    this.storage = new MemoryStorage({ path: '/memory/cluster' });
    this.limits = { allocationUnit: this.clusterSize, zeroUnit: this.clusterSize, discardUnit: this.clusterSize };
  }

  /** Makes every data cluster one that must be copied before it is written, as after a snapshot. */
  share(): void {
    for (const cluster of this.#clusters.values()) if (cluster.kind === DATA) cluster.shared = true;
  }

  /** Turns a data cluster into an opaque one of the same bytes. */
  async conceal(index: number): Promise<void> {
    const cluster = this.#clusters.get(index);
    if (cluster?.kind !== DATA) return;
    const bytes = new Uint8Array(this.clusterSize);
    await this.storage.readv(cluster.at, List.of(bytes)); // zeros past the end of the file
    this.#clusters.set(index, { kind: OPAQUE, bytes });
  }

  tryMap(offset: number, length: number, out: ExtentBuffer): number {
    const first = Math.floor(offset / this.clusterSize);
    for (let i = first; i * this.clusterSize < offset + length; i++) {
      if (!this.#known.has(i)) return -1;
    }
    return this.#map(offset, length, out);
  }

  async map(offset: number, length: number, out: ExtentBuffer): Promise<number> {
    await this.#pause('map');
    for (let i = Math.floor(offset / this.clusterSize); i * this.clusterSize < offset + length; i++) this.#known.add(i);
    return this.#map(offset, length, out);
  }

  #map(offset: number, length: number, out: ExtentBuffer): number {
    out.begin(offset);
    for (let at = offset; at < offset + length; at = out.end) {
      const index = Math.floor(at / this.clusterSize);
      const take = Math.min((index + 1) * this.clusterSize, offset + length) - at;
      const cluster = this.#clusters.get(index) ?? { kind: ABSENT };
      const fits =
        cluster.kind === DATA
          ? out.append(DATA, take, this.storage, cluster.at + (at % this.clusterSize), cluster.shared ? 0 : WRITABLE)
          : out.append(cluster.kind, take, this.storage, index);
      if (!fits) break;
    }
    return out.count;
  }

  tryReadOpaque(): boolean {
    return false;
  }

  async readOpaque(extents: ExtentBuffer, index: number, offset: number, iov: IoVec): Promise<void> {
    const cluster = this.#clusters.get(extents.storageOffsets[index] as number);
    await this.#pause('readOpaque');
    if (cluster?.kind !== OPAQUE) throw new Error('not opaque');
    const at = offset % this.clusterSize;
    iov.copyIn(0, cluster.bytes.subarray(at, at + iov.byteLength));
  }

  async beginWrite(): Promise<void> {
    await this.#pause('beginWrite');
    this.log.push('beginWrite');
  }

  async reserve(offset: number, length: number): Promise<Reservation> {
    await this.#pause('reserve');
    const start = alignDown(offset, this.clusterSize);
    const end = Math.min(alignUp(offset + length, this.clusterSize), start + this.reservationLimit * this.clusterSize);
    this.log.push(`reserve ${start} ${end}`);
    const regions: Region[] = [];
    for (let at = start; at < end; at += this.clusterSize) {
      regions.push({
        storage: this.storage,
        storageOffset: this.#end,
        length: this.clusterSize,
        guestOffset: at,
        fill: 'current',
        fresh: true,
      });
      this.#end += this.clusterSize;
      // Now and then leave a gap, so that runs break.
      if ((at / this.clusterSize) % 5 === 4) this.#end += this.clusterSize;
    }
    return {
      end,
      regions,
      commit: async () => {
        await this.#pause('commit');
        for (const region of regions) {
          this.#clusters.set(region.guestOffset / this.clusterSize, {
            kind: DATA,
            at: region.storageOffset,
            shared: false,
          });
        }
        this.log.push(`commit ${start} ${end}`);
      },
      abort: async () => {
        this.log.push(`abort ${start} ${end}`);
      },
    };
  }

  async zero(offset: number, length: number): Promise<boolean> {
    return this.#set(offset, length, 'zero');
  }

  async release(offset: number, length: number): Promise<boolean> {
    return this.#set(offset, length, 'release');
  }

  async #set(offset: number, length: number, what: string): Promise<boolean> {
    await this.#pause(what);
    if (!this.metadataOnly) return false;
    if (offset % this.clusterSize !== 0) throw new Error(`${what} of an unaligned range`);
    if (length % this.clusterSize !== 0 && offset + length !== this.size)
      throw new Error(`${what} of an unaligned range`);
    for (let at = offset; at < offset + length; at += this.clusterSize) {
      this.#clusters.set(at / this.clusterSize, { kind: ZERO });
    }
    return true;
  }

  async resize(size: number): Promise<void> {
    this.size = size;
  }

  async flush(): Promise<void> {
    await this.#pause('flush');
    this.log.push('flush');
  }

  async close(): Promise<void> {
    this.log.push('close');
  }

  async describe(): Promise<LayerInfo> {
    return { format: this.format, virtualSize: this.size, dirty: false };
  }

  async #pause(call: string): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    if (this.failure?.call === call) {
      const { error } = this.failure;
      this.failure = undefined;
      throw error;
    }
  }
}
