import type { IoVec } from '../../formats/core/iov.ts';
import { read16, read32, read64 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { CheckCondition, invalidField, LBA_OUT_OF_RANGE } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { atMost, type LogicalUnit } from './unit.ts';

const PROTECT = 0xe0;
const FUA = 0x08;

/** @throws {CheckCondition} LBA OUT OF RANGE unless [lba, lba + blocks) is on the medium */
export function checkRange(unit: LogicalUnit, lba: number, blocks: number): void {
  if (blocks > unit.blocks - lba) throw new CheckCondition(LBA_OUT_OF_RANGE, { information: lba });
}

/** RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT: the medium has no protection information. */
export function refuseProtection(cdb: Uint8Array): void {
  if (((cdb[1] as number) & PROTECT) !== 0) throw invalidField(1, 7);
}

/** READ and WRITE(6) count 0 as 256. */
export function blocks6(cdb: Uint8Array): number {
  return cdb[4] === 0 ? 256 : (cdb[4] as number);
}

export function lba6(cdb: Uint8Array): number {
  return (((cdb[1] as number) & 0x1f) << 16) | read16(cdb, 2);
}

export function read6(unit: LogicalUnit, task: ScsiTask): Outcome {
  return read(unit, task, lba6(task.cdb), blocks6(task.cdb), 0);
}

export function read10(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  return read(unit, task, read32(cdb, 2), read16(cdb, 7), cdb[1] as number);
}

export function read12(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  return read(unit, task, read32(cdb, 2), read32(cdb, 6), cdb[1] as number);
}

export function read16Command(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  return read(unit, task, read64(cdb, 2), read32(cdb, 10), cdb[1] as number);
}

export function write6(unit: LogicalUnit, task: ScsiTask): Outcome {
  return write(unit, task, lba6(task.cdb), blocks6(task.cdb), 0);
}

export function write10(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  return write(unit, task, read32(cdb, 2), read16(cdb, 7), cdb[1] as number);
}

export function write12(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  return write(unit, task, read32(cdb, 2), read32(cdb, 6), cdb[1] as number);
}

export function write16Command(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  return write(unit, task, read64(cdb, 2), read32(cdb, 10), cdb[1] as number);
}

/** Every READ. A hit in memory completes in this tick and allocates nothing. */
function read(unit: LogicalUnit, task: ScsiTask, lba: number, blocks: number, flags: number): Outcome {
  if ((flags & PROTECT) !== 0) throw invalidField(1, 7);
  checkRange(unit, lba, blocks);
  if (blocks > unit.maxTransferBlocks) throw invalidField(task.cdb[0] === 0x28 ? 7 : 6);
  const length = blocks * unit.blockSize;
  task.transferLength = length;
  // The initiator may expect less than the CDB says: it gets the beginning, and the residual.
  const iov = atMost(task.dataIn, length);
  task.dataInUsed = iov.byteLength;
  if (iov.byteLength === 0) return undefined;
  const offset = lba * unit.blockSize;
  if ((flags & FUA) !== 0 && !unit.image.readOnly) return flushThenRead(unit, offset, iov);
  return unit.image.tryReadv(offset, iov) ? undefined : unit.image.readv(offset, iov);
}

/** FUA on a read: what is returned has to be on the medium. */
async function flushThenRead(unit: LogicalUnit, offset: number, iov: IoVec): Promise<void> {
  await unit.image.flush();
  await unit.image.readv(offset, iov);
}

function write(unit: LogicalUnit, task: ScsiTask, lba: number, blocks: number, flags: number): Outcome {
  if ((flags & PROTECT) !== 0) throw invalidField(1, 7);
  const iov = blocksToWrite(unit, task, lba, blocks);
  if (iov.byteLength === 0) return undefined;
  const offset = lba * unit.blockSize;
  const through = (flags & FUA) !== 0 || unit.writeThrough;
  if (unit.image.tryWritev(offset, iov)) return through ? unit.image.flush() : undefined;
  return through ? writeThenFlush(unit, offset, iov) : unit.image.writev(offset, iov);
}

/** Checks a write's range, and gives the data for it: whole blocks, as many as the initiator has sent. */
export function blocksToWrite(unit: LogicalUnit, task: ScsiTask, lba: number, blocks: number): IoVec {
  checkRange(unit, lba, blocks);
  if (blocks > unit.maxTransferBlocks) throw invalidField(task.cdb[0] === 0x2a ? 7 : 6);
  const length = blocks * unit.blockSize;
  task.transferLength = length;
  const available = Math.min(task.dataOut.byteLength, length);
  return atMost(task.dataOut, available - (available % unit.blockSize));
}

export async function writeThenFlush(unit: LogicalUnit, offset: number, iov: IoVec): Promise<void> {
  await unit.image.writev(offset, iov);
  await unit.image.flush();
}
