import { CHECK_CONDITION, type ScsiTask, TASK_SET_FULL } from '../scsi/task.ts';

/** Why a command is answered without being executed. ACCEPTED: it is executed. */
export const ACCEPTED = 0;
export const REFUSED_NO_MEMORY = 1;
export const REFUSED_TOO_LARGE = 2;
export const REFUSED_UNEXPECTED_DATA = 3;
export const REFUSED_DIGEST = 4;
export const REFUSED_SEQUENCE = 5;
export type Refusal =
  | typeof ACCEPTED
  | typeof REFUSED_NO_MEMORY
  | typeof REFUSED_TOO_LARGE
  | typeof REFUSED_UNEXPECTED_DATA
  | typeof REFUSED_DIGEST
  | typeof REFUSED_SEQUENCE;

/** Sense of what goes wrong between command and device server (RFC 7143 section 11.4.7.2): key, ASC, ASCQ. */
const SENSE: Readonly<Record<number, readonly [key: number, asc: number, ascq: number]>> = {
  [REFUSED_TOO_LARGE]: [0x05, 0x24, 0x00],
  [REFUSED_UNEXPECTED_DATA]: [0x0b, 0x0c, 0x0c],
  [REFUSED_DIGEST]: [0x0b, 0x47, 0x05],
  [REFUSED_SEQUENCE]: [0x0b, 0x47, 0x05],
};

const SENSE_LENGTH = 18;

/** Sets the outcome of a refused command: fixed-format sense, or TASK SET FULL, which initiators try again. */
export function setRefusal(task: ScsiTask, refusal: Refusal): void {
  const sense = SENSE[refusal];
  if (sense === undefined) {
    task.status = TASK_SET_FULL;
    return;
  }
  task.status = CHECK_CONDITION;
  task.sense.fill(0, 0, SENSE_LENGTH);
  task.sense[0] = 0x70;
  task.sense[2] = sense[0];
  task.sense[7] = SENSE_LENGTH - 8;
  task.sense[12] = sense[1];
  task.sense[13] = sense[2];
  task.senseLength = SENSE_LENGTH;
}
