import { read16, read32 } from './bytes.ts';
import {
  BLOCKS_IN,
  BLOCKS_OUT,
  COUNTED_OUT,
  type Command,
  MAX_PARAMETER_IN,
  MAX_PARAMETER_OUT,
  NO_DATA,
  PARAMETER_IN,
} from './command.ts';
import { commandOf, hasServiceActions } from './opcodes.ts';
import { ReservationConflict } from './reservations.ts';
import {
  asCheckCondition,
  INVALID_FIELD_IN_CDB,
  INVALID_MESSAGE,
  INVALID_OPCODE,
  MEDIUM_NOT_PRESENT,
  SANITIZE_FAILED,
  SANITIZE_IN_PROGRESS,
  WRITE_PROTECTED,
} from './sense.ts';
import { ACA, GOOD, RESERVATION_CONFLICT, type ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';

const NACA = 0x04;
/** READ CAPACITY(10) has no allocation length. */
const READ_CAPACITY_10_LENGTH = 8;

/** Sets the data lengths of a task: 0 for what will be refused whatever its data is. */
export function planTask(unit: LogicalUnit, task: ScsiTask): void {
  const { cdb } = task;
  task.dataOutLength = 0;
  task.dataInLength = 0;
  const command = commandOf(cdb);
  if (command === undefined || command.form === NO_DATA || (command.needs & ~unit.features) !== 0) return;
  switch (command.form) {
    case BLOCKS_IN:
      task.dataInLength = transferLength(unit, command, cdb);
      break;
    case BLOCKS_OUT:
      if (!unit.writeProtected) task.dataOutLength = transferLength(unit, command, cdb);
      break;
    case COUNTED_OUT: {
      const blocks = command.blocksOut?.(cdb) ?? 0;
      if (blocks <= unit.maxTransferBlocks && !(command.modifies && unit.writeProtected))
        task.dataOutLength = blocks * unit.blockSize;
      break;
    }
    case PARAMETER_IN:
      task.dataInLength =
        command.lengthSize === 0 ? READ_CAPACITY_10_LENGTH : Math.min(lengthField(command, cdb), MAX_PARAMETER_IN);
      break;
    default: {
      const length = lengthField(command, cdb);
      task.dataOutLength = length > MAX_PARAMETER_OUT ? 0 : length;
    }
  }
}

function transferLength(unit: LogicalUnit, command: Command, cdb: Uint8Array): number {
  let blocks = lengthField(command, cdb);
  if (command.lengthSize === 1 && blocks === 0) blocks = 256; // READ(6), WRITE(6)
  return blocks > unit.maxTransferBlocks ? 0 : blocks * unit.blockSize;
}

function lengthField(command: Command, cdb: Uint8Array): number {
  if (command.lengthSize === 2) return read16(cdb, command.lengthAt);
  return command.lengthSize === 4 ? read32(cdb, command.lengthAt) : (cdb[command.lengthAt] as number);
}

/** Runs a task of a unit in its turn. Undefined: it has completed. */
export function executeTask(unit: LogicalUnit, task: ScsiTask): Promise<void> | undefined {
  task.status = GOOD;
  task.senseLength = 0;
  task.dataInUsed = 0;
  task.transferLength = 0;
  if (task.attribute === ACA) {
    unit.failWith(task, INVALID_MESSAGE);
    return undefined;
  }
  const { observer } = unit;
  if (observer === undefined) return unit.tasks.execute(task);
  const start = performance.now();
  const pending = unit.tasks.execute(task);
  if (pending !== undefined) return pending.then(() => observe(unit, task, start));
  observe(unit, task, start);
  return undefined;
}

function observe(unit: LogicalUnit, task: ScsiTask, start: number): void {
  const out = task.dataOutLength === 0 ? 0 : task.dataOut.byteLength;
  unit.observer?.(task.cdb[0] as number, task.status, task.dataInUsed, out, performance.now() - start);
}

/**
 * Runs a task whose turn it is, after the checks that are the same for all commands: unit attention, existence, reservation, medium,
 * write protection, in SAM-5's order of precedence.
 */
export function startTask(unit: LogicalUnit, task: ScsiTask): Promise<void> | undefined {
  const { cdb } = task;
  const command = commandOf(cdb);
  if (unit.attentions.pending > 0 && command?.passesAttention !== true) {
    const attention = unit.attentions.take(task.nexus);
    if (attention !== undefined) {
      unit.failWith(task, attention);
      return undefined;
    }
  }
  if (command === undefined || (command.needs & ~unit.features) !== 0) {
    refuseUnknown(unit, task);
    return undefined;
  }
  if (unit.reservations.engaged && conflicts(unit, task, command)) {
    task.status = RESERVATION_CONFLICT;
    return undefined;
  }
  if (((cdb[command.usage.length - 1] as number) & NACA) !== 0) {
    unit.failWith(task, INVALID_FIELD_IN_CDB, { field: { in: 'cdb', byte: command.usage.length - 1, bit: 2 } });
    return undefined;
  }
  if (command.medium && !unit.ready) {
    refuseUnready(unit, task);
    return undefined;
  }
  if (command.modifies && unit.writeProtected) {
    unit.failWith(task, WRITE_PROTECTED);
    return undefined;
  }
  let pending: Promise<void> | undefined;
  try {
    pending = command.run(unit, task);
  } catch (error) {
    failTask(unit, task, command, error);
    return undefined;
  }
  return pending === undefined ? undefined : settle(unit, task, command, pending);
}

async function settle(unit: LogicalUnit, task: ScsiTask, command: Command, pending: Promise<void>): Promise<void> {
  try {
    await pending;
  } catch (error) {
    failTask(unit, task, command, error);
  }
}

function failTask(unit: LogicalUnit, task: ScsiTask, command: Command, error: unknown): void {
  if (error instanceof ReservationConflict) {
    task.status = RESERVATION_CONFLICT;
    task.dataInUsed = 0;
    return;
  }
  // SYNCHRONIZE CACHE does not modify by itself, but what fails in it are writes.
  unit.fail(task, asCheckCondition(error, command.access > 1));
}

function conflicts(unit: LogicalUnit, task: ScsiTask, command: Command): boolean {
  const access = command.accessOf === undefined ? command.access : command.accessOf(task.cdb);
  const free6 = command.free6 || (command.accessOf !== undefined && access === 0);
  return unit.reservations.conflicts(task.nexus, access, free6);
}

function refuseUnready(unit: LogicalUnit, task: ScsiTask): void {
  const { running, progress } = unit.sanitize;
  if (!unit.mediumPresent) unit.failWith(task, MEDIUM_NOT_PRESENT);
  else if (running) unit.failWith(task, SANITIZE_IN_PROGRESS, { progress });
  else unit.failWith(task, SANITIZE_FAILED);
}

/** No such opcode, or none of its service actions. */
function refuseUnknown(unit: LogicalUnit, task: ScsiTask): void {
  const opcode = task.cdb[0] as number;
  if (hasServiceActions(opcode)) {
    unit.failWith(task, INVALID_FIELD_IN_CDB, { field: { in: 'cdb', byte: 1, bit: 4 } });
  } else {
    unit.failWith(task, INVALID_OPCODE, { field: { in: 'cdb', byte: 0, bit: undefined } });
  }
}
