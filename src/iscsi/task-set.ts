import { ProtocolError } from '../../formats/core/errors.ts';
import { type DeviceServer, HEAD_OF_QUEUE, type Nexus, ORDERED } from '../scsi/task.ts';
import type { ChunkShare } from '../wire/chunk-pool.ts';
import type { CommandOrder } from './command-order.ts';
import type { IscsiCounters } from './counters.ts';
import { DataOut, SLOT_MASK } from './data-out.ts';
import type { IscsiLimits } from './limits.ts';
import { decodeLun } from './names.ts';
import type { SessionParameters } from './parameters.ts';
import {
  AT_CMD_SN,
  AT_FLAGS,
  AT_ITT,
  AT_TTT,
  FINAL,
  IMMEDIATE,
  NO_TAG,
  REJECT_DATA_DIGEST,
  REJECT_TASK_IN_PROGRESS,
  REJECT_TOO_MANY_IMMEDIATE,
} from './pdu.ts';
import type { PduWriter } from './pdu-writer.ts';
import {
  REFUSED_DIGEST,
  REFUSED_NO_MEMORY,
  REFUSED_TOO_LARGE,
  REFUSED_UNEXPECTED_DATA,
  setRefusal,
} from './refusal.ts';
import { Responder } from './responder.ts';
import { ARRIVING, DROPPED, EXECUTING, FREE, GATHERING, Task, WAITING } from './task.ts';

/** Output that is sent before the rest of a received chunk is worked on, so that both sides are busy. */
const FLUSH_BYTES = 256 * 1024;
export interface TaskSetOptions {
  readonly device: DeviceServer;
  readonly nexus: Nexus;
  readonly writer: PduWriter;
  readonly share: ChunkShare;
  readonly order: CommandOrder;
  readonly parameters: SessionParameters;
  readonly limits: IscsiLimits;
  readonly counters: IscsiCounters;
  /** Output was queued outside of receive(): it is to be flushed soon. */
  readonly wake: () => void;
  /** A device server broke its promise never to fail. Bound. */
  readonly failed: (error: unknown) => void;
  /** Rejects the PDU whose header this is; without one, the PDU that has just come in. */
  readonly reject: (reason: number, view?: DataView, at?: number) => void;
}

/** The SCSI commands of one session, from their PDU to their response: slots, data-out, R2Ts, order, memory. */
export class TaskSet {
  /** Tasks in the hands of the device server. */
  executing = 0;
  readonly #options: TaskSetOptions;
  readonly #device: DeviceServer;
  readonly #writer: PduWriter;
  readonly #responder: Responder;
  readonly #dataOut: DataOut;
  readonly #slots: Task[] = [];
  readonly #free: Task[] = [];
  readonly #byTag = new Map<number, Task>();
  #immediate = 0;
  /** Tasks that have not started for want of room or because of an ORDERED task, first come first served. */
  readonly #waiting: Task[] = [];
  #gathering = 0;
  #orderedGathering = false;
  /** The task whose data is coming in; undefined: the data is dropped. */
  #current: Task | undefined;
  #currentIsCommand = false;
  #currentFinal = false;
  /** Which of its R2Ts the data answers; -1: none. */
  #currentBurst = -1;
  #closed = false;

  constructor(options: TaskSetOptions) {
    this.#options = options;
    this.#device = options.device;
    this.#writer = options.writer;
    this.#responder = new Responder(options.writer, options.parameters);
    this.#dataOut = new DataOut(options.writer, options.share, options.parameters);
  }

  /** Tasks that have come and have no response yet. */
  get size(): number {
    return this.#slots.length - this.#free.length;
  }

  // --- what comes in ---

