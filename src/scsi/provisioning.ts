import { IoVec } from '../../formats/core/iov.ts';
import { alignDown, alignUp } from '../../formats/core/units.ts';
import { ABSENT, DATA, ExtentBuffer, ZERO } from '../../formats/image/extent.ts';
import { read16, read32, read64, write32, write64 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { limitsOf } from './limits.ts';
import { checkRange, refuseProtection } from './read-write.ts';
import {
  CheckCondition,
  invalidField,
  invalidParameter,
  LBA_OUT_OF_RANGE,
  PARAMETER_LIST_LENGTH_ERROR,
} from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

const HEADER = 8;
const DESCRIPTOR = 16;

interface BlockRange {
  lba: number;
  blocks: number;
}

/** UNMAP (SBC-3 section 5.25). */
export function unmap(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  if (((cdb[1] as number) & 0x01) !== 0) throw invalidField(1, 0); // ANCHOR
  const length = read16(cdb, 7);
  if (length === 0) return undefined;
  if (length < HEADER || task.dataOut.byteLength < length) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  task.transferLength = length;
  const ranges = parseRanges(unit, task.dataOut.contiguous().subarray(0, length));
  return ranges.length === 0 ? undefined : unmapRanges(unit, task, ranges);
}

/** All descriptors are judged before the first is acted upon. Those of blocks that follow each other become one range: an initiator may name each. */
function parseRanges(unit: LogicalUnit, list: Uint8Array): BlockRange[] {
  const limits = limitsOf(unit);
  // A list that says more than there is counts as far as it goes; a descriptor that is cut does not count.
  const bytes = Math.min(read16(list, 2), list.length - HEADER);
  const count = Math.floor(bytes / DESCRIPTOR);
  if (count > limits.unmapDescriptors) throw invalidParameter(2);
  const ranges: BlockRange[] = [];
  let total = 0;
  for (let i = 0; i < count; i++) {
    const at = HEADER + i * DESCRIPTOR;
    const lba = read64(list, at);
    const blocks = read32(list, at + 8);
    if (lba >= unit.blocks || blocks > unit.blocks - lba) {
      // No blocks right behind the last one is an empty range, not one outside.
      if (lba !== unit.blocks || blocks !== 0) throw new CheckCondition(LBA_OUT_OF_RANGE, { information: lba });
    }
    total += blocks;
    if (total > limits.unmap) throw invalidParameter(at + 8);
    const last = ranges.at(-1);
    if (last !== undefined && last.lba + last.blocks === lba) last.blocks += blocks;
    else if (blocks > 0) ranges.push({ lba, blocks });
  }
  return ranges;
}

async function unmapRanges(unit: LogicalUnit, task: ScsiTask, ranges: BlockRange[]): Promise<void> {
  for (const { lba, blocks } of ranges) {
    if (task.aborted) return;
    await giveBack(unit, lba * unit.blockSize, blocks * unit.blockSize);
  }
  if (unit.writeThrough) await unit.image.flush();
}

/**
 * Discards a range. LBPRZ says that unmapped blocks read as zeros, and initiators believe it of everything they unmap: so the parts of
 * units at both ends, which a discard leaves alone, are zeroed where the top layer holds data in place, and so is all of it where the file
 * system cannot discard. Other parts keep what they show: zeroing them would need space, and an UNMAP must not.
 */
async function giveBack(unit: LogicalUnit, offset: number, length: number): Promise<void> {
  const { image } = unit;
  const grain = image.limits.discardUnit;
  const end = offset + length;
  const first = alignUp(offset, grain);
  const last = end === image.size ? end : alignDown(end, grain);
  const done = first < last && (await image.discard(first, last - first));
  if (!done) return zeroInPlace(unit, offset, end);
  await zeroInPlace(unit, offset, first);
  await zeroInPlace(unit, last, end);
}

async function zeroInPlace(unit: LogicalUnit, from: number, end: number): Promise<void> {
  const extents = new ExtentBuffer();
  for (let at = from; at < end; at = extents.end) {
    await unit.image.map(at, end - at, extents);
    if (extents.end <= at) return;
    for (let i = 0; i < extents.count; i++) {
      if (extents.kinds[i] !== DATA || extents.depths[i] !== 0) continue;
      const start = Math.max(from, extents.offsets[i] as number);
      const stop = Math.min(end, (extents.offsets[i] as number) + (extents.lengths[i] as number));
      if (start < stop) await unit.image.writeZeroes(start, stop - start, false);
    }
  }
}

const ANCHOR = 0x10;
const UNMAP = 0x08;
const NDOB = 0x01;

/** Blocks that WRITE SAME takes from the initiator. */
export function writeSameBlocksOut(cdb: Uint8Array): number {
  return cdb[0] === 0x93 && ((cdb[1] as number) & NDOB) !== 0 ? 0 : 1;
}

export function writeSame10(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  if (((cdb[1] as number) & 0x07) !== 0) throw invalidField(1, 2); // PBDATA, LBDATA: obsolete
  return writeSame(unit, task, read32(cdb, 2), read16(cdb, 7));
}

export function writeSame16(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  if (((cdb[1] as number) & 0x06) !== 0) throw invalidField(1, 2);
  return writeSame(unit, task, read64(cdb, 2), read32(cdb, 10));
}

function writeSame(unit: LogicalUnit, task: ScsiTask, lba: number, blocks: number): Outcome {
  const { cdb } = task;
  const { blockSize } = unit;
  const flags = cdb[1] as number;
  refuseProtection(cdb);
  const unmapping = (flags & UNMAP) !== 0;
  if ((flags & ANCHOR) !== 0) throw invalidField(1, 4);
  if (unmapping && !unit.thin) throw invalidField(1, 3);
  checkRange(unit, lba, blocks);
  // 0 would mean "up to the last block": WSNZ says that this is refused.
  if (blocks === 0 || blocks > limitsOf(unit).writeSame) throw invalidField(cdb[0] === 0x41 ? 7 : 10);

  let pattern: Uint8Array | undefined;
  if (writeSameBlocksOut(cdb) === 1) {
    task.transferLength = blockSize;
    // More or less than one block is not what the initiator means.
    if (task.expectedLength !== blockSize || task.dataOut.byteLength !== blockSize)
      throw invalidField(cdb[0] === 0x41 ? 7 : 10);
    pattern = new Uint8Array(blockSize);
    task.dataOut.copyOut(0, pattern);
    if (pattern.every((byte) => byte === 0)) pattern = undefined;
  }
  return fillRange(unit, task, lba * blockSize, blocks * blockSize, pattern, unmapping);
}

/** Patterns other than zeros are written in pieces of this size. */
const CHUNK = 1024 * 1024;

async function fillRange(
  unit: LogicalUnit,
  task: ScsiTask,
  offset: number,
  length: number,
  pattern: Uint8Array | undefined,
  unmapping: boolean,
): Promise<void> {
  const { image } = unit;
  if (pattern === undefined) {
    await image.writeZeroes(offset, length, unmapping);
  } else {
    const memory = new Uint8Array(Math.min(length, CHUNK));
    for (let at = 0; at < memory.length; at += pattern.length) memory.set(pattern, at);
    for (let at = 0; at < length && !task.aborted; at += memory.length)
      await image.writev(offset + at, IoVec.of(memory, 0, Math.min(memory.length, length - at)));
  }
  if (unit.writeThrough) await image.flush();
}

/** Descriptors that one GET LBA STATUS returns at most. */
const MAX_STATUS_DESCRIPTORS = 256;
/** Extents that one GET LBA STATUS looks at: bounds the work where many extents make few descriptors. */
const MAX_MAP_CALLS = 64;
const MAPPED = 0;
const DEALLOCATED = 1;

/** GET LBA STATUS (SBC-3 section 5.6), from the image's map. */
export function getLbaStatus(unit: LogicalUnit, task: ScsiTask): Outcome {
  const lba = read64(task.cdb, 2);
  if (lba >= unit.blocks) throw new CheckCondition(LBA_OUT_OF_RANGE, { information: lba });
  return reportStatus(unit, task, lba, read32(task.cdb, 10));
}

async function reportStatus(unit: LogicalUnit, task: ScsiTask, lba: number, allocationLength: number): Promise<void> {
  const room = Math.max(1, Math.floor((allocationLength - HEADER) / DESCRIPTOR));
  const runs = await provisioningRuns(unit, lba, Math.min(room, MAX_STATUS_DESCRIPTORS));
  const data = new Uint8Array(HEADER + runs.length * DESCRIPTOR);
  write32(data, 0, data.length - 4);
  let at = lba;
  runs.forEach((run, index) => {
    write64(data, HEADER + index * DESCRIPTOR, at);
    write32(data, HEADER + index * DESCRIPTOR + 8, run.blocks);
    data[HEADER + index * DESCRIPTOR + 12] = run.status;
    at += run.blocks;
  });
  respond(task, data, allocationLength);
}

interface Run {
  blocks: number;
  status: number;
}

/** Consecutive runs of blocks from `lba` on; a block is deallocated when all of it reads as zeros by the map. */
async function provisioningRuns(unit: LogicalUnit, lba: number, capacity: number): Promise<Run[]> {
  const { image, blockSize } = unit;
  const end = unit.blocks * blockSize;
  const runs: Run[] = [];
  const extents = new ExtentBuffer(256);
  let next = lba;
  const append = (until: number, status: number): boolean => {
    let blocks = until - next;
    if (blocks <= 0) return true;
    next = until;
    const last = runs[runs.length - 1];
    if (last?.status === status && last.blocks + blocks <= 0xffffffff) {
      last.blocks += blocks;
      return true;
    }
    for (; blocks > 0; blocks -= 0xffffffff) {
      if (runs.length === capacity) return false;
      runs.push({ blocks: Math.min(blocks, 0xffffffff), status });
    }
    return true;
  };

  let at = lba * blockSize;
  for (let calls = 0; at < end && calls < MAX_MAP_CALLS; calls++) {
    await image.map(at, end - at, extents);
    for (let i = 0; i < extents.count; i++) {
      const stop = Math.min(end, (extents.offsets[i] as number) + (extents.lengths[i] as number));
      const status = isHole(extents, i) ? DEALLOCATED : MAPPED;
      // A block that straddles two extents belongs to the one with data.
      const until = status === MAPPED ? Math.ceil(stop / blockSize) : Math.floor(stop / blockSize);
      if (!append(until, status)) return runs;
    }
    if (extents.end <= at) break;
    at = extents.end;
  }
  // A hole that ends inside of the last block looked at.
  if (runs.length === 0) append(next + 1, MAPPED);
  return runs;
}

/** Reads as zeros. Zeros that keep their space count too: LBPRZ is all that an initiator gathers from it. */
function isHole(extents: ExtentBuffer, index: number): boolean {
  const kind = extents.kinds[index];
  return kind === ABSENT || kind === ZERO;
}
