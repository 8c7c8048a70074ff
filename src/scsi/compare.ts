import { read32, read64 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { limitsOf } from './limits.ts';
import { blocksToWrite, checkRange, refuseProtection } from './read-write.ts';
import { CheckCondition, invalidField, MISCOMPARE } from './sense.ts';
import type { ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';
import { firstDifference } from './verify.ts';

const FUA = 0x08;
/** ORWRITE works through the medium in pieces of this size. */
const CHUNK = 1024 * 1024;

/** Blocks that COMPARE AND WRITE takes from the initiator: what to expect, then what to write. */
export function compareAndWriteBlocksOut(cdb: Uint8Array): number {
  return 2 * (cdb[13] as number);
}

/** COMPARE AND WRITE (SBC-3 section 5.2): no other write comes between the comparison and the write. */
export function compareAndWrite(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  refuseProtection(cdb);
  const lba = read64(cdb, 2);
  const blocks = cdb[13] as number;
  if (blocks > limitsOf(unit).compareAndWrite) throw invalidField(13);
  checkRange(unit, lba, blocks);
  const length = blocks * unit.blockSize;
  task.transferLength = 2 * length;
  // The halves of another amount of data would be other bytes than the initiator means: nothing is compared or written then. A count of
  // blocks that did not fit into its byte shows here too.
  if (task.expectedLength !== 2 * length || task.dataOut.byteLength !== 2 * length) throw invalidField(13);
  if (length === 0) return undefined;
  return compareThenWrite(unit, task, lba * unit.blockSize, length, ((cdb[1] as number) & FUA) !== 0);
}

async function compareThenWrite(
  unit: LogicalUnit,
  task: ScsiTask,
  offset: number,
  length: number,
  fua: boolean,
): Promise<void> {
  const expected = new Uint8Array(length);
  task.dataOut.copyOut(0, expected);
  let differs = -1;
  await unit.image.readModifyWrite(offset, length, (bytes) => {
    differs = firstDifference(bytes, expected, length);
    if (differs >= 0 || task.aborted) return false;
    task.dataOut.copyOut(length, bytes);
    return true;
  });
  if (differs >= 0) throw new CheckCondition(MISCOMPARE, { information: differs });
  if (fua || unit.writeThrough) await unit.image.flush();
}

/** ORWRITE(16) (SBC-3 section 5.9): each bit that is set in the data is set on the medium. */
export function orWrite(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  refuseProtection(cdb);
  const lba = read64(cdb, 2);
  const iov = blocksToWrite(unit, task, lba, read32(cdb, 10));
  if (iov.byteLength === 0) return undefined;
  return orIntoMedium(unit, task, lba * unit.blockSize, iov.byteLength, ((cdb[1] as number) & FUA) !== 0);
}

async function orIntoMedium(
  unit: LogicalUnit,
  task: ScsiTask,
  offset: number,
  length: number,
  fua: boolean,
): Promise<void> {
  const mask = new Uint8Array(Math.min(length, CHUNK));
  for (let at = 0; at < length && !task.aborted; at += mask.length) {
    const size = Math.min(mask.length, length - at);
    await unit.image.readModifyWrite(offset + at, size, (bytes) => {
      task.dataOut.copyOut(at, mask.subarray(0, size));
      for (let i = 0; i < size; i++) bytes[i] = (bytes[i] as number) | (mask[i] as number);
      return true;
    });
  }
  if (fua || unit.writeThrough) await unit.image.flush();
}
