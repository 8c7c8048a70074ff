import { CHECK_CONDITION, CONDITION_MET, GOOD } from '../scsi/task.ts';
import { CHUNK_DATA, type Chunk } from '../wire/chunk-pool.ts';
import type { SessionParameters } from './parameters.ts';
import {
  AT_BUFFER_OFFSET,
  AT_DATA_SN,
  AT_ITT,
  AT_RESIDUAL,
  AT_STAT_SN,
  AT_TTT,
  DATA_IN,
  DATA_IN_STATUS,
  FINAL,
  NO_TAG,
  RESIDUAL_OVERFLOW,
  RESIDUAL_UNDERFLOW,
  SCSI_RESPONSE,
} from './pdu.ts';
import type { PduWriter } from './pdu-writer.ts';
import type { Task } from './task.ts';

/** Room that a SCSI Response with the longest sense takes beside its header. */
const SENSE_ROOM = 2 + 252;

/**
 * Data-In and SCSI Response. The device server reads straight into the output, behind where the headers go; nothing is
 * copied. A read that fits in one PDU takes one: its status is in the Data-In (phase collapse).
 */
export class Responder {
  readonly #writer: PduWriter;
  readonly #parameters: SessionParameters;
  /** Flags and count of the residual, set by #settleResidual. */
  #residualFlags = 0;
  #residual = 0;

  constructor(writer: PduWriter, parameters: SessionParameters) {
    this.#writer = writer;
    this.#parameters = parameters;
  }

