import { read32, write32, write64 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

/** READ CAPACITY(10): FFFFFFFFh where the last LBA needs more bits. */
export function readCapacity10(unit: LogicalUnit, task: ScsiTask): Outcome {
  const partial = ((task.cdb[8] as number) & 0x01) !== 0; // PMI
  if (!partial && read32(task.cdb, 2) !== 0) throw invalidField(2);
  const data = new Uint8Array(8);
  write32(data, 0, Math.min(lastBlock(unit), 0xffffffff));
  write32(data, 4, unit.blockSize);
  return respond(task, data, data.length);
}

/** READ CAPACITY(16) (SBC-3 section 5.16): capacity, physical block size, provisioning. */
export function readCapacity16(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  const partial = ((cdb[14] as number) & 0x01) !== 0;
  if (!partial && (read32(cdb, 2) !== 0 || read32(cdb, 6) !== 0)) throw invalidField(2);
  const data = new Uint8Array(32);
  write64(data, 0, lastBlock(unit));
  write32(data, 8, unit.blockSize);
  data[13] = unit.physicalExponent;
  data[14] = unit.thin ? 0xc0 : 0; // LBPME, LBPRZ
  return respond(task, data, read32(cdb, 10));
}

/** An image smaller than a block has no last one; the field cannot say so. */
function lastBlock(unit: LogicalUnit): number {
  return Math.max(0, unit.blocks - 1);
}
