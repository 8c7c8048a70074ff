import { IoVec } from '../../formats/core/iov.ts';
import { WRITES } from './access.ts';
import { read16, read32, read64, write16, write32 } from './bytes.ts';
import type { Outcome } from './command.ts';
import {
  BLOCK_TO_BLOCK,
  COPY_DESCRIPTOR_TYPES,
  IDENTIFICATION_DESCRIPTOR,
  MAX_COPY_SEGMENT,
  MAX_DESCRIPTOR_LIST,
  MAX_SEGMENT_DESCRIPTORS,
  MAX_TARGET_DESCRIPTORS,
} from './copy-limits.ts';
import {
  CheckCondition,
  COPY_ABORTED,
  COPY_DEVICE_NOT_REACHABLE,
  COPY_THIRD_PARTY_FAILURE,
  INLINE_DATA_LENGTH_EXCEEDED,
  invalidField,
  invalidParameter,
  PARAMETER_LIST_LENGTH_ERROR,
  TOO_MANY_SEGMENT_DESCRIPTORS,
  TOO_MANY_TARGET_DESCRIPTORS,
  UNSUPPORTED_SEGMENT_DESCRIPTOR,
  UNSUPPORTED_TARGET_DESCRIPTOR,
  WRITE_PROTECTED,
} from './sense.ts';
import type { ScsiTask } from './task.ts';
import { type LogicalUnit, respond } from './unit.ts';

const HEADER = 16;
const TARGET_LENGTH = 32;
const SEGMENT_LENGTH = 28;
/** Names the unit that got the command (SPC-4 table 122). */
const THIS_UNIT = 0xffff;
/** LIST ID USAGE: the initiator does not ask for results. */
const NO_LIST_ID = 3;

/** Data is copied in pieces of this size. */
const CHUNK = 1024 * 1024;
/** Results of the last copies, for RECEIVE COPY RESULTS. */
const MAX_RESULTS = 32;
/**
 * For so long, ms, they are kept. SPC-4 leaves the time to the device. Where the transport does not say who sent a command, as TCMU, another
 * initiator that has chosen the same list identifier would be told of a copy that it never asked for.
 */
const KEEP_RESULTS = 30_000;

interface Segment {
  readonly source: LogicalUnit;
  readonly target: LogicalUnit;
  readonly sourceOffset: number;
  readonly targetOffset: number;
  readonly length: number;
}

/** EXTENDED COPY(LID1) (SPC-4 section 6.4): block device to block device, among the units of this target. */
export function extendedCopy(unit: LogicalUnit, task: ScsiTask): Outcome {
  const length = read32(task.cdb, 10);
  if (length === 0) return undefined;
  const most = HEADER + MAX_DESCRIPTOR_LIST;
  if (length < HEADER || length > most || task.dataOut.byteLength < length)
    throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  task.transferLength = length;
  const list = task.dataOut.contiguous().subarray(0, length);
  const segments = parseSegments(unit, task, list);
  const listId = (((list[1] as number) >> 3) & 0x03) === NO_LIST_ID ? -1 : (list[0] as number);
  return copySegments(unit, task, segments, listId);
}

/** Judges the whole list before anything is copied. */
function parseSegments(unit: LogicalUnit, task: ScsiTask, list: Uint8Array): Segment[] {
  const targetsLength = read16(list, 2);
  const segmentsLength = read32(list, 8);
  if (read32(list, 12) !== 0) throw new CheckCondition(INLINE_DATA_LENGTH_EXCEEDED);
  if (targetsLength % TARGET_LENGTH !== 0) throw invalidParameter(2);
  if (targetsLength / TARGET_LENGTH > MAX_TARGET_DESCRIPTORS) throw new CheckCondition(TOO_MANY_TARGET_DESCRIPTORS);
  if (HEADER + targetsLength + segmentsLength > list.length) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);

  for (let at = HEADER; at < HEADER + targetsLength; at += TARGET_LENGTH) {
    if (list[at] !== IDENTIFICATION_DESCRIPTOR)
      throw new CheckCondition(UNSUPPORTED_TARGET_DESCRIPTOR, { field: { in: 'data', byte: at } });
  }

  const segments: Segment[] = [];
  const end = HEADER + targetsLength + segmentsLength;
  for (let at = HEADER + targetsLength; at < end; ) {
    if (segments.length === MAX_SEGMENT_DESCRIPTORS) throw new CheckCondition(TOO_MANY_SEGMENT_DESCRIPTORS);
    if (list[at] !== BLOCK_TO_BLOCK)
      throw new CheckCondition(UNSUPPORTED_SEGMENT_DESCRIPTOR, { field: { in: 'data', byte: at } });
    if (at + SEGMENT_LENGTH > end) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
    if (read16(list, at + 2) !== SEGMENT_LENGTH - 4) throw invalidParameter(at + 2);
    segments.push(parseSegment(unit, task, list, at, targetsLength));
    at += SEGMENT_LENGTH;
  }
  return segments;
}

/** An identification descriptor that a segment uses: names a unit by its NAA designator. */
function parseTarget(unit: LogicalUnit, list: Uint8Array, at: number): LogicalUnit {
  const codeSet = (list[at + 4] as number) & 0x0f;
  const kind = (list[at + 5] as number) & 0x3f; // association and designator type
  const length = list[at + 7] as number;
  // LU ID TYPE is obsolete for designators: whatever it says, the designator names the unit.
  if (codeSet !== 1 || kind !== 3 || length > 20)
    throw new CheckCondition(COPY_DEVICE_NOT_REACHABLE, { field: { in: 'data', byte: at } });
  const named = unit.surroundings.unitByNaa(list.subarray(at + 8, at + 8 + length));
  if (named === undefined) throw new CheckCondition(COPY_DEVICE_NOT_REACHABLE);
  const blockSize = ((list[at + 29] as number) << 16) | read16(list, at + 30);
  if (blockSize !== 0 && blockSize !== named.blockSize) throw invalidParameter(at + 29);
  return named;
}

