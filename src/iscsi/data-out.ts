import { Arena, type ChunkShare } from '../wire/chunk-pool.ts';
import type { SessionParameters } from './parameters.ts';
import { AT_BUFFER_OFFSET, AT_DATA_SN, AT_DESIRED_LENGTH, AT_FLAGS, AT_ITT, AT_TTT, FINAL, R2T } from './pdu.ts';
import type { PduWriter } from './pdu-writer.ts';
import { REFUSED_NO_MEMORY, REFUSED_SEQUENCE } from './refusal.ts';
import type { Task } from './task.ts';

/** A task is found again by the low bits of a target transfer tag. */
const SLOT_BITS = 11;
/** Mask that gives a task's index out of a target transfer tag. */
export const SLOT_MASK = (1 << SLOT_BITS) - 1;

/** Data on its way from the initiator: memory for it, R2Ts, and the order of its PDUs (RFC 7143 sections 11.7 and 11.8). */
export class DataOut {
  readonly #writer: PduWriter;
  readonly #share: ChunkShare;
  readonly #parameters: SessionParameters;
  readonly #arena: Arena;
  /** Tasks with R2Ts to send and no memory for the data yet. */
  readonly #hungry: Task[] = [];
  /** Tasks that have had an R2T and are not complete. */
  #soliciting = 0;
  #transferTag = 0;

  constructor(writer: PduWriter, share: ChunkShare, parameters: SessionParameters) {
    this.#writer = writer;
    this.#share = share;
    this.#parameters = parameters;
    this.#arena = new Arena(share);
  }

  /**
   * Memory for data that comes unasked; without it the command is answered TASK SET FULL and the data dropped.
   *
   * @param alone no other command is under way: then there is always memory
   */
  allocate(task: Task, length: number, alone: boolean): void {
    if (length === 0 || task.refused) return;
    if (!alone && !this.#share.allows(length)) task.refuse(REFUSED_NO_MEMORY);
    else this.#arena.allocate(length, task.dataOut, task.outChunks);
  }

  /** Copies data of a PDU to its place; what the command does not want is dropped. */
  store(task: Task, bytes: Uint8Array, from: number, to: number): void {
    const { dataOut, received } = task;
    const take = Math.min(to - from, dataOut.byteLength - received);
    if (take > 0 && !task.refused) {
      const part = bytes.subarray(from, from + take);
      if (dataOut.count === 1) (dataOut.memory[0] as Uint8Array).set(part, (dataOut.offsets[0] as number) + received);
      else dataOut.copyIn(received, part);
    }
    task.received += to - from;
  }

  /**
   * Checks the header of a Data-Out against what is due. One out of sequence fails its command, after the rest of the sequence has
   * come and was dropped: the session has lost nothing (RFC 7143 section 7.9).
   *
   * @param burst which of the task's R2Ts it answers; -1 for unsolicited data
   * @returns true when it is the last of its sequence
   */
  check(task: Task, burst: number, view: DataView, at: number, dataLength: number): boolean {
    const solicited = burst >= 0;
    const end = solicited
      ? (task.burstEnds[burst] as number)
      : Math.min(this.#parameters.firstBurstLength, task.expectedLength);
    const after = task.received + dataLength;
    const final = (view.getUint8(at + AT_FLAGS) & FINAL) !== 0;
    if (
      burst > 0 ||
      view.getUint32(at + AT_DATA_SN) !== task.dataSN ||
      view.getUint32(at + AT_BUFFER_OFFSET) !== task.received ||
      after > end ||
      (solicited && final && after < end)
    ) {
      task.refuse(REFUSED_SEQUENCE);
    }
    task.dataSN++;
    return final || (solicited && after >= end);
  }

  /**
   * Sends R2Ts for what is missing, as soon as there is memory for it.
   *
   * @param alone no other command is under way
   */
  solicit(task: Task, alone: boolean): void {
    const missing = task.wanted - task.dataOut.byteLength;
    if (missing > 0) {
      if (!(alone && this.#soliciting === 0) && !this.#share.allows(missing)) {
        if (!this.#hungry.includes(task)) this.#hungry.push(task);
        return;
      }
      this.#arena.allocate(missing, task.dataOut, task.outChunks);
    }
    if (task.solicited === 0) {
      // Its first R2T: what came unasked needs none.
      task.solicited = task.received;
      this.#soliciting++;
    }
    const { maxOutstandingR2T, maxBurstLength } = this.#parameters;
    while (task.solicited < task.wanted && task.burstTags.length < maxOutstandingR2T) {
      const length = Math.min(maxBurstLength, task.wanted - task.solicited);
      this.#sendR2T(task, task.solicited, length);
      task.solicited += length;
    }
  }

  /** Serves those that wait for memory, the first come first. */
  feed(alone: boolean): void {
    for (let waiting = this.#hungry.length; waiting > 0; waiting = this.#hungry.length) {
      const task = this.#hungry.shift() as Task;
      this.solicit(task, alone);
      if (this.#hungry.length === waiting) {
        // Hungry still: its place is at the head.
        this.#hungry.unshift(this.#hungry.pop() as Task);
        return;
      }
    }
  }

  /** The task has all its data, or will never have it. */
  finish(task: Task): void {
    if (task.solicited > 0) this.#soliciting--;
    const i = this.#hungry.indexOf(task);
    if (i >= 0) this.#hungry.splice(i, 1);
  }

  /** Nothing is under way: an idle session holds no memory. */
  trim(): void {
    this.#arena.trim();
  }

  close(): void {
    this.#arena.close();
  }

  #sendR2T(task: Task, offset: number, length: number): void {
    // Unique for long enough, and never the reserved tag: the upper bits never are all ones.
    this.#transferTag = (this.#transferTag + 1) % (2 ** (32 - SLOT_BITS) - 1);
    const transferTag = ((this.#transferTag << SLOT_BITS) | task.index) >>> 0;
    task.burstTags.push(transferTag);
    task.burstEnds.push(offset + length);
    const { view } = this.#writer.start(R2T, FINAL);
    const { at } = this.#writer.output;
    view.setUint32(at + 8, task.lunHigh);
    view.setUint32(at + 12, task.lunLow);
    view.setUint32(at + AT_ITT, task.tag);
    view.setUint32(at + AT_TTT, transferTag);
    this.#writer.stamp(view, at, false);
    view.setUint32(at + AT_DATA_SN, task.r2tSN++);
    view.setUint32(at + AT_BUFFER_OFFSET, offset);
    view.setUint32(at + AT_DESIRED_LENGTH, length);
    this.#writer.finish();
  }
}
