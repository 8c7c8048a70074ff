import type { Outcome } from './command.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';

/** RESERVE(6) and RESERVE(10) of SPC-2: the whole unit, for the nexus that asks. Third parties and extents are obsolete. */
export function reserve(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseThirdParty(task.cdb);
  unit.reservations.reserve6(task.nexus);
  return undefined;
}

/** RELEASE(6) and RELEASE(10): GOOD without effect for who does not hold it. */
export function release(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseThirdParty(task.cdb);
  unit.reservations.release6(task.nexus);
  return undefined;
}

function refuseThirdParty(cdb: Uint8Array): void {
  const flags = cdb[1] as number;
  if ((flags & 0x10) !== 0) throw invalidField(1, 4); // 3RDPTY
  if ((flags & 0x01) !== 0) throw invalidField(1, 0); // EXTENT
}
