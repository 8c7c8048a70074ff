import { read16, write16, writeText } from './bytes.ts';
import type { Outcome } from './command.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond, type Surroundings } from './unit.ts';
import { supportedPages, vitalProductData } from './vital-product-data.ts';

/** SPC-4: what VERSION says. */
const VERSION_SPC4 = 0x06;
const STANDARD_LENGTH = 96;
/** SAM-5, SPC-4, SBC-3 or MMC-6, without a revision (SPC-4 table 147). */
const DISK_VERSIONS = [0x00a0, 0x0460, 0x04c0];
const OPTICAL_VERSIONS = [0x00a0, 0x0460, 0x04e0];
/** Peripheral device type of a CD or DVD drive; a disk is 0. */
const TYPE_OPTICAL = 0x05;

/** INQUIRY (SPC-4 section 6.6). */
export function inquiry(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  const length = read16(cdb, 3);
  if (((cdb[1] as number) & 0x01) === 0) {
    if (cdb[2] !== 0) throw invalidField(2);
    return respond(task, standardData(unit), length);
  }
  const page = vitalProductData(unit, cdb[2] as number);
  if (page === undefined) throw invalidField(2);
  if (unit.optical) page[0] = TYPE_OPTICAL;
  return respond(task, page, length);
}

/** INQUIRY to a LUN without a unit: the answer says that there is none. */
export function inquiryOfAbsentUnit(task: ScsiTask): Outcome {
  const { cdb } = task;
  const pages = ((cdb[1] as number) & 0x01) !== 0;
  if (cdb[2] !== 0) throw invalidField(2);
  const data = pages ? supportedPages([0x00]) : new Uint8Array(36);
  if (!pages) {
    data[2] = VERSION_SPC4;
    data[3] = 0x02;
    data[4] = data.length - 5;
    data[7] = 0x02;
    writeText(data, 8, 8, 'LUNETTE');
    writeText(data, 16, 16, '');
    writeText(data, 32, 4, '');
  }
  data[0] = 0x7f; // qualifier 011b: not capable of supporting a unit here; type 1Fh: unknown
  return respond(task, data, read16(cdb, 3));
}

function standardData(unit: LogicalUnit): Uint8Array {
  const { identity, surroundings } = unit;
  const data = new Uint8Array(STANDARD_LENGTH);
  data[0] = unit.optical ? TYPE_OPTICAL : 0;
  data[1] = unit.removable ? 0x80 : 0;
  data[2] = VERSION_SPC4;
  data[3] = 0x12; // HISUP, response data format 2
  data[4] = STANDARD_LENGTH - 5;
  // TPGS: implicit, unless the ports are somebody else's and not known here; 3PC: EXTENDED COPY.
  data[5] = (surroundings.ports.length > 0 ? 0x10 : 0) | (unit.optical ? 0 : 0x08);
  data[6] = surroundings.ports.length > 1 ? 0x10 : 0; // MULTIP
  data[7] = 0x02; // CMDQUE
  writeText(data, 8, 8, identity.vendor);
  writeText(data, 16, 16, identity.product);
  writeText(data, 32, 4, identity.revision);
  versions(unit.optical, surroundings).forEach((version, index) => write16(data, 58 + index * 2, version));
  return data;
}

function versions(optical: boolean, surroundings: Surroundings): number[] {
  return [...(optical ? OPTICAL_VERSIONS : DISK_VERSIONS), ...surroundings.transportVersions].slice(0, 8);
}
