import {
  ABORT_TASK,
  ABORT_TASK_SET,
  CLEAR_ACA,
  CLEAR_TASK_SET,
  type DeviceServer,
  LUN_RESET,
  type Nexus,
  TARGET_COLD_RESET,
  TARGET_WARM_RESET,
  TMF_COMPLETE,
  TMF_NO_TASK,
  TMF_NOT_SUPPORTED,
} from '../scsi/task.ts';
import type { CommandOrder } from './command-order.ts';
import { decodeLun } from './names.ts';
import { AT_FLAGS, AT_REFERENCED_CMD_SN, AT_REFERENCED_TAG } from './pdu.ts';
import { EXECUTING } from './task.ts';
import type { TaskSet } from './task-set.ts';

/** TASK REASSIGN, which needs error recovery level 2, and the answer to it. */
const TASK_REASSIGN = 8;
const REASSIGN_NOT_SUPPORTED = 4;

export interface TaskManagementContext {
  readonly device: DeviceServer;
  readonly nexus: Nexus;
  readonly tasks: TaskSet;
  readonly order: CommandOrder;
  /** Drops, in all sessions of the target, the tasks of a unit (undefined: of all) that the device server does not have. */
  readonly dropEverywhere: (lun: number | undefined) => void;
}

/**
 * Performs the task management function of a request (48 bytes of header; RFC 7143 section 11.5).
 *
 * Tasks that the device server does not know yet are dropped here, the others are its affair. Either way they get no response.
 *
 * @returns the response code, after all affected tasks have ended
 */
export async function manageTasks(header: DataView, context: TaskManagementContext): Promise<number> {
  const { device, nexus, tasks, dropEverywhere } = context;
  const action = header.getUint8(AT_FLAGS) & 0x7f;
  const lun = decodeLun(header, 8);
  switch (action) {
    case ABORT_TASK:
      return abortTask(header, lun, context);
    case ABORT_TASK_SET:
      tasks.dropUnsubmitted(lun);
      return device.manage(nexus, lun, action);
    case CLEAR_TASK_SET:
    case LUN_RESET:
      dropEverywhere(lun);
      return device.manage(nexus, lun, action);
    case TARGET_WARM_RESET:
    case TARGET_COLD_RESET:
      dropEverywhere(undefined);
      return device.manage(nexus, lun, action);
    case CLEAR_ACA:
      return device.manage(nexus, lun, action);
    case TASK_REASSIGN:
      return REASSIGN_NOT_SUPPORTED;
    default:
      return TMF_NOT_SUPPORTED;
  }
}

async function abortTask(header: DataView, lun: number, context: TaskManagementContext): Promise<number> {
  const { device, nexus, tasks, order } = context;
  const tag = header.getUint32(AT_REFERENCED_TAG);
  const task = tasks.find(tag);
  if (task === undefined) {
    // Not here: either it is over, or it has not come and its number is still to be counted (section 11.5.1).
    return order.plug(header.getUint32(AT_REFERENCED_CMD_SN)) ? TMF_COMPLETE : TMF_NO_TASK;
  }
  if (task.lun !== lun) return TMF_NO_TASK;
  if (task.state === EXECUTING) return device.manage(nexus, lun, ABORT_TASK, tag);
  tasks.drop(task);
  tasks.drain();
  return TMF_COMPLETE;
}
