import type { Outcome } from './command.ts';
import { CheckCondition, invalidField, MEDIUM_NOT_PRESENT, SANITIZE_FAILED, SANITIZE_IN_PROGRESS } from './sense.ts';
import type { ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';

const IMMED = 0x80;
const ZNR = 0x40;
const AUSE = 0x20;

/** Done in pieces of this size, so that progress shows and other units get their turn. */
const STEP = 64 * 1024 * 1024;

/**
 * SANITIZE, BLOCK ERASE (SBC-4 section 5.36): everything that the unit shows becomes zeros, and its space is given back. What the unit
 * does not show is not its medium: snapshots, backing images and the file system below keep their copies. OVERWRITE and CRYPTOGRAPHIC
 * ERASE are not offered: a virtual disk cannot say which of its old blocks were overwritten, and has no key to forget.
 */
export function sanitizeBlockErase(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  refuseReserved(cdb);
  const flags = cdb[1] as number;
  const { sanitize } = unit;
  // A sanitize that failed can be tried again: so "not ready" for that reason does not count here.
  if (!unit.mediumPresent) throw new CheckCondition(MEDIUM_NOT_PRESENT);
  if (sanitize.running) throw new CheckCondition(SANITIZE_IN_PROGRESS, { progress: sanitize.progress });
  sanitize.running = true;
  sanitize.failed = false;
  sanitize.unrestricted = (flags & AUSE) !== 0;
  sanitize.progress = 0;
  unit.readinessChanged();
  const done = eraseAll(unit);
  if ((flags & IMMED) === 0) return done;
  // A failure shows in the unit's state too: every command that needs the medium says so.
  unit.inBackground(task.nexus, done, () => SANITIZE_FAILED);
  return undefined;
}

/** Goes on to the end, whatever becomes of the task: a reset does not stop it. */
async function eraseAll(unit: LogicalUnit): Promise<void> {
  const { image, sanitize } = unit;
  const size = unit.blocks * unit.blockSize;
  try {
    for (let at = 0; at < size; at += STEP) {
      const length = Math.min(STEP, size - at);
      await image.writeZeroes(at, length, true);
      sanitize.progress = Math.min(0xffff, Math.floor(((at + length) / size) * 0x10000));
    }
    await image.flush();
  } catch (error) {
    sanitize.failed = true;
    throw error;
  } finally {
    sanitize.running = false;
    unit.readinessChanged();
  }
}

/** SANITIZE, EXIT FAILURE MODE: makes a unit usable after a SANITIZE that failed, if that one allowed it (AUSE). */
export function exitFailureMode(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseReserved(task.cdb);
  const { sanitize } = unit;
  if (sanitize.failed && !sanitize.unrestricted) throw invalidField(1, 4);
  sanitize.failed = false;
  unit.readinessChanged();
  return undefined;
}

/** Neither has parameters. For a command that destroys everything, reserved fields are read as a mistake. */
function refuseReserved(cdb: Uint8Array): void {
  if (((cdb[1] as number) & ZNR) !== 0) throw invalidField(1, 6);
  for (let byte = 2; byte <= 8; byte++) if (cdb[byte] !== 0) throw invalidField(byte);
}
