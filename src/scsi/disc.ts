import { read16, read32, write16, write32 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { isDvd } from './configuration.ts';
import { CheckCondition, INCOMPATIBLE_FORMAT, invalidField, LBA_OUT_OF_RANGE } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

/** READ DISC INFORMATION (MMC-6 section 6.21): a finalized disc with one session and one track. */
export function readDiscInformation(_unit: LogicalUnit, task: ScsiTask): Outcome {
  if (((task.cdb[1] as number) & 0x07) !== 0) throw invalidField(1, 2); // only the standard data type
  const data = new Uint8Array(34);
  write16(data, 0, data.length - 2);
  data[2] = 0x0e; // the last session is complete, the disc finalized
  data[3] = 1; // first track
  data[4] = 1; // sessions
  data[5] = 1; // first track of the last session
  data[6] = 1; // last track of the last session
  data[7] = 0x20; // URU: may be used without restriction
  data.fill(0xff, 16, 24); // no lead-in, no lead-out to be written
  return respond(task, data, read16(task.cdb, 7));
}

/** READ TRACK INFORMATION (MMC-6 section 6.26): the one track, by block, track or session. */
export function readTrackInformation(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  const kind = (cdb[1] as number) & 0x03;
  const number = read32(cdb, 2);
  if (kind === 3) throw invalidField(1, 1);
  if (kind === 0 && number >= unit.blocks) throw new CheckCondition(LBA_OUT_OF_RANGE);
  if (kind !== 0 && number !== 1) throw invalidField(2);
  const data = new Uint8Array(36);
  write16(data, 0, data.length - 2);
  data[2] = 1; // track
  data[3] = 1; // session
  data[5] = 0x04; // a data track
  data[6] = 0x01; // mode 1
  write32(data, 24, unit.blocks);
  return respond(task, data, read16(cdb, 7));
}

/** MECHANISM STATUS (MMC-6 section 6.9): a drive without a changer, idle; door open or closed. */
export function mechanismStatus(unit: LogicalUnit, task: ScsiTask): Outcome {
  const data = new Uint8Array(8);
  data[1] = unit.mediumPresent ? 0 : 0x10;
  return respond(task, data, read16(task.cdb, 8));
}

const PHYSICAL_FORMAT = 0x00;
const COPYRIGHT = 0x01;
const MANUFACTURER = 0x04;
const LIST = 0xff;
/** Where the data of a DVD begins, physical sectors. */
const DVD_DATA_START = 0x030000;

/** READ DISC STRUCTURE (MMC-6 section 6.22) of a DVD-ROM with one layer. */
export function readDiscStructure(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  if (((cdb[1] as number) & 0x0f) !== 0) throw invalidField(1, 3); // media type: DVD
  const format = cdb[7] as number;
  const length = read16(cdb, 8);
  if (format === LIST) return respond(task, withLength(listOfStructures()), length);
  if (!isDvd(unit)) throw new CheckCondition(INCOMPATIBLE_FORMAT);
  if (format === COPYRIGHT) return respond(task, withLength(new Uint8Array(4)), length);
  if (format === MANUFACTURER) return respond(task, withLength(new Uint8Array(2048)), length);
  if (format !== PHYSICAL_FORMAT) throw invalidField(7);
  if (cdb[6] !== 0) throw invalidField(6); // there is one layer
  const layer = new Uint8Array(2048);
  layer[0] = 0x01; // DVD-ROM, part version 1
  layer[1] = 0x0f; // 120 mm, no maximum rate
  layer[2] = 0x01; // one layer, read-only
  write32(layer, 4, DVD_DATA_START);
  write32(layer, 8, Math.min(DVD_DATA_START + unit.blocks - 1, 0xffffff));
  return respond(task, withLength(layer), length);
}

function listOfStructures(): Uint8Array {
  return Uint8Array.from(
    [PHYSICAL_FORMAT, COPYRIGHT, MANUFACTURER].flatMap((format) => {
      const size = format === COPYRIGHT ? 8 : 2052;
      return [format, 0x40, size >> 8, size & 0xff]; // can be read
    }),
  );
}

function withLength(structure: Uint8Array): Uint8Array {
  const data = new Uint8Array(4 + structure.length);
  write16(data, 0, data.length - 2);
  data.set(structure, 4);
  return data;
}
