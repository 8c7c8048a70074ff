import { read16, read32, write16, write32 } from './bytes.ts';
import type { Command, Outcome } from './command.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

const RCTD = 0x80;
const TIMEOUTS_LENGTH = 12;

/** REPORT SUPPORTED OPERATION CODES (SPC-4 section 6.30): all, or one with its CDB usage data. */
export function reportSupportedOpcodes(commands: readonly Command[], unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  const options = (cdb[2] as number) & 0x07;
  const timeouts = ((cdb[2] as number) & RCTD) !== 0;
  const supported = commands.filter((command) => (command.needs & ~unit.features) === 0);
  const data = options === 0 ? describeAll(supported, timeouts) : describeOne(supported, cdb, options, timeouts);
  return respond(task, data, read32(cdb, 6));
}

function describeAll(commands: readonly Command[], timeouts: boolean): Uint8Array {
  const size = 8 + (timeouts ? TIMEOUTS_LENGTH : 0);
  const data = new Uint8Array(4 + commands.length * size);
  write32(data, 0, data.length - 4);
  commands.forEach((command, index) => {
    const at = 4 + index * size;
    data[at] = command.opcode;
    write16(data, at + 2, Math.max(0, command.serviceAction));
    data[at + 5] = (timeouts ? 0x02 : 0) | (command.serviceAction >= 0 ? 0x01 : 0); // CTDP, SERVACTV
    write16(data, at + 6, command.usage.length);
    if (timeouts) writeTimeouts(data, at + 8);
  });
  return data;
}

const NOT_SUPPORTED = 0x01;
const SUPPORTED = 0x03;

function describeOne(commands: readonly Command[], cdb: Uint8Array, options: number, timeouts: boolean): Uint8Array {
  const opcode = cdb[3] as number;
  const action = read16(cdb, 4);
  const candidates = commands.filter((command) => command.opcode === opcode);
  const hasActions = candidates.some((command) => command.serviceAction >= 0);
  // 1: an opcode without service actions; 2: one with; 3: whichever it is.
  if (options > 3) throw invalidField(2, 2);
  if (options === 1 && hasActions) throw invalidField(2, 2);
  if (options === 2 && candidates.length > 0 && !hasActions) throw invalidField(2, 2);
  const command = hasActions
    ? candidates.find((candidate) => candidate.serviceAction === action)
    : options === 3 && action !== 0
      ? undefined
      : candidates[0];
  if (command === undefined) return Uint8Array.of(0, NOT_SUPPORTED, 0, 0);

  const length = command.usage.length;
  const data = new Uint8Array(4 + length + (timeouts ? TIMEOUTS_LENGTH : 0));
  data[1] = (timeouts ? 0x80 : 0) | SUPPORTED;
  write16(data, 2, length);
  data.set(command.usage, 4);
  if (timeouts) writeTimeouts(data, 4 + length);
  return data;
}

/** Command timeouts descriptor: no timeout is indicated. */
function writeTimeouts(data: Uint8Array, at: number): void {
  write16(data, at, TIMEOUTS_LENGTH - 2);
}

/** REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: abort task, abort and clear task set, logical unit and target reset. */
export function reportSupportedTaskManagement(_unit: LogicalUnit, task: ScsiTask): Outcome {
  const extended = ((task.cdb[2] as number) & 0x80) !== 0; // REPD
  const data = new Uint8Array(extended ? 16 : 4);
  data[0] = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;
  if (extended) data[3] = 12;
  return respond(task, data, read32(task.cdb, 6));
}

/** READ DEFECT DATA(10): a virtual disk has no defects, so both lists are empty. */
export function readDefectData10(_unit: LogicalUnit, task: ScsiTask): Outcome {
  return respond(task, Uint8Array.of(0, (task.cdb[2] as number) & 0x1f, 0, 0), read16(task.cdb, 7));
}

export function readDefectData12(_unit: LogicalUnit, task: ScsiTask): Outcome {
  return respond(task, Uint8Array.of(0, (task.cdb[1] as number) & 0x1f, 0, 0, 0, 0, 0, 0), read32(task.cdb, 6));
}

/** TEST UNIT READY: the dispatcher has asked already. */
export function testUnitReady(): Outcome {
  return undefined;
}
