import type { Access } from './access.ts';
import type { ScsiTask } from './task.ts';
import type { LogicalUnit } from './unit.ts';

/** What a command handler gives back: nothing when the task has completed, else a promise of that. Both may throw CheckCondition. */
export type Outcome = Promise<void> | undefined;

export type Handler = (unit: LogicalUnit, task: ScsiTask) => Outcome;

/** Called per completed command. Must be quick and must not throw. */
export type CommandObserver = (
  opcode: number,
  status: number,
  bytesIn: number,
  bytesOut: number,
  latencyMs: number,
) => void;

/** How plan() finds the lengths of a command's data. */
export const NO_DATA = 0;
/** Blocks to the initiator: as many as the length field says. */
export const BLOCKS_IN = 1;
/** Blocks from the initiator. */
export const BLOCKS_OUT = 2;
/** Parameter data to the initiator; the field is an allocation length. */
export const PARAMETER_IN = 3;
/** A parameter list from the initiator; the field is its length. */
export const PARAMETER_OUT = 4;
/** Blocks from the initiator, found by `blocksOut`. */
export const COUNTED_OUT = 5;
export type DataForm = 0 | 1 | 2 | 3 | 4 | 5;

/** Response data is never longer than this, whatever the allocation length; bytes. */
export const MAX_PARAMETER_IN = 256 * 1024;
/** Parameter lists that are longer are refused; bytes. */
export const MAX_PARAMETER_OUT = 64 * 1024;

/** One command of the table in opcodes.ts. */
export interface Command {
  readonly opcode: number;
  /** -1: the opcode alone says it. */
  readonly serviceAction: number;
  readonly name: string;
  /** CDB usage data (SPC-4 section 6.30.3): the opcode, then a bit for each that this device server evaluates. */
  readonly usage: Uint8Array;
  readonly form: DataForm;
  /** Where the length is in the CDB, and in how many bytes. */
  readonly lengthAt: number;
  readonly lengthSize: number;
  /** COUNTED_OUT: blocks that come from the initiator. */
  readonly blocksOut: ((cdb: Uint8Array) => number) | undefined;
  readonly access: Access;
  /** Access that depends on the CDB. */
  readonly accessOf: ((cdb: Uint8Array) => Access) | undefined;
  /** Allowed while another nexus holds a RESERVE(6) (SPC-2 table 10). */
  readonly free6: boolean;
  /** Needs a medium that is ready. */
  readonly medium: boolean;
  /** Changes the medium: refused where it is write protected. */
  readonly modifies: boolean;
  /** Unit attentions wait: the command is not ended by one. */
  readonly passesAttention: boolean;
  /** Features of the unit without which the opcode is unknown. */
  readonly needs: number;
  readonly run: Handler;
}
