import { IoVec } from '../core/iov.ts';
import type { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import type { BlockMap } from './block-map.ts';
import type { PhysicalBlocks } from './blocks.ts';
import type { Geometry } from './geometry.ts';
import { HEADER_V1 } from './header.ts';
import { IndexSet } from './inspect.ts';

const COPY_CHUNK = 1024 * 1024;
/** Blocks that are copied before the map is written. */
const MAX_ROUND = 4096;

export interface VdiParts {
  readonly storage: Storage;
  readonly geometry: Geometry;
  readonly map: BlockMap;
  readonly blocks: PhysicalBlocks;
  /** Readers that may be in flight. */
  readonly leases?: LeaseBook;
}

/**
 * Moves the last blocks of the file into the holes before them and cuts the file, so that the count in the header is again the number
 * of blocks in use. Nobody writes meanwhile. At each moment the file is a right image: a block is copied, durable,
 * before the map names its new place, and its old place is given up after that.
 *
 * @returns blocks that were moved
 */
export async function compact({ storage, geometry, map, blocks, leases }: VdiParts): Promise<number> {
  let moved = 0;
  for (;;) {
    await leases?.quiesced();
    const round = await planRound(map, blocks.next);
    // Free places get blocks from here on: if this fails half-way nobody may have them.
    if (round.moves.length > 0) blocks.reset(blocks.next);
    for (const move of round.moves) {
      await copyBytes(storage, geometry.startOf(move.from), geometry.startOf(move.to), geometry.stride);
    }
    if (round.moves.length > 0) {
      await storage.sync();
      for (const move of round.moves) await map.set(move.block, move.to);
      const copies = map.copies();
      await map.write(copies);
      await storage.sync();
      map.written(copies);
      moved += round.moves.length;
    }
    if (!round.complete) continue;
    await leases?.quiesced();
    blocks.reset(round.live);
    const count = new Uint8Array(4);
    new DataView(count.buffer).setUint32(0, round.live, true);
    await storage.writev(HEADER_V1.fields.cBlocksAllocated.at, IoVec.of(count));
    if (storage.growsZeroed) await storage.resize(geometry.endOf(round.live)); // a device keeps its size
    await storage.sync();
    return moved;
  }
}

interface Round {
  readonly moves: readonly { block: number; from: number; to: number }[];
  /** Blocks in use: what remains. */
  readonly live: number;
  /** False when there is more to move. */
  readonly complete: boolean;
}

async function planRound(map: BlockMap, next: number): Promise<Round> {
  let live = 0;
  await map.forEachAllocated(() => live++);
  const low = new IndexSet(live);
  const high: { block: number; from: number }[] = [];
  let complete = true;
  await map.forEachAllocated((block, index) => {
    if (index < live) low.add(index);
    else if (high.length < MAX_ROUND) high.push({ block, from: index });
    else complete = false;
  });
  let hole = 0;
  const moves = high.map(({ block, from }) => {
    while (low.has(hole)) hole++;
    return { block, from, to: hole++ };
  });
  return { moves, live: Math.min(live, next), complete };
}

/** Copies within a file. The ranges do not overlap. */
export async function copyBytes(storage: Storage, from: number, to: number, length: number): Promise<void> {
  const buffer = new Uint8Array(Math.min(length, COPY_CHUNK));
  for (let at = 0; at < length; at += buffer.length) {
    const list = IoVec.of(buffer, 0, Math.min(buffer.length, length - at));
    await storage.readv(from + at, list);
    await storage.writev(to + at, list);
  }
}