function parseSegment(unit: LogicalUnit, task: ScsiTask, list: Uint8Array, at: number, targetsLength: number): Segment {
  const find = (field: number): LogicalUnit => {
    const index = read16(list, field);
    if (index === THIS_UNIT) return unit;
    if (index * TARGET_LENGTH >= targetsLength)
      throw new CheckCondition(COPY_ABORTED, { field: { in: 'data', byte: field } });
    return parseTarget(unit, list, HEADER + index * TARGET_LENGTH);
  };
  const source = find(at + 4);
  const target = find(at + 6);
  // DC: the count is in blocks of the destination.
  const blockSize = ((list[at + 1] as number) & 0x02) !== 0 ? target.blockSize : source.blockSize;
  const length = read16(list, at + 10) * blockSize;
  if (length > MAX_COPY_SEGMENT) throw invalidParameter(at + 10);
  // CAT and padding are for lengths that do not fit both block sizes: such copies are refused.
  if (length % source.blockSize !== 0 || length % target.blockSize !== 0) throw invalidParameter(at + 10);
  const segment = {
    source,
    target,
    sourceOffset: offsetOf(source, read64(list, at + 12), length),
    targetOffset: offsetOf(target, read64(list, at + 20), length),
    length,
  };
  if (target.writeProtected) throw new CheckCondition(WRITE_PROTECTED);
  for (const other of [source, target]) {
    if (other === unit) continue;
    if (!other.mediumPresent || other.reservations.conflicts(task.nexus, WRITES, false))
      throw new CheckCondition(COPY_THIRD_PARTY_FAILURE);
  }
  return segment;
}

function offsetOf(unit: LogicalUnit, lba: number, length: number): number {
  const blocks = length / unit.blockSize;
  if (blocks > unit.blocks - lba) throw new CheckCondition(COPY_ABORTED, { information: lba });
  return lba * unit.blockSize;
}

async function copySegments(unit: LogicalUnit, task: ScsiTask, segments: Segment[], listId: number): Promise<void> {
  let done = 0;
  let bytes = 0;
  const memory = new Uint8Array(Math.min(CHUNK, Math.max(0, ...segments.map((segment) => segment.length))));
  try {
    for (const segment of segments) {
      for (let at = 0; at < segment.length && !task.aborted; at += memory.length) {
        const piece = IoVec.of(memory, 0, Math.min(memory.length, segment.length - at));
        await segment.source.image.readv(segment.sourceOffset + at, piece);
        await segment.target.image.writev(segment.targetOffset + at, piece);
        bytes += piece.byteLength;
      }
      done++;
    }
    for (const target of new Set(segments.map((segment) => segment.target)))
      if (target.writeThrough) await target.image.flush();
  } finally {
    if (listId >= 0) {
      const failed = done < segments.length || task.aborted;
      remember(unit, { nexusId: task.nexus.id, listId, failed, segments: done, bytes, ended: performance.now() });
    }
  }
}

function remember(unit: LogicalUnit, result: LogicalUnit['copyResults'][number]): void {
  const results = unit.copyResults;
  const same = results.findIndex((other) => other.nexusId === result.nexusId && other.listId === result.listId);
  if (same >= 0) results.splice(same, 1);
  results.push(result);
  if (results.length > MAX_RESULTS) results.shift();
}

/** RECEIVE COPY STATUS(LID1): how a copy of this nexus ended. EXTENDED COPY ends with its copy, so none is in progress. */
export function copyStatus(unit: LogicalUnit, task: ScsiTask): Outcome {
  const { cdb, nexus } = task;
  const listId = cdb[2] as number;
  const result = unit.copyResults.find((other) => other.nexusId === nexus.id && other.listId === listId);
  if (result === undefined || performance.now() - result.ended > KEEP_RESULTS) throw invalidField(2);
  const data = new Uint8Array(12);
  write32(data, 0, 8);
  data[4] = result.failed ? 0x02 : 0x01;
  write16(data, 5, result.segments);
  data[7] = 0x00; // transfer count in bytes
  write32(data, 8, result.bytes);
  return respond(task, data, read32(cdb, 10));
}

/** RECEIVE COPY OPERATING PARAMETERS. */
export function copyOperatingParameters(_unit: LogicalUnit, task: ScsiTask): Outcome {
  const data = new Uint8Array(44 + COPY_DESCRIPTOR_TYPES.length);
  write32(data, 0, data.length - 4);
  data[4] = 0x01; // SNLID: a list id is not needed
  write16(data, 8, MAX_TARGET_DESCRIPTORS);
  write16(data, 10, MAX_SEGMENT_DESCRIPTORS);
  write32(data, 12, MAX_DESCRIPTOR_LIST);
  write32(data, 16, MAX_COPY_SEGMENT);
  // No inline data, no held data, no stream devices: 20 to 31 stay 0.
  write16(data, 34, 1); // copies at a time, in all
  data[36] = 1;
  data[37] = 9; // granularity of data segments, as a power of two
  data[43] = COPY_DESCRIPTOR_TYPES.length;
  data.set(COPY_DESCRIPTOR_TYPES, 44);
  return respond(task, data, read32(task.cdb, 10));
}
