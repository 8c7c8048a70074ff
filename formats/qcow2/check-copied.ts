import { IoVec } from '../core/iov.ts';
import type { CheckWalk } from './check-walk.ts';
import { COMPRESSED_BIT, COPIED, getU32, hostOffset, setU32 } from './l2.ts';
import { readBytes } from './refcount.ts';

const SECTOR = 512;

/**
 * Corrects COPIED in the active tables, for clusters of this pass: taken away where there is not exactly one reference, or
 * given where both references and refcount are one. Tables that lie on something else are left alone: their bytes may be another thing's.
 */
export async function repairCopied(
  walk: CheckWalk,
  plan: { readonly overlapped: ReadonlySet<number>; readonly l1Overlapped: boolean },
  what: 'clear' | 'set',
): Promise<void> {
  const { storage, header, l1Tables } = walk.subject;
  const { clusterSize, entrySize } = header.geometry;
  const inFile = walk.fileClusters * clusterSize;

  const flags = (cluster: number, copied: boolean): boolean => {
    if (!(cluster < walk.fileClusters)) return what === 'clear' ? false : copied;
    const page = walk.pages.page(cluster);
    if (page === undefined) return copied;
    const alone = page.references(cluster - page.first) === 1;
    if (what === 'clear') return copied && alone;
    return copied || (alone && page.refcount(cluster - page.first) === 1);
  };

  const active = l1Tables[0] as (typeof l1Tables)[number];
  if (!plan.l1Overlapped) {
    const length = Math.max(0, Math.min(active.entries * 8, storage.size - active.offset));
    const bytes = await readBytes(storage, active.offset, length);
    const writes = new SectorWrites(bytes);
    for (let at = 0; at + 8 <= length; at += 8) {
      const high = getU32(bytes, at);
      const target = hostOffset(high, getU32(bytes, at + 4));
      if (target === 0 || target % clusterSize !== 0) continue;
      writes.copied(at, high, flags(target / clusterSize, (high & COPIED) !== 0));
    }
    await writes.write(storage, active.offset);
  }

  for (const table of walk.tables.clusters()) {
    if (walk.tables.active(table) === 0 || plan.overlapped.has(table)) continue;
    const offset = table * clusterSize;
    const bytes = await readBytes(storage, offset, Math.min(clusterSize, storage.size - offset));
    const writes = new SectorWrites(bytes);
    for (let at = 0; at + entrySize <= bytes.length; at += entrySize) {
      const high = getU32(bytes, at);
      const copied = (high & COPIED) !== 0;
      if ((high & COMPRESSED_BIT) !== 0) {
        if (what === 'clear') writes.copied(at, high, false);
        continue;
      }
      const target = hostOffset(high, getU32(bytes, at + 4));
      if (walk.external) {
        // Not counted: data in another file has one owner.
        if (what === 'set' && target !== 0) writes.copied(at, high, true);
      } else if (target !== 0 && target % clusterSize === 0) {
        writes.copied(at, high, target < inFile ? flags(target / clusterSize, copied) : copied && what === 'set');
      }
    }
    await writes.write(storage, offset);
  }
}

/** Changes to a table, written by the sectors that they are in. */
class SectorWrites {
  readonly #bytes: Uint8Array;
  #first = Number.POSITIVE_INFINITY;
  #last = -1;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  copied(at: number, high: number, copied: boolean): void {
    const wanted = (copied ? high | COPIED : high & ~COPIED) >>> 0;
    if (wanted === high) return;
    setU32(this.#bytes, at, wanted);
    this.#first = Math.min(this.#first, at);
    this.#last = Math.max(this.#last, at);
  }

  async write(storage: CheckWalk['subject']['storage'], offset: number): Promise<void> {
    if (this.#last < 0) return;
    const start = this.#first - (this.#first % SECTOR);
    const end = Math.min(this.#bytes.length, this.#last - (this.#last % SECTOR) + SECTOR);
    await storage.writev(offset + start, IoVec.of(this.#bytes, start, end - start));
  }
}
