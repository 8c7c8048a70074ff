import type { IoVec } from '../../formats/core/iov.ts';

/** SAM-5 task attributes. */
export const SIMPLE = 0;
export const HEAD_OF_QUEUE = 1;
export const ORDERED = 2;
export const ACA = 4;
export type TaskAttribute = typeof SIMPLE | typeof HEAD_OF_QUEUE | typeof ORDERED | typeof ACA;

/**
 * One I_T nexus: an initiator port that talks to this target port. Reservations and unit attentions are kept per nexus.
 * The transport makes it at login and ends it with the session.
 */
export interface Nexus {
  /** Initiator port name as SPC's TransportID needs it, e.g. `iqn.1993-08.org.debian:01:abc,i,0x00023d000001`. Stable over logins. */
  readonly initiatorPort: string;
  /** TransportID of the initiator port (SPC-4 section 7.6.4), for PERSISTENT RESERVE IN. */
  readonly transportId: Uint8Array;
  /** Relative target port identifier, 1 and up. */
  readonly relativeTargetPort: number;
  /** Unique in the process, never reused: key of what the device server keeps per nexus. */
  readonly id: number;
}

/**
 * One SCSI command, whichever transport brought it: a slot that the transport owns and refills.
 *
 * How a command runs:
 * 1. The transport fills in nexus, lun, cdb, attribute, expectedLength, tag and calls DeviceServer.plan(task), which sets
 *    dataOutLength / dataInLength: how much the command moves at most by its CDB. For a malformed or refused command both are 0.
 * 2. It gathers min(expectedLength, dataOutLength) bytes into `dataOut`, or offers a `dataIn` of min(expectedLength, dataInLength) bytes.
 * 3. It calls DeviceServer.execute(task): undefined when the command has completed in this tick, else a promise of that (which never rejects).
 * 4. status, sense, dataInUsed are the outcome; residuals follow from expectedLength and transferLength.
 */
export interface ScsiTask {
  nexus: Nexus;
  /** Logical unit number, flat: 0 to 16383. */
  lun: number;
  /** Command descriptor block: at least 16 bytes long (shorter CDBs are zero-padded); longer for variable-length CDBs. */
  cdb: Uint8Array;
  attribute: TaskAttribute;
  /** Tag unique in the nexus while the task lives: for task management. */
  tag: number;
  /** Bytes the initiator expects to move (iSCSI EDTL), in the command's direction. */
  expectedLength: number;

  /** Set by plan(): bytes of parameter list or blocks that the CDB says come from the initiator. */
  dataOutLength: number;
  /** Set by plan(): most bytes that the command can return. */
  dataInLength: number;
  /** Data from the initiator; may be shorter than dataOutLength when the initiator expects to send less. */
  readonly dataOut: IoVec;
  /** Where data for the initiator goes; may be shorter than dataInLength. Not cleared by the transport: only the first dataInUsed bytes are sent. */
  readonly dataIn: IoVec;

  /** Outcome: SAM status byte. */
  status: number;
  /** Outcome: fixed-format or descriptor sense, senseLength bytes of it; capacity 252. */
  readonly sense: Uint8Array;
  senseLength: number;
  /** Outcome: bytes of dataIn that hold data; never more than dataIn.byteLength. */
  dataInUsed: number;
  /**
   * Outcome: bytes that the command would have moved given room (for over- and underflow): data-in length before cutting to dataIn, or
   * the data-out bytes that the command wanted.
   */
  transferLength: number;
  /** Set by task management: the outcome will not be sent; long loops look at it. */
  aborted: boolean;
}

/** SAM-5 status codes. */
export const GOOD = 0x00;
export const CHECK_CONDITION = 0x02;
export const CONDITION_MET = 0x04;
export const BUSY = 0x08;
export const RESERVATION_CONFLICT = 0x18;
export const TASK_SET_FULL = 0x28;
export const ACA_ACTIVE = 0x30;
export const TASK_ABORTED = 0x40;

/** Task management functions, numbered as in iSCSI (RFC 7143 section 11.5.1). */
export const ABORT_TASK = 1;
export const ABORT_TASK_SET = 2;
export const CLEAR_ACA = 3;
export const CLEAR_TASK_SET = 4;
export const LUN_RESET = 5;
export const TARGET_WARM_RESET = 6;
export const TARGET_COLD_RESET = 7;
export type TaskManagementFunction = 1 | 2 | 3 | 4 | 5 | 6 | 7;

/** Outcome of a task management function (values as in RFC 7143 section 11.6.1). */
export const TMF_COMPLETE = 0;
export const TMF_NO_TASK = 1;
export const TMF_NO_LUN = 2;
export const TMF_NOT_SUPPORTED = 5;
export const TMF_REJECTED = 255;

/** The SCSI target device as a transport sees it: routes tasks to logical units, answers REPORT LUNS, keeps nexus state. */
export interface DeviceServer {
  /** Sets task.dataOutLength and task.dataInLength from the CDB. Never throws. */
  plan(task: ScsiTask): void;
  /** Runs the command. Undefined: complete. Otherwise resolves when it is; never rejects. */
  execute(task: ScsiTask): Promise<void> | undefined;
  /**
   * Performs a task management function for a nexus; resolves after the affected tasks are quiesced (their `aborted` is set; their
   * execute() has ended).
   *
   * @param tag the referenced task of ABORT_TASK
   */
  manage(nexus: Nexus, lun: number, action: TaskManagementFunction, tag?: number): Promise<number>;
  /** The nexus is new (a login): it gets a POWER ON unit attention as the rules say. */
  attach(nexus: Nexus): void;
  /** The nexus is gone: aborts its tasks, drops RESERVE(6), keeps persistent reservations. Resolves when its tasks have ended. */
  detach(nexus: Nexus): Promise<void>;
}
