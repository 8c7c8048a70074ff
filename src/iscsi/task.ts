import { IoVec } from '../../formats/core/iov.ts';
import type { Nexus, ScsiTask, TaskAttribute } from '../scsi/task.ts';
import type { Chunk } from '../wire/chunk-pool.ts';
import type { Deliverable } from './command-order.ts';
import { BHS_LENGTH, COMMAND_ATTRIBUTE, COMMAND_READ, COMMAND_WRITE } from './pdu.ts';
import { ACCEPTED, type Refusal } from './refusal.ts';

/** Where a task is on its way. */
export const FREE = 0;
/** Its PDU is coming in, or waits for its turn by CmdSN. */
export const ARRIVING = 1;
/** Waits for room: output, memory, or an ORDERED task before it. */
export const WAITING = 2;
/** Data-out is coming in. */
export const GATHERING = 3;
/** In the hands of the device server. */
export const EXECUTING = 4;
/** Aborted before its turn by CmdSN came. */
export const DROPPED = 5;
export type TaskState =
  | typeof FREE
  | typeof ARRIVING
  | typeof WAITING
  | typeof GATHERING
  | typeof EXECUTING
  | typeof DROPPED;

/** SAM task attributes by iSCSI's code (RFC 7143 section 11.3.1): untagged and unknown ones are simple. */
const ATTRIBUTES: readonly TaskAttribute[] = [0, 0, 2, 1, 4, 0, 0, 0];

/** A SCSI command of a session, with the state of its data transfer. A slot: made once, refilled for each command. */
export class Task implements ScsiTask, Deliverable {
  // What the device server sees.
  nexus: Nexus;
  lun = 0;
  cdb: Uint8Array;
  attribute: TaskAttribute = 0;
  tag = 0;
  expectedLength = 0;
  dataOutLength = 0;
  dataInLength = 0;
  readonly dataOut = new IoVec();
  readonly dataIn = new IoVec();
  status = 0;
  readonly sense = new Uint8Array(252);
  senseLength = 0;
  dataInUsed = 0;
  transferLength = 0;
  aborted = false;

  /** Place among the session's slots; part of the target transfer tags. */
  readonly index: number;
  state: TaskState = FREE;
  refusal: Refusal = ACCEPTED;
  immediate = false;
  cmdSN = 0;
  /** The LUN field as it came, for R2Ts. */
  lunHigh = 0;
  lunLow = 0;
  reads = false;
  writes = false;
  /** True while the session finds it by its tag. */
  registered = false;

  /** Data-out bytes that the command gets: the rest of what comes is discarded. */
  wanted = 0;
  /** Data-out bytes that have come. */
  received = 0;
  /** Unsolicited Data-Out PDUs are still to come. */
  unsolicited = false;
  /** DataSN of the next Data-Out of the current sequence. */
  dataSN = 0;
  /** R2Ts sent: R2TSN of the next one. */
  r2tSN = 0;
  /** Where the next R2T starts. */
  solicited = 0;
  /** R2Ts not satisfied yet, in order: end offset and target transfer tag of each. */
  readonly burstEnds: number[] = [];
  readonly burstTags: number[] = [];

  /** Data-in bytes there is room for. */
  wantIn = 0;
  /** Data-In goes into the tail of the output in one PDU; false: into pieces that were set aside. */
  direct = false;
  /** Chunks held for data-in, one per Data-In PDU, and for data-out. */
  readonly inChunks: Chunk[] = [];
  readonly outChunks: Chunk[] = [];

  /** To be called when execute()'s promise resolves. Bound, so that it is no closure per command. */
  readonly done: () => void;
  readonly #deliver: (task: Task) => void;
  readonly #shortCdb = new Uint8Array(16);
  readonly #cdbView = new DataView(this.#shortCdb.buffer);

  constructor(nexus: Nexus, index: number, deliver: (task: Task) => void, done: (task: Task) => void) {
    this.nexus = nexus;
    this.index = index;
    this.cdb = this.#shortCdb;
    this.#deliver = deliver;
    this.done = () => done(this);
  }

  deliver(): void {
    this.#deliver(this);
  }

  /** Takes the fields of a SCSI Command PDU. */
  fill(view: DataView, at: number, headerLength: number): void {
    const flags = view.getUint8(at + 1);
    this.state = ARRIVING;
    this.refusal = ACCEPTED;
    this.aborted = false;
    this.reads = (flags & COMMAND_READ) !== 0;
    this.writes = (flags & COMMAND_WRITE) !== 0;
    this.attribute = ATTRIBUTES[flags & COMMAND_ATTRIBUTE] as TaskAttribute;
    this.lunHigh = view.getUint32(at + 8);
    this.lunLow = view.getUint32(at + 12);
    this.tag = view.getUint32(at + 16);
    this.expectedLength = this.reads || this.writes ? view.getUint32(at + 20) : 0;
    this.cmdSN = view.getUint32(at + 24);
    const cdb = this.#cdbView;
    cdb.setUint32(0, view.getUint32(at + 32));
    cdb.setUint32(4, view.getUint32(at + 36));
    cdb.setUint32(8, view.getUint32(at + 40));
    cdb.setUint32(12, view.getUint32(at + 44));
    this.cdb = headerLength === BHS_LENGTH ? this.#shortCdb : this.#extendedCdb(view, at, headerLength);
    this.dataOutLength = 0;
    this.dataInLength = 0;
    this.status = 0;
    this.senseLength = 0;
    this.dataInUsed = 0;
    this.transferLength = 0;
    this.received = 0;
    this.dataSN = 0;
    this.r2tSN = 0;
    this.solicited = 0;
    this.direct = false;
  }

  get refused(): boolean {
    return this.refusal !== ACCEPTED;
  }

  /** The command will not be executed, for the first reason that is given. What data still comes is dropped. */
  refuse(refusal: Refusal): void {
    if (this.refusal === ACCEPTED) this.refusal = refusal;
    this.wanted = 0;
    this.wantIn = 0;
  }

  /** Gives up all memory. */
  releaseChunks(): void {
    for (const chunk of this.inChunks) chunk.release();
    for (const chunk of this.outChunks) chunk.release();
    this.inChunks.length = 0;
    this.outChunks.length = 0;
    this.dataIn.clear();
    this.dataOut.clear();
  }

  /** The CDB with what an Extended CDB segment adds (RFC 7143 section 11.2.2.3); other segments are passed over. */
  #extendedCdb(view: DataView, at: number, headerLength: number): Uint8Array {
    const end = at + headerLength;
    for (let ahs = at + BHS_LENGTH; ahs + 4 <= end; ) {
      const length = view.getUint16(ahs);
      const next = ahs + ((3 + length + 3) & ~3);
      if (next > end) break;
      if (view.getUint8(ahs + 2) === 1 && length > 1) {
        const cdb = new Uint8Array(16 + length - 1);
        cdb.set(this.#shortCdb);
        cdb.set(new Uint8Array(view.buffer, view.byteOffset + ahs + 4, length - 1), 16);
        return cdb;
      }
      ahs = next;
    }
    return this.#shortCdb;
  }
}
