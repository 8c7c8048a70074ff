import type { ErrorCode } from '../../formats/core/errors.ts';
import { codeOf } from '../../formats/core/errors.ts';
import { read32, write16, write32, write64 } from './bytes.ts';

/** Sense keys, additional sense codes and qualifiers (SPC-4 section 4.5.6), packed as key << 16 | asc << 8 | ascq. */
export const NO_SENSE = 0x00_00_00;
export const NOT_READY = 0x02_04_00;
export const NOT_READY_MANUAL_INTERVENTION = 0x02_04_03;
export const SANITIZE_IN_PROGRESS = 0x02_04_1b;
export const MEDIUM_NOT_PRESENT = 0x02_3a_00;
export const WRITE_ERROR = 0x03_0c_00;
export const UNRECOVERED_READ_ERROR = 0x03_11_00;
export const SANITIZE_FAILED = 0x03_31_03;
export const LOGICAL_UNIT_FAILURE = 0x04_3e_01;
export const INTERNAL_TARGET_FAILURE = 0x04_44_00;
export const PARAMETER_LIST_LENGTH_ERROR = 0x05_1a_00;
export const INVALID_OPCODE = 0x05_20_00;
export const LBA_OUT_OF_RANGE = 0x05_21_00;
export const INVALID_FIELD_IN_CDB = 0x05_24_00;
export const LOGICAL_UNIT_NOT_SUPPORTED = 0x05_25_00;
export const INVALID_FIELD_IN_PARAMETER_LIST = 0x05_26_00;
export const INVALID_RELEASE = 0x05_26_04;
export const TOO_MANY_TARGET_DESCRIPTORS = 0x05_26_06;
export const UNSUPPORTED_TARGET_DESCRIPTOR = 0x05_26_07;
export const TOO_MANY_SEGMENT_DESCRIPTORS = 0x05_26_08;
export const UNSUPPORTED_SEGMENT_DESCRIPTOR = 0x05_26_09;
export const INLINE_DATA_LENGTH_EXCEEDED = 0x05_26_0b;
export const INCOMPATIBLE_FORMAT = 0x05_30_02;
export const SAVING_NOT_SUPPORTED = 0x05_39_00;
export const INVALID_MESSAGE = 0x05_49_00;
export const MEDIUM_REMOVAL_PREVENTED = 0x05_53_02;
export const INSUFFICIENT_RESOURCES = 0x05_55_03;
export const INSUFFICIENT_REGISTRATION_RESOURCES = 0x05_55_04;
export const MEDIUM_MAY_HAVE_CHANGED = 0x06_28_00;
export const POWER_ON_OR_RESET = 0x06_29_00;
export const POWER_ON = 0x06_29_01;
export const BUS_RESET = 0x06_29_02;
export const DEVICE_RESET = 0x06_29_03;
export const MODE_PARAMETERS_CHANGED = 0x06_2a_01;
export const RESERVATIONS_PREEMPTED = 0x06_2a_03;
export const RESERVATIONS_RELEASED = 0x06_2a_04;
export const REGISTRATIONS_PREEMPTED = 0x06_2a_05;
export const CAPACITY_CHANGED = 0x06_2a_09;
export const COMMANDS_CLEARED = 0x06_2f_00;
export const REPORTED_LUNS_CHANGED = 0x06_3f_0e;
export const WRITE_PROTECTED = 0x07_27_00;
export const SPACE_ALLOCATION_FAILED = 0x07_27_07;
export const COPY_ABORTED = 0x0a_00_00;
export const COPY_THIRD_PARTY_FAILURE = 0x0a_0d_01;
export const COPY_DEVICE_NOT_REACHABLE = 0x0a_0d_02;
export const COMMAND_ABORTED = 0x0b_00_00;
export const COMMUNICATION_FAILURE = 0x0b_08_00;
export const COMMUNICATION_TIMEOUT = 0x0b_08_01;
export const MISCOMPARE = 0x0e_1d_00;

/** Sense data of an error that happened after its command had ended with GOOD (IMMED). Added to a packed code. */
export const DEFERRED = 0x1_00_00_00;

/** The most sense data that this device server returns, bytes. */
export const MAX_SENSE_LENGTH = 252;

interface ErrorSense {
  /** While reading, or where the direction does not matter. */
  readonly read: number;
  readonly write: number;
}

const both = (sense: number): ErrorSense => ({ read: sense, write: sense });

