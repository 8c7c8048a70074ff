import { ImageError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp } from '../core/units.ts';
import { emptyCheckResult } from '../image/check.ts';
import type { Storage } from '../storage/storage.ts';
import { repairCopied } from './check-copied.ts';
import { CheckPages } from './check-pages.ts';
import { readSubject } from './check-subject.ts';
import { CheckWalk, forEachPass } from './check-walk.ts';
import { type Geometry, makeGeometry } from './geometry.ts';
import { HEADER_V2, HEADER_V3, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES } from './header.ts';
import { HeaderSector } from './header-sector.ts';
import { setU32 } from './l2.ts';
import { getRefcount, setRefcount } from './refcount-codec.ts';
import { zeroFill } from './zero-fill.ts';

const SLICE = 4096;

export interface RepairPlan {
  readonly repair: 'leaks' | 'all';
  /** The refcount structures have to be made anew. */
  readonly rebuild: boolean;
  /** L2 tables, by cluster, and the active L1 table that lie on something else: not written. */
  readonly overlapped: ReadonlySet<number>;
  readonly l1Overlapped: boolean;
  /** Bytes of counters in one pass over the image. */
  readonly counterBytes: number | undefined;
}

/**
 * Brings refcounts and COPIED flags in line with what refers to clusters.
 *
 * At no time does the file say COPIED of a cluster whose refcount this made unequal to one, or a refcount that is lower than before
 * where there are more references.
 */
export async function repairQcow2(storage: Storage, plan: RepairPlan): Promise<void> {
  if (plan.repair === 'all') {
    if (!plan.rebuild) await walkOnce(storage, plan, true, (walk) => correctRefcounts(walk, 'raise'));
    await walkOnce(storage, plan, !plan.rebuild, (walk) => repairCopied(walk, plan, 'clear'));
  }
  if (plan.rebuild) await rebuildRefcounts(storage, plan);
  else await walkOnce(storage, plan, true, (walk) => correctRefcounts(walk, 'lower'));
  await walkOnce(storage, plan, true, (walk) => repairCopied(walk, plan, 'set'));
}

/** Counts all references, acts on them pass by pass, and syncs. */
async function walkOnce(
  storage: Storage,
  plan: RepairPlan,
  withRefcounts: boolean,
  act: (walk: CheckWalk) => Promise<void>,
): Promise<CheckWalk> {
  const unread = emptyCheckResult();
  const walk = new CheckWalk(await readSubject(storage, unread), new CheckPages(plan.counterBytes), unread);
  await forEachPass(walk, withRefcounts, () => act(walk));
  // What could be read a moment ago cannot be now: counts are not what they must be.
  if (unread.checkErrors > 0) throw new ImageError('IO', 'metadata became unreadable during the repair');
  await storage.sync();
  return walk;
}

async function correctRefcounts(walk: CheckWalk, direction: 'raise' | 'lower'): Promise<void> {
  const { storage, header, refcountTable } = walk.subject;
  const { refcountMax } = header.geometry;
  const writer = new RefcountWriter(header.geometry, storage, (block) => Math.max(0, refcountTable.target(block)));
  for (const page of walk.pages.all()) {
    for (let i = 0; i < page.length; i++) {
      const refcount = page.refcount(i);
      const references = Math.min(page.references(i), refcountMax);
      if (direction === 'raise' ? refcount >= references : refcount <= references) continue;
      await writer.set(page.first + i, references);
    }
  }
  await writer.flush();
}

/** Writes refcounts into blocks, slice by slice. */
class RefcountWriter {
  readonly #storage: Storage;
  readonly #blockAt: (index: number) => number;
  readonly #order: number;
  readonly #perBlock: number;
  readonly #perSlice: number;
  readonly #bytes: Uint8Array;
  #at = -1;

  /** @param blockAt where a block is; 0 for none: what it would count is left out */
  constructor(geometry: Geometry, storage: Storage, blockAt: (index: number) => number) {
    this.#storage = storage;
    this.#blockAt = blockAt;
    this.#order = geometry.refcountOrder;
    this.#perBlock = geometry.refcountsPerBlock;
    this.#bytes = new Uint8Array(Math.min(SLICE, geometry.clusterSize));
    this.#perSlice = (this.#bytes.length * 8) / geometry.refcountBits;
  }

