import type { Chunk } from '../wire/chunk-pool.ts';
import type { Output } from '../wire/output.ts';
import type { Crc32c } from './digest.ts';
import { AT_EXP_SN, AT_MAX_CMD_SN, AT_STAT_SN, BHS_LENGTH, DIGEST_LENGTH, padded, serialBefore } from './pdu.ts';

/** The three sequence numbers that every PDU of the target carries, and the window that they make (RFC 7143 section 4.2.2). */
export class SequenceNumbers {
  /** Number of the next response. */
  statSN: number;
  /** Next command that is delivered. */
  expCmdSN: number;
  /** Last command that the initiator may send. Never goes back. */
  maxCmdSN: number;
  /** Commands outstanding that count against the window. */
  outstanding = 0;
  readonly #depth: number;

  constructor(start: { statSN: number; expCmdSN: number; depth: number }) {
    this.statSN = start.statSN;
    this.expCmdSN = start.expCmdSN;
    this.#depth = start.depth;
    this.maxCmdSN = (start.expCmdSN + start.depth - 1) >>> 0;
  }

  /** Before the first response: the numbers that login starts with. */
  restart(cmdSN: number): void {
    this.expCmdSN = cmdSN;
    this.maxCmdSN = (cmdSN + this.#depth - 1) >>> 0;
  }

  /** True when a non-immediate command of this number may be taken now. */
  inWindow(cmdSN: number): boolean {
    return !serialBefore(cmdSN, this.expCmdSN) && !serialBefore(this.maxCmdSN, cmdSN);
  }

  /** Opens the window as far as there are free task slots. */
  update(): void {
    const limit = (this.expCmdSN + this.#depth - this.outstanding - 1) >>> 0;
    if (serialBefore(this.maxCmdSN, limit)) this.maxCmdSN = limit;
  }
}

/** Builds PDUs of the target at the tail of the output, digests included. */
export class PduWriter {
  readonly output: Output;
  readonly numbers: SequenceNumbers;
  /** PDUs written. */
  count = 0;
  /** Bytes between the start of a header and its data. */
  headLength: number = BHS_LENGTH;
  readonly #crc32c: Crc32c;
  #headerDigest = false;
  #dataDigest = false;

  constructor(output: Output, numbers: SequenceNumbers, crc32c: Crc32c) {
    this.output = output;
    this.numbers = numbers;
    this.#crc32c = crc32c;
  }

  setDigests(header: boolean, data: boolean): void {
    this.#headerDigest = header;
    this.#dataDigest = data;
    this.headLength = BHS_LENGTH + (header ? DIGEST_LENGTH : 0);
  }

  /** Bytes that a PDU with so much data takes in the output. */
  sizeOf(dataLength: number): number {
    return this.headLength + padded(dataLength) + (this.#dataDigest && dataLength > 0 ? DIGEST_LENGTH : 0);
  }

  /**
   * Starts a PDU with a zeroed header at the tail: the chunk it is in, at output.at. Data goes to output.at + headLength.
   *
   * @param flags byte 1
   */
  start(opcode: number, flags: number, dataLength = 0): Chunk {
    const chunk = this.output.ensure(this.sizeOf(dataLength));
    const at = this.output.at;
    chunk.memory.fill(0, at, at + BHS_LENGTH);
    chunk.memory[at] = opcode;
    chunk.memory[at + 1] = flags;
    return chunk;
  }

  /** StatSN (counted up when the PDU carries status), ExpCmdSN and MaxCmdSN. */
  stamp(view: DataView, at: number, carriesStatus: boolean): void {
    const numbers = this.numbers;
    numbers.update();
    view.setUint32(at + AT_STAT_SN, numbers.statSN);
    if (carriesStatus) numbers.statSN = (numbers.statSN + 1) >>> 0;
    view.setUint32(at + AT_EXP_SN, numbers.expCmdSN);
    view.setUint32(at + AT_MAX_CMD_SN, numbers.maxCmdSN);
  }

  /** Finishes the PDU that start() began and queues it. */
  finish(dataLength = 0): void {
    const chunk = this.output.chunk as Chunk;
    this.output.commit(this.seal(chunk, this.output.at, dataLength));
  }

  /** Sets the data length, pads, adds the digests. @returns bytes of the whole PDU */
  seal(chunk: Chunk, at: number, dataLength: number): number {
    const { memory, view } = chunk;
    this.count++;
    view.setUint32(at + 4, dataLength); // no additional header segments
    const dataAt = at + this.headLength;
    const end = dataAt + dataLength;
    const paddedEnd = dataAt + padded(dataLength);
    for (let i = end; i < paddedEnd; i++) memory[i] = 0;
    if (this.#headerDigest) {
      view.setUint32(at + BHS_LENGTH, this.#crc32c(memory.subarray(at, at + BHS_LENGTH)), true);
    }
    if (!this.#dataDigest || dataLength === 0) return paddedEnd - at;
    view.setUint32(paddedEnd, this.#crc32c(memory.subarray(dataAt, paddedEnd)), true);
    return paddedEnd + DIGEST_LENGTH - at;
  }
}
