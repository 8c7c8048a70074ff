import { NO_MEDIA_EVENT } from './attention.ts';
import { read16, write16 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

/** Notification classes (MMC-6 section 6.7), as bits of the request and numbers of the answer. */
const OPERATIONAL_CHANGE = 1;
const POWER_MANAGEMENT = 2;
const MEDIA = 4;
const DEVICE_BUSY = 6;
const SUPPORTED = (1 << OPERATIONAL_CHANGE) | (1 << POWER_MANAGEMENT) | (1 << MEDIA) | (1 << DEVICE_BUSY);

const NO_EVENT_AVAILABLE = 0x80;
const POWER_ACTIVE = 1;
const MEDIA_PRESENT = 0x02;
const TRAY_OPEN = 0x01;

/** GET EVENT STATUS NOTIFICATION: what happened since this nexus asked; only by polling. */
export function getEventStatusNotification(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  if (((cdb[1] as number) & 0x01) === 0) throw invalidField(1, 0); // IMMED: not asynchronous
  const requested = (cdb[4] as number) & SUPPORTED;
  const length = read16(cdb, 7);
  if (requested === 0) return respond(task, Uint8Array.of(0, 2, NO_EVENT_AVAILABLE, SUPPORTED), length);
  const event = nextEvent(unit, task, requested, length > 4);
  const data = new Uint8Array(8);
  write16(data, 0, data.length - 2);
  data[2] = event.class;
  data[3] = SUPPORTED;
  data.set(event.bytes, 4);
  return respond(task, data, length);
}

/**
 * One event of the requested classes: one that happened, else the state of the first class.
 *
 * @param take the initiator has room for the event: it is told now and not again
 */
function nextEvent(
  unit: LogicalUnit,
  task: ScsiTask,
  requested: number,
  take: boolean,
): { class: number; bytes: number[] } {
  const state = unit.attentions.of(task.nexus);
  const wants = (number: number): boolean => (requested & (1 << number)) !== 0;
  if (wants(MEDIA) && (state.mediaEvent !== NO_MEDIA_EVENT || (requested & ((1 << MEDIA) - 1)) === 0)) {
    const bytes = [state.mediaEvent, unit.mediumPresent ? MEDIA_PRESENT : TRAY_OPEN, 0, 0];
    if (take) state.mediaEvent = NO_MEDIA_EVENT;
    return { class: MEDIA, bytes };
  }
  if (wants(OPERATIONAL_CHANGE)) return { class: OPERATIONAL_CHANGE, bytes: [0, 0, 0, 0] };
  if (wants(POWER_MANAGEMENT)) return { class: POWER_MANAGEMENT, bytes: [0, POWER_ACTIVE, 0, 0] };
  return { class: DEVICE_BUSY, bytes: [0, 0, 0, 0] };
}
