import { codeOf, ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { divideUp } from '../core/units.ts';
import { setU32LE } from '../core/words.ts';
import type { ResizeOptions } from '../image/layer.ts';
import type { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import type { BlockMap } from './block-map.ts';
import type { PhysicalBlocks } from './blocks.ts';
import { compact, copyBytes } from './compact.ts';
import { Geometry } from './geometry.ts';
import { ENTRY_FREE, ENTRY_ZERO, HEADER_READ, HEADER_V1, MAX_BLOCKS, TYPE_FIXED, type VdiHeader } from './header.ts';
import { isNullUuid } from './uuid.ts';

interface ResizeParts {
  readonly storage: Storage;
  readonly header: VdiHeader;
  readonly map: BlockMap;
  readonly blocks: PhysicalBlocks;
  readonly leases: LeaseBook;
  /** The file has this header now. @returns the map that goes with it */
  readonly switched: (header: VdiHeader) => BlockMap;
  /** Nobody knows which header the file has: nothing more may be written. */
  readonly stop: () => void;
}

const MAP_CHUNK = 1024 * 1024;

/**
 * Changes the size of a disk whose map and count are flushed. No write is in flight; reads may be.
 *
 * The switch is one write of the header's sector: before it the file is the old image, after it the new one. A longer map that does
 * not fit where the old one is goes to the place of the first blocks, which move to the end before that.
 *
 * A grow that fails before the switch takes back what it has moved; afterwards the disk has its new size, whatever fails.
 */
export async function resizeVdi(
  parts: ResizeParts,
  size: number,
  options: ResizeOptions,
  flush: () => Promise<void>,
): Promise<void> {
  const { storage, blocks } = parts;
  const header = { ...parts.header, cBlocksAllocated: Math.min(blocks.next, parts.header.cBlocks) };
  if (size % 512 !== 0)
    throw new LunetteError('INVALID', `VDI disks are whole sectors: ${size} is no multiple of 512`, {
      path: storage.path,
    });
  const cBlocks = divideUp(size, header.cbBlock);
  if (cBlocks > MAX_BLOCKS) throw new LunetteError('TOO_LARGE', `a VDI image has at most ${MAX_BLOCKS} blocks`);
  if (size < header.size) return shrink(parts, size, cBlocks, options, flush);
  await checkTail(parts, size);
  let next = header;
  let gap = 0;
  const used = blocks.next;
  try {
    if (header.offBlocks + 4 * cBlocks > header.offData) ({ header: next, gap } = await moveMap(parts, cBlocks, flush));
    else await writeFree(storage, header, header.cBlocks, cBlocks);
    next = { ...next, cBlocks, cbDisk: size, size };
    if (header.type === TYPE_FIXED) next = await preallocate(parts, next, header.cBlocks, gap);
    await storage.sync();
  } catch (error) {
    // Where that fails too, places are lost until the image is opened again, no bytes.
    if (blocks.next !== used) await compact({ ...parts, geometry: new Geometry(header) }).catch(() => 0);
    throw error;
  }
  await switchTo(parts, next);
  blocks.relocate(gap, blocks.next - gap, cBlocks);
  const map = parts.switched(next);
  // After blocks have moved far out: back to one behind the other, in the new places.
  if (gap > 0) await compact({ ...parts, geometry: new Geometry(next), map });
}

/** Part of a block that no map entry says anything about would show the parent where the disk grows. */
async function checkTail({ storage, header, map }: ResizeParts, size: number): Promise<void> {
  if (header.size % header.cbBlock === 0 || size === header.size) return;
  if (isNullUuid(header.uuidLinkage)) return;
  if ((await map.get(header.cBlocks - 1)) !== ENTRY_FREE) return;
  throw new ImageError('UNSUPPORTED', 'a differencing image whose last block is its parent’s does not grow', {
    path: storage.path,
    help: 'Write to the end of the disk first, then it has that block itself',
  });
}

/** New entries: nothing there yet; over a parent, zeros, however long the parent is. */
async function writeFree(storage: Storage, header: VdiHeader, from: number, to: number): Promise<void> {
  const entry = isNullUuid(header.uuidLinkage) ? ENTRY_FREE : ENTRY_ZERO;
  const chunk = new Uint8Array(Math.min(MAP_CHUNK, 4 * (to - from)));
  for (let at = 0; at < chunk.length; at += 4) setU32LE(chunk, at, entry);
  for (let block = from; block < to; block += chunk.length / 4) {
    const entries = Math.min(chunk.length / 4, to - block);
    await storage.writev(header.offBlocks + 4 * block, IoVec.of(chunk, 0, 4 * entries));
  }
}

/** Makes room behind the old map by moving the first blocks to the end, and writes the longer map there. */
async function moveMap(
  parts: ResizeParts,
  cBlocks: number,
  flush: () => Promise<void>,
): Promise<{ header: VdiHeader; gap: number }> {
  const { storage, header, map, blocks } = parts;
  const geometry = new Geometry(header);
  const gap = divideUp(4 * cBlocks, geometry.stride);
  if (header.offData + gap * geometry.stride > 0xffffffff)
    throw new LunetteError('TOO_LARGE', 'the block map of that size does not fit', { path: storage.path });
  const first: { block: number; from: number }[] = [];
  await map.forEachAllocated((block, from) => {
    if (from < gap) first.push({ block, from });
  });
  // Behind all that another program, which believes the count in the header, would hand out if this ends here; and behind the
  // gap, so that no index becomes negative.
  const used = blocks.next;
  const end = Math.max(used, gap, 2 * header.cBlocks);
  blocks.next = end + first.length;
  try {
    for (const [i, { from }] of first.entries()) {
      await copyBytes(storage, geometry.startOf(from), geometry.startOf(end + i), geometry.stride);
    }
    for (const [i, { block }] of first.entries()) await map.set(block, end + i);
    await flush();
  } catch (error) {
    // The map in the file may name either place of a block: both hold it.
    for (const { block, from } of first) await map.set(block, from);
    blocks.next = used;
    throw error;
  }
  await parts.leases.quiesced();
  const moved: VdiHeader = {
    ...header,
    offBlocks: header.offData,
    offData: header.offData + gap * geometry.stride,
    cBlocksAllocated: Math.min(blocks.next - gap, cBlocks),
  };
  for (let block = 0; block < header.cBlocks; ) {
    const entries = Math.min(MAP_CHUNK / 4, header.cBlocks - block);
    const chunk = new Uint8Array(4 * entries);
    for (let i = 0; i < entries; i++) {
      const entry = await map.get(block + i);
      setU32LE(chunk, 4 * i, entry < ENTRY_ZERO ? entry - gap : entry);
    }
    await storage.writev(moved.offBlocks + 4 * block, IoVec.of(chunk));
    block += entries;
  }
  await writeFree(storage, moved, header.cBlocks, cBlocks);
  return { header: moved, gap };
}

/** A fixed image has all its blocks. @param gap by how much indexes will be lower than `blocks` says */
async function preallocate(parts: ResizeParts, header: VdiHeader, from: number, gap: number): Promise<VdiHeader> {
  const { storage, blocks } = parts;
  const chunk = new Uint8Array(4 * (header.cBlocks - from));
  for (let at = 0; at < chunk.length; at += 4) setU32LE(chunk, at, blocks.next++ - gap);
  if (chunk.length > 0) await storage.writev(header.offBlocks + 4 * from, IoVec.of(chunk));
  const end = new Geometry(header).endOf(blocks.next - gap);
  if (end > storage.size) await storage.resize(end);
  return { ...header, cBlocksAllocated: Math.min(blocks.next - gap, header.cBlocks) };
}

async function shrink(
  parts: ResizeParts,
  size: number,
  cBlocks: number,
  options: ResizeOptions,
  flush: () => Promise<void>,
): Promise<void> {
  const { storage, header, map, blocks, leases } = parts;
  if (!options.shrink) {
    throw new LunetteError('INVALID', `${size} bytes is less than the ${header.size} it has: that would cut data off`, {
      path: storage.path,
      help: 'Say --shrink if that is what you want',
    });
  }
  for (let block = cBlocks; block < header.cBlocks; block++) {
    if ((await map.get(block)) !== ENTRY_FREE) await map.set(block, ENTRY_FREE);
  }
  const geometry = new Geometry(header);
  // What is cut off must not come back when the disk grows again.
  const cut = size % header.cbBlock;
  const last = cut === 0 ? ENTRY_FREE : await map.get(cBlocks - 1);
  if (last < ENTRY_ZERO)
    await storage.writev(geometry.placeOf(last) + cut, IoVec.of(new Uint8Array(header.cbBlock - cut)));
  await flush();
  // The header counts no more blocks than the map has entries: the blocks that remain move together.
  await compact({ storage, geometry, map, blocks, leases });
  const next: VdiHeader = { ...header, cBlocks, cbDisk: size, size, cBlocksAllocated: blocks.next };
  await switchTo(parts, next);
  blocks.relocate(0, blocks.next, cBlocks);
  parts.switched(next);
}

/** One write of the first sector, and its sync. */
async function switchTo({ storage, stop }: ResizeParts, header: VdiHeader): Promise<void> {
  const sector = new Uint8Array(HEADER_READ);
  await storage.readv(0, IoVec.of(sector));
  HEADER_V1.write(new DataView(sector.buffer), {
    offBlocks: header.offBlocks,
    offData: header.offData,
    cbDisk: header.cbDisk,
    cBlocks: header.cBlocks,
    cBlocksAllocated: header.cBlocksAllocated,
  });
  try {
    await storage.writev(0, IoVec.of(sector));
    await storage.sync();
  } catch (error) {
    if (codeOf(error) !== 'NO_SPACE') stop(); // a full disk has written nothing
    throw error;
  }
}
