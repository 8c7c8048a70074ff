import { IoVec } from '../../formats/core/iov.ts';
import { read16, read32, read64 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { checkRange } from './read-write.ts';
import { asCheckCondition } from './sense.ts';
import type { ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';

const IMMED = 0x02;

export function synchronizeCache10(unit: LogicalUnit, task: ScsiTask): Outcome {
  return synchronize(unit, task, read32(task.cdb, 2), read16(task.cdb, 7));
}

export function synchronizeCache16(unit: LogicalUnit, task: ScsiTask): Outcome {
  return synchronize(unit, task, read64(task.cdb, 2), read32(task.cdb, 10));
}

/** The range only has to exist: all that was written becomes durable. With IMMED a failure follows as a deferred error. */
function synchronize(unit: LogicalUnit, task: ScsiTask, lba: number, blocks: number): Outcome {
  checkRange(unit, lba, blocks);
  if (unit.image.readOnly) return undefined;
  const flushed = unit.image.flush();
  if (((task.cdb[1] as number) & IMMED) === 0) return flushed;
  unit.inBackground(task.nexus, flushed, (error) => asCheckCondition(error, true).sense);
  return undefined;
}

/** What one PRE-FETCH reads at most: a hint must not take the disk for long. */
const MAX_PREFETCH = 4 * 1024 * 1024;
const CHUNK = 256 * 1024;

export function prefetch10(unit: LogicalUnit, task: ScsiTask): Outcome {
  return prefetch(unit, task, read32(task.cdb, 2), read16(task.cdb, 7));
}

export function prefetch16(unit: LogicalUnit, task: ScsiTask): Outcome {
  return prefetch(unit, task, read64(task.cdb, 2), read32(task.cdb, 10));
}

/** Reads the beginning of the range, so that caches hold it. 0 blocks: up to the end of the medium. */
function prefetch(unit: LogicalUnit, task: ScsiTask, lba: number, blocks: number): Outcome {
  checkRange(unit, lba, blocks);
  const length = (blocks === 0 ? unit.blocks - lba : blocks) * unit.blockSize;
  const reading = readAhead(unit, task, lba * unit.blockSize, Math.min(length, MAX_PREFETCH));
  if (((task.cdb[1] as number) & IMMED) === 0) return reading;
  // Nothing was promised: a failure shows when the blocks are read.
  unit.inBackground(
    task.nexus,
    reading.catch(() => undefined),
    () => 0,
  );
  return undefined;
}

async function readAhead(unit: LogicalUnit, task: ScsiTask, offset: number, length: number): Promise<void> {
  const memory = new Uint8Array(Math.min(length, CHUNK));
  for (let at = 0; at < length && !task.aborted; at += memory.length)
    await unit.image.readv(offset + at, IoVec.of(memory, 0, Math.min(memory.length, length - at)));
}
