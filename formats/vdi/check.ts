import type { BlockCache } from '../cache/cache.ts';
import { IoVec } from '../core/iov.ts';
import { type CheckOptions, type CheckResult, emptyCheckResult, report } from '../image/check.ts';
import type { Storage } from '../storage/storage.ts';
import { BlockMap } from './block-map.ts';
import { PhysicalBlocks } from './blocks.ts';
import { compact, copyBytes } from './compact.ts';
import { readHeader } from './create.ts';
import { Geometry } from './geometry.ts';
import { ENTRY_FREE, HEADER_V1, type VdiHeader } from './header.ts';
import { IndexSet, indexLimit, isCountLow } from './inspect.ts';

/** Wrong entries that one round of repair mends: bounds its memory, not what it can do. */
const MAX_ROUND = 65536;

/** A map entry that is wrong. */
interface Fault {
  readonly block: number;
  readonly index: number;
  readonly kind: 'outside' | 'shared';
}

interface Findings {
  readonly faults: Fault[];
  /** All of them: the list may end earlier. */
  readonly faultCount: number;
  /** Distinct places in use, and the index behind the last. */
  readonly used: IndexSet;
  readonly next: number;
  readonly allocated: number;
  readonly fragmented: number;
}

/**
 * Checks the block map and the count in the header, and mends them.
 *
 * Repair: an entry outside the file becomes free (there is nothing to save); of blocks that share a place all but the first get a
 * copy of its own, so that none changes what it reads; leaked places go, as the file is cut.
 *
 * @param storage nobody else has it open; writable when something is to be repaired
 */
export async function checkVdi(storage: Storage, options: CheckOptions & { cache: BlockCache }): Promise<CheckResult> {
  const header = await readHeader(storage);
  const repair = options.repair ?? 'none';
  const result = emptyCheckResult();
  const map = new BlockMap(storage, { offset: header.offBlocks, count: header.cBlocks }, options.cache);
  try {
    const geometry = new Geometry(header);
    let found = await examine(header, geometry, map, storage.size, result);
    result.totalClusters = header.cBlocks;
    result.allocatedClusters = found.allocated;
    result.fragmentedClusters = found.fragmented;
    const lowCount = isCountLow(header, found.next);
    if (lowCount) {
      report(
        result,
        `the header counts ${header.cBlocksAllocated} blocks in use, but index ${found.next - 1} is: another program would hand out used blocks`,
      );
    }
    const leaks = Math.max(header.cBlocksAllocated, found.next) - found.used.size;
    if (leaks > 0) report(result, `${leaks} blocks of the file are in no entry of the block map`);
    const corruptions = found.faultCount + (lowCount ? 1 : 0);
    const mends = repair !== 'none' && (repair === 'all' || corruptions === 0);
    if (mends && header.version === 0 && corruptions + leaks > 0)
      report(result, 'images of version 0 are not repaired: convert it');
    if (mends && header.version !== 0 && corruptions + leaks > 0) {
      const blocks = new PhysicalBlocks(Math.max(found.next, header.cBlocksAllocated), [], header.cBlocks);
      while (found.faultCount > 0) {
        await mend(storage, geometry, map, blocks, found);
        found = await examine(header, geometry, map, storage.size, undefined);
      }
      await compact({ storage, geometry, map, blocks });
      result.corruptionsFixed = corruptions;
      result.leaksFixed = leaks;
      result.imageEndOffset = geometry.endOf(blocks.next);
    } else {
      result.corruptions = corruptions;
      result.leaks = leaks;
      result.imageEndOffset = geometry.endOf(found.next);
    }
    return result;
  } finally {
    map.release();
  }
}

async function examine(
  header: VdiHeader,
  geometry: Geometry,
  map: BlockMap,
  fileSize: number,
  result: CheckResult | undefined,
): Promise<Findings> {
  const used = new IndexSet(indexLimit(header));
  const faults: Fault[] = [];
  let faultCount = 0;
  let next = 0;
  let allocated = 0;
  let fragmented = 0;
  let expected = -1;
  await map.forEachAllocated((block, index) => {
    allocated++;
    let kind: Fault['kind'] | undefined;
    if (index >= indexLimit(header) || !geometry.isInside(block, index, fileSize)) kind = 'outside';
    else if (!used.add(index)) kind = 'shared';
    if (kind === undefined) {
      if (expected >= 0 && index !== expected) fragmented++;
      expected = index + 1;
      next = Math.max(next, index + 1);
      return;
    }
    faultCount++;
    if (faults.length < MAX_ROUND) faults.push({ block, index, kind });
    if (result !== undefined) {
      report(
        result,
        kind === 'outside'
          ? `block ${block} is at index ${index}, which is past the end of the file`
          : `block ${block} shares index ${index} with another block`,
      );
    }
  });
  return { faults, faultCount, used, next, allocated, fragmented };
}

/** Copies first, durable; then the entries. */
async function mend(
  storage: Storage,
  geometry: Geometry,
  map: BlockMap,
  blocks: PhysicalBlocks,
  { faults, used }: Findings,
): Promise<void> {
  let hole = 0;
  const entries: { block: number; entry: number }[] = [];
  for (const { block, index, kind } of faults) {
    let entry = ENTRY_FREE;
    if (kind === 'shared') {
      // There is one: no two blocks need more places than the map has entries.
      while (used.has(hole)) hole++;
      entry = hole++;
      blocks.next = Math.max(blocks.next, hole);
      await copyBytes(storage, geometry.startOf(index), geometry.startOf(entry), geometry.stride);
    }
    entries.push({ block, entry });
  }
  const count = new Uint8Array(4);
  new DataView(count.buffer).setUint32(0, Math.min(blocks.next, map.count), true);
  await storage.writev(HEADER_V1.fields.cBlocksAllocated.at, IoVec.of(count));
  await storage.sync();
  for (const { block, entry } of entries) await map.set(block, entry);
  const copies = map.copies();
  await map.write(copies);
  await storage.sync();
  map.written(copies);
}
