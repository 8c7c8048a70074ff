import { read32, write32 } from './bytes.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { respond, type Surroundings } from './unit.ts';

/** REPORT LUNS (SPC-4 section 6.33). Answered for every LUN, whether or not there is a unit. */
export function reportLuns(surroundings: Surroundings, task: ScsiTask): undefined {
  const { cdb } = task;
  const select = cdb[2] as number;
  if (select > 2) throw invalidField(2);
  // 1: only well known logical units; there are none.
  const luns = select === 1 ? [] : surroundings.luns();
  const data = new Uint8Array(8 + luns.length * 8);
  write32(data, 0, luns.length * 8);
  luns.forEach((lun, index) => writeLun(data, 8 + index * 8, lun));
  surroundings.lunsReported(task.nexus);
  return respond(task, data, read32(cdb, 6));
}

/** Single level LUN structure (SAM-5 section 4.7): peripheral device addressing up to 255, flat space addressing above. */
export function writeLun(data: Uint8Array, at: number, lun: number): void {
  data[at] = lun < 256 ? 0 : 0x40 | (lun >> 8);
  data[at + 1] = lun;
}
