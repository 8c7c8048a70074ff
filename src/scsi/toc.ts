import { read16, write16, write32 } from './bytes.ts';
import type { Outcome } from './command.ts';
import { invalidField } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

/** The point that stands for the lead-out in a table of contents. */
const LEAD_OUT = 0xaa;
/** ADR 1 (a position), CONTROL 4 (a data track). */
const DATA_TRACK = 0x14;
const FRAMES = 75;
/** The two seconds before LBA 0. */
const PREGAP = 150;
/** What minutes, seconds and frames can say: a DVD has more. */
const LAST_FRAME = (256 * 60 - 1) * FRAMES + FRAMES - 1;

const FORMAT_TOC = 0;
const FORMAT_SESSIONS = 1;
const FORMAT_FULL_TOC = 2;

/** READ TOC/PMA/ATIP (MMC-6 section 6.25): one session with one data track, whatever the disc. */
export function readToc(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb } = task;
  const time = ((cdb[1] as number) & 0x02) !== 0; // MSF
  const start = cdb[6] as number;
  // SFF-8020 drives took the format from the control byte; systems still ask so.
  const format = (cdb[2] as number) & 0x0f || (cdb[9] as number) >> 6;
  const data = tableOf(unit, format, start, time);
  write16(data, 0, data.length - 2);
  return respond(task, data, read16(cdb, 7));
}

function tableOf(unit: LogicalUnit, format: number, start: number, time: boolean): Uint8Array {
  switch (format) {
    case FORMAT_TOC: {
      if (start > 1 && start !== LEAD_OUT) throw invalidField(6);
      const tracks = start === LEAD_OUT ? [] : [track(1, 0, time)];
      return list([...tracks, track(LEAD_OUT, unit.blocks, time)]);
    }
    case FORMAT_SESSIONS:
      return list([track(1, 0, time)]);
    case FORMAT_FULL_TOC: {
      if (start > 1) throw invalidField(6);
      // A0: the first track, A1: the last one, A2: the lead-out.
      const first = Uint8Array.of(1, DATA_TRACK, 0, 0xa0, 0, 0, 0, 0, 1, 0, 0);
      const last = Uint8Array.of(1, DATA_TRACK, 0, 0xa1, 0, 0, 0, 0, 1, 0, 0);
      return list([first, last, point(0xa2, unit.blocks), point(1, 0)]);
    }
    default:
      throw invalidField(2, 3);
  }
}

/** First and last track (or session) are 1. */
function list(descriptors: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat([Uint8Array.of(0, 0, 1, 1), ...descriptors]);
}

/** A track descriptor of formats 0 and 1. */
function track(number: number, block: number, time: boolean): Uint8Array {
  const data = Uint8Array.of(0, DATA_TRACK, number, 0, 0, 0, 0, 0);
  if (time) data.set(timeOf(block), 5);
  else write32(data, 4, block);
  return data;
}

function point(number: number, block: number): Uint8Array {
  return Uint8Array.of(1, DATA_TRACK, 0, number, 0, 0, 0, 0, ...timeOf(block));
}

/** Minute, second, frame of a block; the last there is for what lies behind. */
function timeOf(block: number): [number, number, number] {
  const frame = Math.min(block + PREGAP, LAST_FRAME);
  return [Math.floor(frame / (60 * FRAMES)), Math.floor(frame / FRAMES) % 60, frame % FRAMES];
}