  /** The header of a SCSI Command. */
  beginCommand(view: DataView, at: number, headerLength: number, dataLength: number): void {
    const { order, parameters, limits, counters } = this.#options;
    this.#current = undefined;
    this.#currentIsCommand = true;
    const immediate = (view.getUint8(at) & IMMEDIATE) !== 0;
    if (!immediate && !order.takes(view.getUint32(at + AT_CMD_SN))) {
      counters.ignoredCommands++;
      return;
    }
    const tag = view.getUint32(at + AT_ITT);
    if (tag === NO_TAG) throw new ProtocolError('PROTOCOL', 'SCSI command without initiator task tag');
    if (this.#byTag.size > 0 && this.#byTag.has(tag)) {
      if (!immediate) throw new ProtocolError('PROTOCOL', 'initiator task tag is in use');
      this.#options.reject(REJECT_TASK_IN_PROGRESS, view, at);
      return;
    }
    if (immediate && this.#immediate >= limits.immediateCommands) {
      this.#options.reject(REJECT_TOO_MANY_IMMEDIATE, view, at);
      return;
    }
    const task = this.#free.pop() ?? this.#newSlot();
    task.fill(view, at, headerLength);
    task.lun = decodeLun(view, at + 8);
    task.immediate = immediate;
    if (immediate) this.#immediate++;
    else this.#writer.numbers.outstanding++;
    counters.commands++;
    this.#device.plan(task);
    task.wantIn = task.reads ? Math.min(task.expectedLength, task.dataInLength) : 0;
    task.wanted = task.writes ? Math.min(task.expectedLength, task.dataOutLength) : 0;
    const final = (view.getUint8(at + AT_FLAGS) & FINAL) !== 0;
    task.unsolicited = task.writes && !final;
    if (Math.max(task.wantIn, task.wanted) > limits.maxTransferLength) task.refuse(REFUSED_TOO_LARGE);
    if (dataLength > 0 || task.unsolicited) {
      const most = Math.min(parameters.firstBurstLength, task.expectedLength);
      const expected =
        task.writes &&
        dataLength <= most &&
        (dataLength === 0 || parameters.immediateData) &&
        !(task.unsolicited && parameters.initialR2T);
      if (!expected) task.refuse(REFUSED_UNEXPECTED_DATA);
      this.#dataOut.allocate(task, Math.min(task.wanted, task.unsolicited ? most : dataLength), this.size === 1);
    }
    this.#current = task;
  }

  /** The header of a Data-Out. */
  beginDataOut(view: DataView, at: number, dataLength: number): void {
    this.#currentIsCommand = false;
    this.#current = undefined;
    const transferTag = view.getUint32(at + AT_TTT);
    const tag = view.getUint32(at + AT_ITT);
    const solicited = transferTag !== NO_TAG;
    const task = solicited ? this.#slots[transferTag & SLOT_MASK] : this.#byTag.get(tag);
    // Data of a task that was aborted or answered meanwhile: dropped.
    if (task === undefined || task.state === FREE || task.tag !== tag) return;
    const burst = solicited ? task.burstTags.indexOf(transferTag) : -1;
    if (solicited && burst < 0) return;
    if (!solicited && !task.unsolicited) {
      task.refuse(REFUSED_UNEXPECTED_DATA);
      return;
    }
    this.#currentFinal = this.#dataOut.check(task, burst, view, at, dataLength);
    this.#currentBurst = burst;
    this.#current = task;
  }

