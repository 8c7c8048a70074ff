import { read16, read24, read32, read64, write16, write24, write32, write64 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { SAVED } from './mode-pages.ts';
import {
  CheckCondition,
  invalidField,
  invalidParameter,
  MODE_PARAMETERS_CHANGED,
  PARAMETER_LIST_LENGTH_ERROR,
  SAVING_NOT_SUPPORTED,
} from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

const WP = 0x80;
const DPOFUA = 0x10;

/** MODE SENSE(6). */
export function modeSense6(unit: LogicalUnit, task: ScsiTask): Outcome {
  const pages = requestedPages(unit, task.cdb);
  const descriptor = ((task.cdb[1] as number) & 0x08) !== 0 || unit.optical ? EMPTY : blockDescriptor(unit, false);
  const data = new Uint8Array(4 + descriptor.length + pages.length);
  data[0] = data.length - 1;
  data[2] = deviceSpecific(unit);
  data[3] = descriptor.length;
  data.set(descriptor, 4);
  data.set(pages, 4 + descriptor.length);
  return respond(task, data, task.cdb[4] as number);
}

/** MODE SENSE(10): the same with a longer header, and LLBAA for block descriptors with 64-bit counts. */
export function modeSense10(unit: LogicalUnit, task: ScsiTask): Outcome {
  const pages = requestedPages(unit, task.cdb);
  const flags = task.cdb[1] as number;
  const long = (flags & 0x10) !== 0;
  const descriptor = (flags & 0x08) !== 0 || unit.optical ? EMPTY : blockDescriptor(unit, long);
  const data = new Uint8Array(8 + descriptor.length + pages.length);
  write16(data, 0, data.length - 2);
  data[3] = deviceSpecific(unit);
  data[4] = long && descriptor.length > 0 ? 0x01 : 0; // LONGLBA
  write16(data, 6, descriptor.length);
  data.set(descriptor, 8);
  data.set(pages, 8 + descriptor.length);
  return respond(task, data, read16(task.cdb, 7));
}

const EMPTY = new Uint8Array(0);

function requestedPages(unit: LogicalUnit, cdb: Uint8Array): Uint8Array {
  const field = cdb[2] as number;
  if (field >> 6 === SAVED) throw new CheckCondition(SAVING_NOT_SUPPORTED);
  const subpage = cdb[3] as number;
  const pages = unit.modePages.read(field & 0x3f, subpage, field >> 6);
  if (pages === undefined) throw subpage !== 0 && subpage !== 0xff ? invalidField(3) : invalidField(2, 5);
  return pages;
}

/** The device-specific parameter: reserved for an optical unit. */
function deviceSpecific(unit: LogicalUnit): number {
  if (unit.optical) return 0;
  return (unit.writeProtected ? WP : 0) | DPOFUA;
}

/** Short (8 bytes) or long LBA mode parameter block descriptor (SBC-3 section 6.5.2); no blocks while there is no medium. */
function blockDescriptor(unit: LogicalUnit, long: boolean): Uint8Array {
  const blocks = unit.mediumPresent ? unit.blocks : 0;
  const data = new Uint8Array(long ? 16 : 8);
  if (long) {
    write64(data, 0, blocks);
    write32(data, 12, unit.blockSize);
  } else {
    write32(data, 0, Math.min(blocks, 0xffffffff));
    write24(data, 5, unit.blockSize);
  }
  return data;
}

/** MODE SELECT(6). */
export function modeSelect6(unit: LogicalUnit, task: ScsiTask): Outcome {
  const list = parameterList(task, task.cdb[4] as number);
  if (list.length === 0) return undefined;
  if (list.length < 4) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  return select(unit, task, list, 4, list[3] as number, false);
}

/** MODE SELECT(10). */
export function modeSelect10(unit: LogicalUnit, task: ScsiTask): Outcome {
  const list = parameterList(task, read16(task.cdb, 7));
  if (list.length === 0) return undefined;
  if (list.length < 8) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  return select(unit, task, list, 8, read16(list, 6), ((list[4] as number) & 0x01) !== 0);
}

function parameterList(task: ScsiTask, length: number): Uint8Array {
  const flags = task.cdb[1] as number;
  if ((flags & 0x10) === 0 && length > 0) throw invalidField(1, 4); // PF: pages in the standard's format
  if ((flags & 0x02) !== 0) throw invalidField(1, 1); // RTD
  if ((flags & 0x01) !== 0) throw invalidField(1, 0); // SP: nothing is saved
  if (task.dataOut.byteLength < length) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  task.transferLength = length;
  return task.dataOut.contiguous().subarray(0, length);
}

function select(
  unit: LogicalUnit,
  task: ScsiTask,
  list: Uint8Array,
  header: number,
  descriptorLength: number,
  long: boolean,
): Outcome {
  if (header + descriptorLength > list.length) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  if (descriptorLength > 0) checkDescriptor(unit, list, header, descriptorLength, long);
  const wasCached = !unit.writeThrough;
  if (!unit.modePages.select(list, header + descriptorLength)) return undefined;
  unit.modeChanged();
  unit.attentions.raiseAll(MODE_PARAMETERS_CHANGED, task.nexus);
  // From here on writes are durable when they end; those before have to become so.
  return wasCached && unit.writeThrough && !unit.image.readOnly ? unit.image.flush() : undefined;
}

/** A block descriptor may only say what is so: neither capacity nor block size can be changed. */
function checkDescriptor(unit: LogicalUnit, list: Uint8Array, at: number, length: number, long: boolean): void {
  if (length !== (long ? 16 : 8)) throw invalidParameter(at === 4 ? 3 : 6);
  const blocks = long ? read64(list, at) : read32(list, at);
  const blockSize = long ? read32(list, at + 12) : read24(list, at + 5);
  const same = blocks === 0 || blocks === unit.blocks || (!long && blocks === Math.min(unit.blocks, 0xffffffff));
  if (!same) throw invalidParameter(at);
  if (blockSize !== unit.blockSize) throw invalidParameter(long ? at + 12 : at + 5);
}
