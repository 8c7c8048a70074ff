import { IoVec } from '../../formats/core/iov.ts';
import { read16, read32, read64 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { blocksToWrite, checkRange, refuseProtection } from './read-write.ts';
import { CheckCondition, invalidField, MISCOMPARE } from './sense.ts';
import type { ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';

/** BYTCHK of VERIFY and WRITE AND VERIFY. */
const MEDIUM_ONLY = 0;
const COMPARE = 1;
const COMPARE_ONE_BLOCK = 3;

/** Verification reads the medium in pieces of this size. */
const CHUNK = 1024 * 1024;

function byteCheck(cdb: Uint8Array): number {
  return ((cdb[1] as number) >> 1) & 0x03;
}

/** Blocks that VERIFY takes from the initiator. */
export function verifyBlocksOut(cdb: Uint8Array): number {
  const check = byteCheck(cdb);
  if (check === COMPARE) return verifyLength(cdb);
  return check === COMPARE_ONE_BLOCK && verifyLength(cdb) > 0 ? 1 : 0;
}

function verifyLength(cdb: Uint8Array): number {
  if (cdb[0] === 0x2f) return read16(cdb, 7);
  return read32(cdb, cdb[0] === 0xaf ? 6 : 10);
}

function address(cdb: Uint8Array): number {
  // The opcode's group says how long the CDB is: 16-byte ones have a 64-bit LBA.
  return (cdb[0] as number) >> 5 === 4 ? read64(cdb, 2) : read32(cdb, 2);
}

/** VERIFY(10), (12) and (16) (SBC-3 sections 5.28 and on). */
export function verify(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  refuseProtection(cdb);
  const check = byteCheck(cdb);
  if (check === 2) throw invalidField(1, 2);
  const lba = address(cdb);
  const blocks = verifyLength(cdb);
  checkRange(unit, lba, blocks);
  if (blocks > unit.maxTransferBlocks) throw invalidField(cdb[0] === 0x2f ? 7 : 6);
  const { blockSize } = unit;
  if (check === MEDIUM_ONLY) return blocks === 0 ? undefined : compare(unit, task, lba * blockSize, blocks * blockSize);

  const out = verifyBlocksOut(cdb) * blockSize;
  task.transferLength = out;
  if (check === COMPARE) {
    const length = whole(unit, task, out);
    return length === 0 ? undefined : compare(unit, task, lba * blockSize, length, task.dataOut);
  }
  if (blocks === 0) return undefined;
  if (task.dataOut.byteLength < blockSize) throw invalidField(1, 2);
  const block = new Uint8Array(blockSize);
  task.dataOut.copyOut(0, block);
  const length = blocks * blockSize;
  return compare(unit, task, lba * blockSize, length, repeated(block, Math.min(length, CHUNK)), true);
}

/** Whole blocks among what the initiator has sent. */
function whole(unit: LogicalUnit, task: ScsiTask, wanted: number): number {
  const available = Math.min(task.dataOut.byteLength, wanted);
  return available - (available % unit.blockSize);
}

/** WRITE AND VERIFY(10), (12) and (16): writes, makes it durable, reads it back; BYTCHK compares the bytes. */
export function writeAndVerify(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  refuseProtection(cdb);
  const check = byteCheck(cdb);
  if (check > COMPARE) throw invalidField(1, 2);
  const lba = address(cdb);
  const blocks = cdb[0] === 0x2e ? read16(cdb, 7) : read32(cdb, cdb[0] === 0xae ? 6 : 10);
  const iov = blocksToWrite(unit, task, lba, blocks);
  if (iov.byteLength === 0) return undefined;
  return writeFlushCompare(unit, task, lba * unit.blockSize, iov, check === COMPARE);
}

async function writeFlushCompare(
  unit: LogicalUnit,
  task: ScsiTask,
  offset: number,
  iov: IoVec,
  comparing: boolean,
): Promise<void> {
  await unit.image.writev(offset, iov);
  await unit.image.flush();
  await compare(unit, task, offset, iov.byteLength, comparing ? iov : undefined);
}

/**
 * Reads a range, and compares it with data if there is some.
 *
 * @param cyclic the data is compared with every piece of its length
 * @throws {CheckCondition} MISCOMPARE with the offset of the first byte that differs
 */
async function compare(
  unit: LogicalUnit,
  task: ScsiTask,
  offset: number,
  length: number,
  data?: IoVec,
  cyclic = false,
): Promise<void> {
  const step = Math.min(length, CHUNK);
  const found = new Uint8Array(step);
  const expected = data === undefined ? undefined : new Uint8Array(step);
  for (let at = 0; at < length && !task.aborted; at += step) {
    const size = Math.min(step, length - at);
    await unit.image.readv(offset + at, IoVec.of(found, 0, size));
    if (data === undefined || expected === undefined) continue;
    if (!cyclic || at === 0) data.copyOut(cyclic ? 0 : at, expected.subarray(0, size));
    const differs = firstDifference(found, expected, size);
    if (differs >= 0) throw new CheckCondition(MISCOMPARE, { information: at + differs });
  }
}

function repeated(block: Uint8Array, length: number): IoVec {
  const iov = new IoVec();
  for (let at = 0; at < length; at += block.length) iov.append(block, 0, Math.min(block.length, length - at));
  return iov;
}

/** Index of the first byte in which two arrays differ, -1 when their first `length` bytes are equal. */
export function firstDifference(a: Uint8Array, b: Uint8Array, length: number): number {
  if (Buffer.compare(a.subarray(0, length), b.subarray(0, length)) === 0) return -1;
  let at = 0;
  while (a[at] === b[at]) at++;
  return at;
}
