import { read32, write16, write32 } from './bytes.ts';
import type { Outcome } from './command.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

/** The one target port group there is. */
export const TARGET_PORT_GROUP = 1;

const EXTENDED_HEADER = 0x20;

/** REPORT TARGET PORT GROUPS (SPC-4 section 6.37): all ports in one group, active/optimized, which never changes. */
export function reportTargetPortGroups(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { ports } = unit.surroundings;
  const extended = ((task.cdb[1] as number) & 0xe0) === EXTENDED_HEADER;
  const header = extended ? 8 : 4;
  const data = new Uint8Array(header + 8 + ports.length * 4);
  write32(data, 0, data.length - 4);
  if (extended) data[4] = 0x10; // format; IMPLICIT TRANSITION TIME 0
  data[header] = 0x80; // PREF, active/optimized
  data[header + 1] = 0x01; // AO_SUP
  write16(data, header + 2, TARGET_PORT_GROUP);
  data[header + 7] = ports.length;
  ports.forEach((port, index) => write16(data, header + 8 + index * 4 + 2, port.id));
  return respond(task, data, read32(task.cdb, 6));
}
