import { inquiryOfAbsentUnit } from './inquiry.ts';
import { reportLuns } from './report-luns.ts';
import { requestSenseOfAbsentUnit } from './request-sense.ts';
import { asCheckCondition, LOGICAL_UNIT_NOT_SUPPORTED, writeSense } from './sense.ts';
import { CHECK_CONDITION, GOOD, type ScsiTask } from './task.ts';
import type { Surroundings } from './unit.ts';

const REQUEST_SENSE = 0x03;
const INQUIRY = 0x12;
const REPORT_LUNS = 0xa0;

/** Answers a command to a LUN that has no unit (SPC-4 section 6.6.1 and SAM-5 section 5.11): three commands work, others are refused. */
export function dispatchAbsent(surroundings: Surroundings, task: ScsiTask): void {
  task.status = GOOD;
  task.senseLength = 0;
  task.dataInUsed = 0;
  task.transferLength = 0;
  try {
    switch (task.cdb[0]) {
      case REQUEST_SENSE:
        requestSenseOfAbsentUnit(task);
        return;
      case INQUIRY:
        inquiryOfAbsentUnit(task);
        return;
      case REPORT_LUNS:
        reportLuns(surroundings, task);
        return;
      default:
        fail(task, LOGICAL_UNIT_NOT_SUPPORTED);
    }
  } catch (error) {
    const { sense, details } = asCheckCondition(error, false);
    fail(task, sense, details);
  }
}

function fail(task: ScsiTask, sense: number, details = {}): void {
  task.status = CHECK_CONDITION;
  task.senseLength = writeSense(task.sense, sense, false, details);
  task.dataInUsed = 0;
  task.transferLength = 0;
}
