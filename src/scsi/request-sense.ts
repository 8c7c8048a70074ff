import type { Outcome } from './command.ts';
import { LOGICAL_UNIT_NOT_SUPPORTED, NO_SENSE, writeSense } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

const DESC = 0x01;

/** REQUEST SENSE (SPC-4 section 6.39): the oldest unit attention, else nothing. */
export function requestSense(unit: LogicalUnit, task: ScsiTask): Outcome {
  return answer(task, unit.attentions.take(task.nexus) ?? NO_SENSE);
}

/** REQUEST SENSE to a LUN without a unit ends with GOOD too. */
export function requestSenseOfAbsentUnit(task: ScsiTask): Outcome {
  return answer(task, LOGICAL_UNIT_NOT_SUPPORTED);
}

function answer(task: ScsiTask, sense: number): undefined {
  const data = new Uint8Array(40);
  const length = writeSense(data, sense, ((task.cdb[1] as number) & DESC) !== 0);
  return respond(task, data.subarray(0, length), task.cdb[4] as number);
}