  async set(cluster: number, refcount: number): Promise<void> {
    const block = Math.floor(cluster / this.#perBlock);
    const offset = this.#blockAt(block);
    if (offset === 0) return;
    const index = cluster - block * this.#perBlock;
    const at = offset + Math.floor(index / this.#perSlice) * this.#bytes.length;
    if (at !== this.#at) {
      await this.flush();
      this.#bytes.fill(0);
      const inFile = Math.min(this.#bytes.length, this.#storage.size - at);
      if (inFile > 0) await this.#storage.readv(at, IoVec.of(this.#bytes, 0, inFile));
      this.#at = at;
    }
    if (getRefcount(this.#bytes, this.#order, index % this.#perSlice) !== refcount)
      setRefcount(this.#bytes, this.#order, index % this.#perSlice, refcount);
  }

  async flush(): Promise<void> {
    if (this.#at >= 0) await this.#storage.writev(this.#at, IoVec.of(this.#bytes));
    this.#at = -1;
  }
}

/**
 * Gives a clean image refcounts of another width: new blocks and a new table, and the width with them, by one write of the header.
 *
 * @throws {ImageError} TOO_LARGE when there are more references to a cluster than the new width counts; nothing has changed then
 */
export async function rewidenRefcounts(storage: Storage, refcountOrder: number): Promise<void> {
  const none: ReadonlySet<number> = new Set();
  const plan = {
    repair: 'all',
    rebuild: true,
    overlapped: none,
    l1Overlapped: false,
    counterBytes: undefined,
  } as const;
  await rebuildRefcounts(storage, plan, refcountOrder);
}

function rewidened(walk: CheckWalk, refcountOrder: number | undefined): Geometry {
  const { header } = walk.subject;
  const { geometry } = header;
  if (refcountOrder === undefined) return geometry;
  const { version, extendedL2 } = geometry;
  return makeGeometry({ version, clusterBits: header.clusterBits, refcountOrder, extendedL2 });
}

/** New blocks and a new table behind everything, linked by one write of the header. The old ones are free then. */
async function rebuildRefcounts(storage: Storage, plan: RepairPlan, refcountOrder?: number): Promise<void> {
  const blocks = new Set<number>();
  const walk = await walkOnce(storage, plan, false, async (now) => {
    const { refcountsPerBlock, refcountMax, refcountBits } = rewidened(now, refcountOrder);
    for (const page of now.pages.all()) {
      for (let i = 0; i < page.length; i++) {
        if (refcountOrder !== undefined && page.references(i) > refcountMax) {
          const why = `a cluster has ${page.references(i)} references, which refcounts of ${refcountBits} bits cannot count`;
          throw new ImageError('TOO_LARGE', why, {
            path: storage.path,
            offset: (page.first + i) * now.subject.header.geometry.clusterSize,
          });
        }
        if (page.references(i) > 0) blocks.add(Math.floor((page.first + i) / refcountsPerBlock));
      }
    }
  });
  const geometry = rewidened(walk, refcountOrder);
  const { clusterSize, refcountMax, refcountsPerBlock } = geometry;
  // Not where a damaged L1 table says that it goes on: it would take the new structures for its entries.
  const near = walk.fileClusters * clusterSize + 2 * MAX_L1_BYTES;
  let start = walk.fileClusters + 1;
  for (const { offset, entries } of walk.subject.l1Tables) {
    const tableEnd = offset + entries * 8;
    if (tableEnd <= near) start = Math.max(start, divideUp(tableEnd, clusterSize));
  }
  // The new structures count themselves, which may take more of them.
  let tableClusters = 0;
  for (let size = -1; size !== tableClusters + blocks.size; ) {
    size = tableClusters + blocks.size;
    const last = Math.floor((start + size) / refcountsPerBlock);
    for (let block = Math.floor(start / refcountsPerBlock); block <= last; block++) blocks.add(block);
    tableClusters = divideUp((largest(blocks) + 1) * 8, clusterSize);
  }
  const end = start + tableClusters + blocks.size;
  if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES || !Number.isSafeInteger(end * clusterSize)) {
    throw new ImageError('TOO_LARGE', 'the file is too large for new refcounts', { path: storage.path });
  }
  const places = new Map<number, number>();
  for (const block of [...blocks].sort((a, b) => a - b)) {
    places.set(block, (start + tableClusters + places.size) * clusterSize);
  }
  await zeroFill(storage, start * clusterSize, (end - start) * clusterSize);

  await walkOnce(storage, plan, false, async (now) => {
    // The file has grown: what lies behind its former end is counted below.
    const writer = new RefcountWriter(geometry, storage, (block) => places.get(block) ?? 0);
    for (const page of now.pages.all()) {
      for (let i = 0; i < page.length; i++) {
        const references = page.references(i);
        if (references > 0) await writer.set(page.first + i, Math.min(references, refcountMax));
      }
    }
    await writer.flush();
  });
  const writer = new RefcountWriter(geometry, storage, (block) => places.get(block) ?? 0);
  for (let cluster = start; cluster < end; cluster++) await writer.set(cluster, 1);
  await writer.flush();
  const table = new Uint8Array(tableClusters * clusterSize);
  for (const [block, offset] of places) {
    setU32(table, block * 8, Math.floor(offset / 0x100000000));
    setU32(table, block * 8 + 4, offset % 0x100000000);
  }
  await storage.writev(start * clusterSize, IoVec.of(table));
  await storage.sync();
  const sector = await HeaderSector.load(storage);
  await sector.update((view) => {
    HEADER_V2.write(view, { refcountTableOffset: start * clusterSize, refcountTableClusters: tableClusters });
    if (refcountOrder !== undefined) HEADER_V3.write(view, { refcountOrder });
  });
  await storage.sync();
}

/** Of a set that is not empty: the header's cluster is always in use. */
function largest(blocks: ReadonlySet<number>): number {
  let last = 0;
  for (const block of blocks) last = Math.max(last, block);
  return last;
}