/** What the initiator is told when the image fails: the only translation of error codes to sense. */
export const ERROR_SENSE: Readonly<Record<ErrorCode, ErrorSense>> = {
  BAD_MAGIC: both(INTERNAL_TARGET_FAILURE),
  BAD_HEADER: both(INTERNAL_TARGET_FAILURE),
  TRUNCATED: { read: UNRECOVERED_READ_ERROR, write: WRITE_ERROR },
  UNSUPPORTED: both(INTERNAL_TARGET_FAILURE),
  CORRUPT: { read: UNRECOVERED_READ_ERROR, write: WRITE_ERROR },
  PARENT_MISMATCH: both(INTERNAL_TARGET_FAILURE),
  DENIED: both(INTERNAL_TARGET_FAILURE),
  ENCRYPTED: both(INTERNAL_TARGET_FAILURE),
  NOT_FOUND: both(LOGICAL_UNIT_FAILURE),
  EXISTS: both(INTERNAL_TARGET_FAILURE),
  ACCESS: both(LOGICAL_UNIT_FAILURE),
  NO_SPACE: both(SPACE_ALLOCATION_FAILED),
  IO: { read: UNRECOVERED_READ_ERROR, write: WRITE_ERROR },
  TOO_LARGE: { read: INTERNAL_TARGET_FAILURE, write: SPACE_ALLOCATION_FAILED },
  LOCKED: both(NOT_READY),
  READ_ONLY: both(WRITE_PROTECTED),
  OUT_OF_RANGE: both(LBA_OUT_OF_RANGE),
  INVALID: both(INTERNAL_TARGET_FAILURE),
  CLOSED: both(NOT_READY_MANUAL_INTERVENTION),
  ABORTED: both(COMMAND_ABORTED),
  // A storage over a network: initiators try again after ABORTED COMMAND.
  TIMEOUT: both(COMMUNICATION_TIMEOUT),
  PROTOCOL: both(COMMUNICATION_FAILURE),
  AUTH: both(LOGICAL_UNIT_FAILURE),
  LIMIT: both(INSUFFICIENT_RESOURCES),
  DISCONNECTED: both(COMMUNICATION_FAILURE),
  UNAVAILABLE: both(LOGICAL_UNIT_FAILURE),
  USAGE: both(INTERNAL_TARGET_FAILURE),
  INTERNAL: both(INTERNAL_TARGET_FAILURE),
};

/** What goes into sense data beside the code. */
export interface SenseDetails {
  /** INFORMATION field: an LBA, or the offset of a miscompare. */
  readonly information?: number | undefined;
  /** Progress of 0 to 65535, of what the unit is busy with. */
  readonly progress?: number | undefined;
  /** The byte at fault of an INVALID FIELD: in the CDB, or in the parameter list. */
  readonly field?:
    | { readonly in: 'cdb' | 'data'; readonly byte: number; readonly bit?: number | undefined }
    | undefined;
}

/** Ends a command with CHECK CONDITION. Thrown by what parses and judges a command; never leaves the device server. */
export class CheckCondition extends Error {
  readonly sense: number;
  readonly details: SenseDetails;

  constructor(sense: number, details: SenseDetails = {}) {
    super(`CHECK CONDITION ${sense.toString(16).padStart(6, '0')}`);
    this.sense = sense;
    this.details = details;
  }
}

/** INVALID FIELD IN CDB, pointing at a byte and perhaps the highest bit of the field in it. */
export function invalidField(byte: number, bit?: number): CheckCondition {
  return new CheckCondition(INVALID_FIELD_IN_CDB, { field: { in: 'cdb', byte, bit } });
}

/** INVALID FIELD IN PARAMETER LIST, pointing at a byte of the data-out buffer. */
export function invalidParameter(byte: number, bit?: number): CheckCondition {
  return new CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST, { field: { in: 'data', byte, bit } });
}

/** The CheckCondition for whatever a handler or the image threw. */
export function asCheckCondition(error: unknown, writing: boolean): CheckCondition {
  if (error instanceof CheckCondition) return error;
  const row = ERROR_SENSE[codeOf(error)];
  return new CheckCondition(writing ? row.write : row.read);
}

/**
 * Writes sense data (SPC-4 section 4.5): 18 bytes of fixed format, or descriptor format.
 *
 * @param out at least 40 bytes
 * @returns the length
 */
export function writeSense(out: Uint8Array, sense: number, descriptor: boolean, details: SenseDetails = {}): number {
  const deferred = sense >= DEFERRED ? 1 : 0;
  const key = (sense >> 16) & 0x0f;
  const { information, field, progress } = details;
  out.fill(0, 0, 40);

  let specific = 0;
  let pointer = 0;
  if (field !== undefined) {
    const bit = field.bit === undefined ? 0 : 0x08 | field.bit;
    specific = 0x80 | (field.in === 'cdb' ? 0x40 : 0) | bit;
    pointer = Math.min(field.byte, 0xffff);
  } else if (progress !== undefined) {
    specific = 0x80;
    pointer = progress;
  }

  if (!descriptor) {
    out[0] = 0x70 | deferred;
    // INFORMATION has 32 bits here; a larger value is left out and VALID stays 0.
    if (information !== undefined && information <= 0xffffffff) {
      out[0] |= 0x80;
      write32(out, 3, information);
    }
    out[2] = key;
    out[7] = 10;
    write16(out, 12, sense & 0xffff);
    if (specific !== 0) {
      out[15] = specific;
      write16(out, 16, pointer);
    }
    return 18;
  }

  out[0] = 0x72 | deferred;
  out[1] = key;
  write16(out, 2, sense & 0xffff);
  let end = 8;
  if (information !== undefined) {
    out[end] = 0x00;
    out[end + 1] = 0x0a;
    out[end + 2] = 0x80;
    write64(out, end + 4, information);
    end += 12;
  }
  if (specific !== 0) {
    out[end] = 0x02;
    out[end + 1] = 0x06;
    out[end + 4] = specific;
    write16(out, end + 5, pointer);
    end += 8;
  }
  out[7] = end - 8;
  return end;
}

/** Reads back key, asc and ascq from sense data of either format, packed; undefined when it is none. For logs and tests. */
export function parseSense(sense: Uint8Array): number | undefined {
  const format = (sense[0] ?? 0) & 0x7f;
  if ((format === 0x70 || format === 0x71) && sense.length >= 14)
    return (((sense[2] as number) & 0x0f) << 16) | (read32(sense, 10) & 0xffff);
  if ((format === 0x72 || format === 0x73) && sense.length >= 8)
    return (((sense[1] as number) & 0x0f) << 16) | (((sense[2] as number) << 8) | (sense[3] as number));
  return undefined;
}