  /** Makes room for the data-in of a task before it is executed. */
  prepare(task: Task): void {
    const { output } = this.#writer;
    const { maxBurstLength } = this.#parameters;
    const segment = this.#segmentLength();
    task.direct = task.wantIn <= segment && task.wantIn <= maxBurstLength;
    if (task.direct) {
      const size = this.#writer.sizeOf(Math.max(task.wantIn, SENSE_ROOM));
      task.dataIn.append(output.ensure(size).memory, output.at + this.#writer.headLength, task.wantIn);
      return;
    }
    for (let offset = 0; offset < task.wantIn; ) {
      // A Data-In never crosses the end of a burst.
      const burstLeft = maxBurstLength - (offset % maxBurstLength);
      const length = Math.min(segment, burstLeft, task.wantIn - offset);
      const size = this.#writer.sizeOf(length);
      const chunk = output.ensure(size);
      task.dataIn.append(chunk.memory, output.at + this.#writer.headLength, length);
      task.inChunks.push(output.setAside(size));
      offset += length;
    }
  }

  /** The task did not complete at once: keeps the room that prepare() made at the tail of the output. */
  setAside(task: Task): void {
    if (!task.direct) return;
    task.direct = false;
    task.inChunks.push(this.#writer.output.setAside(this.#writer.sizeOf(task.wantIn)));
  }

  /** Queues what the outcome of a task calls for: Data-In PDUs, a SCSI Response, or both in one. */
  respond(task: Task): void {
    this.#settleResidual(task);
    // Status goes with the last Data-In only when there is nothing more to say (RFC 7143 section 11.4.6).
    const collapse = task.dataInUsed > 0 && (task.status === GOOD || task.status === CONDITION_MET);
    if (task.direct) {
      if (task.dataInUsed > 0) {
        const { output } = this.#writer;
        const chunk = output.chunk as Chunk;
        output.commit(this.#dataIn(task, chunk, output.at, 0, 0, task.dataInUsed, true, collapse));
      }
    } else if (task.inChunks.length > 0) {
      this.#sendPieces(task, collapse);
    }
    if (!collapse) this.#response(task);
  }

  #sendPieces(task: Task, collapse: boolean): void {
    const { output, headLength } = this.#writer;
    const { maxBurstLength } = this.#parameters;
    const { dataIn, inChunks, dataInUsed } = task;
    let offset = 0;
    let sent = 0;
    for (let i = 0; i < inChunks.length; i++) {
      const chunk = inChunks[i] as Chunk;
      const length = Math.min(dataIn.lengths[i] as number, dataInUsed - offset);
      if (length <= 0) {
        chunk.release();
        continue;
      }
      const start = (dataIn.offsets[i] as number) - headLength;
      const last = offset + length === dataInUsed;
      const final = last || (offset + length) % maxBurstLength === 0;
      output.push(chunk, start, start + this.#dataIn(task, chunk, start, i, offset, length, final, last && collapse));
      offset += length;
      sent++;
    }
    task.dataSN = sent; // for ExpDataSN
    inChunks.length = 0;
  }

  /** Writes the header of a Data-In around data that is in place. @returns bytes of the PDU */
  #dataIn(
    task: Task,
    chunk: Chunk,
    at: number,
    dataSN: number,
    offset: number,
    length: number,
    final: boolean,
    status: boolean,
  ): number {
    const { view } = chunk;
    const flags = (final ? FINAL : 0) | (status ? DATA_IN_STATUS | this.#residualFlags : 0);
    view.setUint32(at, (DATA_IN << 24) | (flags << 16) | (status ? task.status : 0));
    view.setUint32(at + 8, 0);
    view.setUint32(at + 12, 0);
    view.setUint32(at + AT_ITT, task.tag);
    view.setUint32(at + AT_TTT, NO_TAG);
    this.#writer.stamp(view, at, status);
    if (!status) view.setUint32(at + AT_STAT_SN, 0); // it means nothing then
    view.setUint32(at + AT_DATA_SN, dataSN);
    view.setUint32(at + AT_BUFFER_OFFSET, offset);
    view.setUint32(at + AT_RESIDUAL, status ? this.#residual : 0);
    return this.#writer.seal(chunk, at, length);
  }

  #response(task: Task): void {
    const sense = task.status === CHECK_CONDITION ? task.senseLength : 0;
    const dataLength = sense > 0 ? 2 + sense : 0;
    const chunk = this.#writer.start(SCSI_RESPONSE, FINAL | this.#residualFlags, dataLength);
    const { view, memory } = chunk;
    const at = this.#writer.output.at;
    memory[at + 3] = task.status;
    view.setUint32(at + AT_ITT, task.tag);
    this.#writer.stamp(view, at, true);
    // ExpDataSN: Data-In PDUs of a read, R2Ts of a write.
    view.setUint32(at + AT_DATA_SN, task.r2tSN + this.#dataInCount(task));
    view.setUint32(at + AT_RESIDUAL, this.#residual);
    if (sense > 0) {
      const dataAt = at + this.#writer.headLength;
      view.setUint16(dataAt, sense);
      memory.set(sense === task.sense.length ? task.sense : task.sense.subarray(0, sense), dataAt + 2);
    }
    this.#writer.finish(dataLength);
  }

  /** Data-In PDUs that went out before a separate response. */
  #dataInCount(task: Task): number {
    if (task.dataInUsed === 0) return 0;
    return task.direct ? 1 : task.dataSN;
  }

  /** Residual of a transfer against what the initiator expected (RFC 7143 section 11.4.5). */
  #settleResidual(task: Task): void {
    const expected = task.expectedLength;
    if (task.transferLength > expected) {
      this.#residualFlags = RESIDUAL_OVERFLOW;
      this.#residual = Math.min(task.transferLength - expected, 0xffffffff);
      return;
    }
    const moved = task.dataInLength > 0 ? task.dataInUsed : task.writes ? task.transferLength : 0;
    this.#residual = expected - moved;
    this.#residualFlags = moved < expected ? RESIDUAL_UNDERFLOW : 0;
  }

  /** Longest Data-In segment: what the initiator takes and a chunk holds, in whole 512-byte blocks. */
  #segmentLength(): number {
    return Math.min(this.#parameters.maxSendDataSegmentLength, CHUNK_DATA) & ~511;
  }
}