  /** Data of the PDU that is coming in. */
  data(bytes: Uint8Array, from: number, to: number): void {
    if (this.#current !== undefined) this.#dataOut.store(this.#current, bytes, from, to);
  }

  /** The PDU that was coming in is complete. */
  end(digestGood: boolean): void {
    const task = this.#current;
    this.#current = undefined;
    if (!digestGood) {
      this.#options.reject(REJECT_DATA_DIGEST);
      task?.refuse(REFUSED_DIGEST);
    }
    if (task === undefined) return;
    if (this.#currentIsCommand) {
      if (task.immediate) this.#admit(task);
      else this.#arrive(task);
      return;
    }
    if (!this.#currentFinal) return;
    task.dataSN = 0;
    if (this.#currentBurst < 0) {
      task.unsolicited = false;
    } else {
      task.burstEnds.splice(this.#currentBurst, 1);
      task.burstTags.splice(this.#currentBurst, 1);
    }
    if (task.state === GATHERING) this.#proceed(task);
  }

  #arrive(task: Task): void {
    const { order } = this.#options;
    // Registered while it waits for its turn; one whose turn it is may be over in the same tick.
    if (task.cmdSN !== this.#writer.numbers.expCmdSN) this.#register(task);
    order.arrive(task.cmdSN, task);
  }

  // --- on the way to the device server ---

  #admit(task: Task): void {
    if (task.state === DROPPED) {
      this.#retire(task);
      return;
    }
    if (task.attribute !== HEAD_OF_QUEUE && !task.immediate && (this.#waiting.length > 0 || !this.#mayStart(task))) {
      task.state = WAITING;
      this.#register(task);
      this.#waiting.push(task);
      return;
    }
    this.#start(task);
  }

  #mayStart(task: Task): boolean {
    if (this.#orderedGathering || (task.attribute === ORDERED && this.#gathering > 0)) return false;
    const { limits, share } = this.#options;
    if (this.#idle()) return true;
    return this.#writer.output.queued < limits.outputLimit && share.allows(task.wantIn);
  }

  /** Nothing executes and nothing is left to send: then one command may go on whatever memory others hold. */
  #idle(): boolean {
    return this.executing === 0 && this.#writer.output.queued === 0;
  }

  #start(task: Task): void {
    if (task.unsolicited || task.received < task.wanted) {
      task.state = GATHERING;
      this.#register(task);
      this.#gathering++;
      if (task.attribute === ORDERED) this.#orderedGathering = true;
      this.#proceed(task);
      return;
    }
    this.#execute(task);
  }

  /** Goes on with gathering: asks for more, or executes. */
  #proceed(task: Task): void {
    if (task.unsolicited) return;
    if (task.received < task.wanted) {
      this.#dataOut.solicit(task, this.#idle());
      return;
    }
    if (task.burstTags.length > 0) return;
    this.#endGathering(task);
    this.#execute(task);
    this.drain();
  }

  #endGathering(task: Task): void {
    this.#gathering--;
    if (task.attribute === ORDERED) this.#orderedGathering = false;
    this.#dataOut.finish(task);
  }

  #execute(task: Task): void {
    if (task.refused) {
      if (task.refusal === REFUSED_NO_MEMORY) this.#options.counters.taskSetFull++;
      setRefusal(task, task.refusal);
      this.#respond(task);
      return;
    }
    if (task.wantIn > 0) this.#responder.prepare(task);
    const running = this.#device.execute(task);
    if (running === undefined) {
      this.#respond(task);
      return;
    }
    task.state = EXECUTING;
    this.executing++;
    this.#register(task);
    this.#responder.setAside(task);
    void running.then(task.done, this.#options.failed);
  }

  /** A task that did not complete at once has ended. */
  #completed(task: Task): void {
    this.executing--;
    if (this.#closed || task.aborted) {
      this.#retire(task);
      if (!this.#closed) this.drain();
    } else {
      this.#respond(task);
      this.drain();
    }
    this.#options.wake();
  }

  #respond(task: Task): void {
    // The slot is free before the response is written, so that the window in the response has it.
    this.#count(task);
    this.#responder.respond(task);
    this.#recycle(task);
    if (this.#writer.output.pending >= FLUSH_BYTES) this.#writer.output.flush();
  }

  /** Starts what waited for room, memory or an ORDERED task. */
  drain(): void {
    this.#dataOut.feed(this.#idle());
    while (this.#waiting.length > 0 && this.#mayStart(this.#waiting[0] as Task)) {
      this.#start(this.#waiting.shift() as Task);
    }
    if (this.size === 0) this.#dataOut.trim();
  }

  // --- slots ---

  #newSlot(): Task {
    const task = new Task(
      this.#options.nexus,
      this.#slots.length,
      (ready) => this.#admit(ready),
      (ended) => this.#completed(ended),
    );
    this.#slots.push(task);
    return task;
  }

  #register(task: Task): void {
    if (task.registered) return;
    task.registered = true;
    this.#byTag.set(task.tag, task);
  }

  /** Takes the task out of all counts. */
  #count(task: Task): void {
    if (task.registered) {
      task.registered = false;
      this.#byTag.delete(task.tag);
    }
    if (task.immediate) this.#immediate--;
    else this.#writer.numbers.outstanding--;
    task.state = FREE;
  }

  /** Frees memory and slot. */
  #recycle(task: Task): void {
    task.releaseChunks();
    task.burstEnds.length = 0;
    task.burstTags.length = 0;
    this.#free.push(task);
  }

  #retire(task: Task): void {
    this.#count(task);
    this.#recycle(task);
  }

  // --- task management ---

  /** The task of that initiator task tag. */
  find(tag: number): Task | undefined {
    return this.#byTag.get(tag);
  }

  /** Drops a task that the device server does not have yet: it gets no response. */
  drop(task: Task): void {
    if (task.state === GATHERING) {
      this.#endGathering(task);
      this.#retire(task);
    } else if (task.state === WAITING) {
      this.#waiting.splice(this.#waiting.indexOf(task), 1);
      this.#retire(task);
    } else if (task.state === ARRIVING) {
      // Its place in the CmdSN order stays.
      task.state = DROPPED;
    }
  }

  /** Drops all tasks of a logical unit (of all units when undefined) that the device server does not have yet. */
  dropUnsubmitted(lun: number | undefined): void {
    for (const task of [...this.#byTag.values()]) {
      if (lun === undefined || task.lun === lun) this.drop(task);
    }
    this.drain();
    this.#options.wake();
  }

  /** The session is over: nothing is answered any more. Tasks in the device server give up their memory when they end. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // A command whose own PDU is cut off is known to nobody else.
    if (this.#current !== undefined && this.#currentIsCommand) this.#retire(this.#current);
    this.#current = undefined;
    for (const task of [...this.#byTag.values()]) {
      if (task.state === EXECUTING) continue;
      if (task.state === GATHERING) this.#endGathering(task);
      this.#retire(task);
    }
    this.#waiting.length = 0;
    this.#dataOut.close();
  }
}
