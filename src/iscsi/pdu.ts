/**
 * iSCSI PDUs on the wire: opcodes, flags and field offsets of the basic header segment (RFC 7143 section 11). Met per
 * request, so fields are read and written at fixed offsets on a kept DataView; nothing is decoded into objects.
 */

/** Length of the basic header segment, bytes. */
export const BHS_LENGTH = 48;
/** Most bytes of additional header segments: TotalAHSLength counts 4-byte words in one byte. */
export const MAX_AHS_LENGTH = 255 * 4;
/** Bytes of a header or data digest. */
export const DIGEST_LENGTH = 4;

// Opcodes of the initiator (section 11.2.1.2).
export const NOP_OUT = 0x00;
export const SCSI_COMMAND = 0x01;
export const TASK_MANAGEMENT_REQUEST = 0x02;
export const LOGIN_REQUEST = 0x03;
export const TEXT_REQUEST = 0x04;
export const DATA_OUT = 0x05;
export const LOGOUT_REQUEST = 0x06;
export const SNACK_REQUEST = 0x10;

// Opcodes of the target.
export const NOP_IN = 0x20;
export const SCSI_RESPONSE = 0x21;
export const TASK_MANAGEMENT_RESPONSE = 0x22;
export const LOGIN_RESPONSE = 0x23;
export const TEXT_RESPONSE = 0x24;
export const DATA_IN = 0x25;
export const LOGOUT_RESPONSE = 0x26;
export const R2T = 0x31;
export const ASYNC_MESSAGE = 0x32;
export const REJECT = 0x3f;

/** Immediate delivery, in byte 0. */
export const IMMEDIATE = 0x40;
export const OPCODE_MASK = 0x3f;

/** The last PDU of a sequence, in byte 1 of most PDUs. */
export const FINAL = 0x80;
/** Transit to the next stage: login. */
export const TRANSIT = 0x80;
/** Text goes on in the next PDU: login and text. */
export const CONTINUE = 0x40;

// Byte 1 of SCSI Command.
export const COMMAND_READ = 0x40;
export const COMMAND_WRITE = 0x20;
export const COMMAND_ATTRIBUTE = 0x07;

// Byte 1 of SCSI Response and Data-In.
export const RESIDUAL_OVERFLOW = 0x04;
export const RESIDUAL_UNDERFLOW = 0x02;
export const DATA_IN_STATUS = 0x01;

/** Initiator task tag and target transfer tag that mean "none". */
export const NO_TAG = 0xffffffff;

// Field offsets. Fields of the same name are at the same place in all PDUs that have them.
export const AT_FLAGS = 1;
export const AT_AHS_LENGTH = 4;
export const AT_LUN = 8;
export const AT_ITT = 16;
export const AT_TTT = 20;
/** Expected data transfer length: SCSI Command. */
export const AT_EXPECTED_LENGTH = 20;
/** Referenced task tag: task management. */
export const AT_REFERENCED_TAG = 20;
/** Connection id: login, logout. */
export const AT_CID = 20;
export const AT_CMD_SN = 24;
export const AT_STAT_SN = 24;
/** ExpStatSN in requests, ExpCmdSN in responses. */
export const AT_EXP_SN = 28;
export const AT_MAX_CMD_SN = 32;
export const AT_CDB = 32;
/** Referenced CmdSN: task management. */
export const AT_REFERENCED_CMD_SN = 32;
/** DataSN of data PDUs, R2TSN, ExpDataSN of a SCSI Response. */
export const AT_DATA_SN = 36;
export const AT_BUFFER_OFFSET = 40;
export const AT_RESIDUAL = 44;
export const AT_DESIRED_LENGTH = 44;

// Reasons of Reject (section 11.17.1).
export const REJECT_DATA_DIGEST = 0x02;
export const REJECT_SNACK = 0x03;
export const REJECT_PROTOCOL_ERROR = 0x04;
export const REJECT_COMMAND_NOT_SUPPORTED = 0x05;
export const REJECT_TOO_MANY_IMMEDIATE = 0x06;
export const REJECT_TASK_IN_PROGRESS = 0x07;
export const REJECT_INVALID_FIELD = 0x09;
export const REJECT_OUT_OF_RESOURCES = 0x0a;
export const REJECT_WAITING_FOR_LOGOUT = 0x0c;

// Events of Asynchronous Message (section 11.9.1).
export const ASYNC_LOGOUT_REQUEST = 1;

/** Length of the data segment, from the three bytes at offset 5. */
export function dataSegmentLength(view: DataView, at: number): number {
  return view.getUint32(at + 4) & 0xffffff;
}

/** Rounds up to the 4 bytes that segments are padded to. */
export function padded(length: number): number {
  return (length + 3) & ~3;
}

/** True when serial number `a` is before `b` (RFC 1982, 32 bits). */
export function serialBefore(a: number, b: number): boolean {
  return ((a - b) | 0) < 0;
}
