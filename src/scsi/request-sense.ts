import type { Outcome } from './command.ts';
import { LOGICAL_UNIT_NOT_SUPPORTED, NO_SENSE, SANITIZE_FAILED, SANITIZE_IN_PROGRESS, writeSense } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

const DESC = 0x01;

/** REQUEST SENSE (SPC-4 section 6.39): the oldest unit attention, else how SANITIZE gets on, else nothing. */
export function requestSense(unit: LogicalUnit, task: ScsiTask): Outcome {
  const attention = unit.attentions.take(task.nexus);
  if (attention !== undefined) return answer(task, attention);
  const { running, failed, progress } = unit.sanitize;
  if (running) return answer(task, SANITIZE_IN_PROGRESS, progress);
  return answer(task, failed ? SANITIZE_FAILED : NO_SENSE);
}

/** REQUEST SENSE to a LUN without a unit ends with GOOD too. */
export function requestSenseOfAbsentUnit(task: ScsiTask): Outcome {
  return answer(task, LOGICAL_UNIT_NOT_SUPPORTED);
}

function answer(task: ScsiTask, sense: number, progress?: number): undefined {
  const data = new Uint8Array(40);
  const length = writeSense(data, sense, ((task.cdb[1] as number) & DESC) !== 0, { progress });
  return respond(task, data.subarray(0, length), task.cdb[4] as number);
}
