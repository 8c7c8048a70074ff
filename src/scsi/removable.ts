import type { Outcome } from './command.ts';
import { asCheckCondition, CheckCondition, MEDIUM_NOT_PRESENT, MEDIUM_REMOVAL_PREVENTED } from './sense.ts';
import type { ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';

const IMMED = 0x01; // byte 1
const NO_FLUSH = 0x04; // byte 4
const LOEJ = 0x02;
const START = 0x01;

/** START STOP UNIT (SBC-3 section 5.23): flushes; LOEJ ejects and loads a removable medium. */
export function startStopUnit(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  const flags = cdb[4] as number;
  // With a power condition START and LOEJ do not count; a virtual disk draws the same power in all of them.
  const powerCondition = flags >> 4;
  if (powerCondition === 0 && (flags & START) !== 0) {
    if ((flags & LOEJ) !== 0 && unit.removable && !unit.mediumPresent) {
      if (unit.removalPrevented) throw new CheckCondition(MEDIUM_REMOVAL_PREVENTED); // the tray is locked either way
      if (!unit.load(task.nexus)) throw new CheckCondition(MEDIUM_NOT_PRESENT);
    }
    return undefined;
  }
  const ejecting = powerCondition === 0 && (flags & LOEJ) !== 0 && unit.removable;
  if (ejecting && unit.removalPrevented) throw new CheckCondition(MEDIUM_REMOVAL_PREVENTED);
  if (!unit.mediumPresent) return undefined;
  if ((flags & NO_FLUSH) !== 0 || unit.image.readOnly) {
    if (ejecting) unit.eject();
    return undefined;
  }
  if (((cdb[1] as number) & IMMED) === 0) return flushThen(unit, ejecting);
  // Answered now, so the medium is on its way out for the next command already; what cannot be flushed comes back in.
  if (ejecting) unit.eject();
  unit.inBackground(task.nexus, unit.image.flush(), (error) => {
    if (ejecting) unit.load(task.nexus);
    return asCheckCondition(error, true).sense;
  });
  return undefined;
}

async function flushThen(unit: LogicalUnit, ejecting: boolean): Promise<void> {
  await unit.image.flush();
  if (!ejecting) return;
  // PREVENT may have come meanwhile.
  if (unit.removalPrevented) throw new CheckCondition(MEDIUM_REMOVAL_PREVENTED);
  unit.eject();
}

/** PREVENT ALLOW MEDIUM REMOVAL: counts per nexus; one that prevents is enough. */
export function preventAllowMediumRemoval(unit: LogicalUnit, task: ScsiTask): Outcome {
  unit.attentions.of(task.nexus).preventsRemoval = preventField(task.cdb) !== 0;
  return undefined;
}

export function preventField(cdb: Uint8Array): number {
  return (cdb[4] as number) & 0x01;
}
