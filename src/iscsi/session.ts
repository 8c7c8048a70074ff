import { type DeviceServer, type Nexus, TARGET_COLD_RESET, TMF_COMPLETE } from '../scsi/task.ts';
import { CHUNK_DATA, type ChunkShare } from '../wire/chunk-pool.ts';
import { CommandOrder } from './command-order.ts';
import type { IscsiCounters } from './counters.ts';
import type { IscsiLimits } from './limits.ts';
import type { SessionParameters } from './parameters.ts';
import {
  ASYNC_LOGOUT_REQUEST,
  ASYNC_MESSAGE,
  AT_CID,
  AT_CMD_SN,
  AT_FLAGS,
  AT_ITT,
  AT_TTT,
  BHS_LENGTH,
  CONTINUE,
  DATA_OUT,
  FINAL,
  IMMEDIATE,
  LOGIN_REQUEST,
  LOGOUT_REQUEST,
  LOGOUT_RESPONSE,
  NO_TAG,
  NOP_IN,
  NOP_OUT,
  OPCODE_MASK,
  REJECT,
  REJECT_COMMAND_NOT_SUPPORTED,
  REJECT_DATA_DIGEST,
  REJECT_INVALID_FIELD,
  REJECT_PROTOCOL_ERROR,
  REJECT_SNACK,
  SCSI_COMMAND,
  SNACK_REQUEST,
  TASK_MANAGEMENT_REQUEST,
  TASK_MANAGEMENT_RESPONSE,
  TEXT_REQUEST,
  TEXT_RESPONSE,
} from './pdu.ts';
import type { PduHandler } from './pdu-reader.ts';
import type { PduWriter } from './pdu-writer.ts';
import { manageTasks } from './task-management.ts';
import { TaskSet } from './task-set.ts';
import { type TargetRecord, TextExchange } from './text-exchange.ts';

// Logout reasons and responses (RFC 7143 sections 11.14.1 and 11.15.1).
const LOGOUT_CONNECTION = 1;
const LOGOUT_RECOVERY = 2;
const LOGOUT_DONE = 0;
const LOGOUT_NO_CID = 1;
const LOGOUT_RECOVERY_NOT_SUPPORTED = 2;

/** Who collects a data segment that is not data-out. */
const NONE = 0;
const TASKS = 1;
const COLLECT = 2;
const DROP = 3;

export interface SessionOptions {
  /** Normal form of the initiator's name. */
  readonly initiator: string;
  readonly isid: Uint8Array;
  readonly tsih: number;
  readonly cid: number;
  readonly parameters: SessionParameters;
  /** Name of the target; '' in a discovery session. */
  readonly targetName: string;
  /** Absent in discovery sessions. */
  readonly device?: DeviceServer | undefined;
  readonly nexus?: Nexus | undefined;
  readonly writer: PduWriter;
  readonly share: ChunkShare;
  readonly limits: IscsiLimits;
  readonly counters: IscsiCounters;
  /** Targets for SendTargets. */
  readonly targets: () => TargetRecord[];
  /** All normal sessions of the target, this one too. */
  readonly siblings: () => Iterable<Session>;
  /** Output was queued outside of the reading of a chunk. */
  readonly wake: () => void;
  /** Ends the connection: sends what is queued when `graceful`, else at once. */
  readonly close: (reason: string, graceful: boolean) => void;
  /** Ends the connection because something failed that should not. Bound. */
  readonly failed: (error: unknown) => void;
}

/**
 * A session in full-feature phase (RFC 7143), without a socket: PDUs come in piece by piece, answers go to the writer's
 * output. With one connection per session, the session is also its connection.
 */
export class Session implements PduHandler {
  readonly options: SessionOptions;
  readonly tasks: TaskSet | undefined;
  readonly #writer: PduWriter;
  readonly #order: CommandOrder;
  readonly #text: TextExchange;
  /** Header of the PDU that is coming in, where it is needed after its end. */
  readonly #header = new Uint8Array(BHS_LENGTH);
  readonly #headerView = new DataView(this.#header.buffer);
  #mode: typeof NONE | typeof TASKS | typeof COLLECT | typeof DROP = NONE;
  #collected: Uint8Array = EMPTY;
  #collectedLength = 0;
  /** Something has come since the last tick. */
  #heard = true;
  #lastHeardMs: number | undefined;
  #pingSentMs: number | undefined;
  #pingTag = 0;
  #lastSent = 0;
  #lastProgressMs: number | undefined;
  #ending: Promise<void> | undefined;
  #loggingOut = false;

  constructor(options: SessionOptions) {
    this.options = options;
    this.#writer = options.writer;
    this.#order = new CommandOrder(options.writer.numbers);
    const { parameters } = options;
    this.#text = new TextExchange({
      discovery: options.device === undefined,
      targetName: options.targetName,
      maxTextLength: options.limits.maxTextLength,
      targets: options.targets,
      get maxSegment() {
        return Math.min(parameters.maxSendDataSegmentLength, CHUNK_DATA);
      },
      set maxSegment(length: number) {
        parameters.maxSendDataSegmentLength = length;
      },
    });
    if (options.device !== undefined && options.nexus !== undefined) {
      this.tasks = new TaskSet({
        device: options.device,
        nexus: options.nexus,
        writer: options.writer,
        share: options.share,
        order: this.#order,
        parameters,
        limits: options.limits,
        counters: options.counters,
        wake: options.wake,
        failed: options.failed,
        reject: (reason, view, at) => this.#reject(reason, view, at),
      });
    }
  }

  /** True once the session is over or about to be. */
  get ended(): boolean {
    return this.#ending !== undefined;
  }

  // --- PDUs that come in ---

  begin(view: DataView, at: number, headerLength: number, dataLength: number): void {
    this.#heard = true;
    this.options.counters.pdusIn++;
    const opcode = view.getUint8(at) & OPCODE_MASK;
    const { tasks } = this;
    if (tasks !== undefined && (opcode === SCSI_COMMAND || opcode === DATA_OUT) && !this.#loggingOut) {
      this.#mode = TASKS;
      // A Reject for bad data carries this header.
      if (dataLength > 0 && this.options.parameters.dataDigest) this.#keepHeader(view, at);
      if (opcode === SCSI_COMMAND) tasks.beginCommand(view, at, headerLength, dataLength);
      else tasks.beginDataOut(view, at, dataLength);
      return;
    }
    this.#keepHeader(view, at);
    if (this.#loggingOut) {
      this.#mode = DROP;
      return;
    }
    this.#mode = COLLECT;
    this.#collectedLength = 0;
    this.#collected = dataLength > 0 ? new Uint8Array(dataLength) : EMPTY;
  }

  data(bytes: Uint8Array, from: number, to: number): void {
    if (this.#mode === TASKS) {
      (this.tasks as TaskSet).data(bytes, from, to);
    } else if (this.#mode === COLLECT) {
      this.#collected.set(bytes.subarray(from, to), this.#collectedLength);
      this.#collectedLength += to - from;
    }
  }

  end(digestGood: boolean): void {
    const mode = this.#mode;
    this.#mode = NONE;
    if (!digestGood) this.options.counters.dataDigestErrors++;
    if (mode === TASKS) {
      (this.tasks as TaskSet).end(digestGood);
    } else if (mode === COLLECT) {
      const data = this.#collected;
      this.#collected = EMPTY;
      if (digestGood) this.#request(data);
      else this.#badRequest();
    }
  }

  /** A request other than SCSI Command and Data-Out is complete. */
  #request(data: Uint8Array): void {
    const header = this.#headerView;
    const opcode = header.getUint8(0) & OPCODE_MASK;
    if (opcode === NOP_OUT) {
      // Without a task tag it is an answer to a ping of ours, or news of ExpStatSN: nothing to say, no number taken.
      if (header.getUint32(AT_ITT) !== NO_TAG) this.#inOrder((copy) => this.#nop(copy, data));
    } else if (opcode === TASK_MANAGEMENT_REQUEST && this.tasks !== undefined) {
      this.#inOrder((copy) => this.#start(this.#manage(copy)));
    } else if (opcode === TEXT_REQUEST) {
      this.#inOrder((copy) => this.#textRequest(copy, data));
    } else if (opcode === LOGOUT_REQUEST) {
      this.#inOrder((copy) => this.#start(this.#logout(copy)));
    } else if (opcode === SNACK_REQUEST) {
      this.#reject(REJECT_SNACK);
    } else {
      // Commands in a discovery session, login after login; or what nobody knows.
      this.#reject(INITIATOR_OPCODES.has(opcode) ? REJECT_PROTOCOL_ERROR : REJECT_COMMAND_NOT_SUPPORTED);
    }
  }

  /** A request with bad data: refused, but its number is taken, or the session would wait for it. */
  #badRequest(): void {
    const header = this.#headerView;
    this.#reject(REJECT_DATA_DIGEST);
    if ((header.getUint8(0) & IMMEDIATE) === 0) this.#order.plug(header.getUint32(AT_CMD_SN));
  }

  /** Runs a request when its turn by CmdSN is there. `run` gets a header of its own. */
  #inOrder(run: (header: DataView) => void): void {
    const copy = new DataView(this.#header.slice().buffer);
    if ((copy.getUint8(0) & IMMEDIATE) !== 0) {
      run(copy);
      return;
    }
    const cmdSN = copy.getUint32(AT_CMD_SN);
    if (!this.#order.takes(cmdSN)) {
      this.options.counters.ignoredCommands++;
      return;
    }
    this.#order.arrive(cmdSN, { deliver: () => run(copy) });
  }

  #nop(header: DataView, data: Uint8Array): void {
    const length = Math.min(data.length, this.options.parameters.maxSendDataSegmentLength, CHUNK_DATA);
    this.#send(NOP_IN, FINAL, length, (view, at) => {
      view.setUint32(at + 8, header.getUint32(8));
      view.setUint32(at + 12, header.getUint32(12));
      view.setUint32(at + AT_ITT, header.getUint32(AT_ITT));
      view.setUint32(at + AT_TTT, NO_TAG);
      this.#copyData(data, length);
    });
  }

  /** Lets a request run on; a failure of it ends the connection. */
  #start(running: Promise<void>): void {
    running.catch(this.options.failed);
  }

  async #manage(header: DataView): Promise<void> {
    const { device, nexus, counters, siblings } = this.options;
    counters.taskManagement++;
    const response = await manageTasks(header, {
      device: device as DeviceServer,
      nexus: nexus as Nexus,
      tasks: this.tasks as TaskSet,
      order: this.#order,
      dropEverywhere: (lun) => {
        for (const session of siblings()) session.tasks?.dropUnsubmitted(lun);
      },
    });
    if (this.ended) return;
    this.#send(TASK_MANAGEMENT_RESPONSE, FINAL, 0, (view, at) => {
      view.setUint8(at + 2, response);
      view.setUint32(at + AT_ITT, header.getUint32(AT_ITT));
    });
    this.options.wake();
    // A cold reset ends all sessions of the target, this one after its answer (section 11.5.1).
    if ((header.getUint8(AT_FLAGS) & 0x7f) === TARGET_COLD_RESET && response === TMF_COMPLETE) {
      for (const session of [...siblings()]) session.options.close('target cold reset', true);
    }
  }

  #textRequest(header: DataView, data: Uint8Array): void {
    const flags = header.getUint8(AT_FLAGS);
    const answer = this.#text.step({
      final: (flags & FINAL) !== 0,
      continues: (flags & CONTINUE) !== 0,
      transferTag: header.getUint32(AT_TTT),
      data,
    });
    if (typeof answer === 'number') {
      this.#reject(answer, header, 0);
      return;
    }
    const answerFlags = (answer.final ? FINAL : 0) | (answer.continues ? CONTINUE : 0);
    this.#send(TEXT_RESPONSE, answerFlags, answer.text.length, (view, at) => {
      view.setUint32(at + 8, header.getUint32(8));
      view.setUint32(at + 12, header.getUint32(12));
      view.setUint32(at + AT_ITT, header.getUint32(AT_ITT));
      view.setUint32(at + AT_TTT, answer.transferTag);
      this.#copyData(answer.text, answer.text.length);
    });
  }

  async #logout(header: DataView): Promise<void> {
    const reason = header.getUint8(AT_FLAGS) & 0x7f;
    let response = LOGOUT_DONE;
    if (reason === LOGOUT_RECOVERY) response = LOGOUT_RECOVERY_NOT_SUPPORTED;
    else if (reason > LOGOUT_RECOVERY) return this.#reject(REJECT_INVALID_FIELD, header, 0);
    else if (reason === LOGOUT_CONNECTION && header.getUint16(AT_CID) !== this.options.cid) response = LOGOUT_NO_CID;
    if (response === LOGOUT_DONE) {
      this.#loggingOut = true;
      // Nothing of the session runs any more when the response goes out.
      await this.terminate();
    }
    const { parameters } = this.options;
    this.#send(LOGOUT_RESPONSE, FINAL, 0, (view, at) => {
      view.setUint8(at + 2, response);
      view.setUint32(at + AT_ITT, header.getUint32(AT_ITT));
      view.setUint16(at + 40, parameters.defaultTime2Wait);
      view.setUint16(at + 42, parameters.defaultTime2Retain);
    });
    this.options.wake();
    if (response === LOGOUT_DONE) this.options.close('logout', true);
  }

  // --- what the target says by itself ---

  /** Asks the initiator to log out within so many seconds: the target is about to go. */
  requestLogout(seconds: number): void {
    if (this.ended) return;
    this.#send(ASYNC_MESSAGE, FINAL, 0, (view, at) => {
      view.setUint32(at + AT_ITT, NO_TAG);
      view.setUint8(at + 36, ASYNC_LOGOUT_REQUEST);
      view.setUint16(at + 42, seconds);
    });
    this.options.wake();
  }

  /** Pings silent initiators, drops dead ones, starts what waited for memory of others. To be called about once a second. */
  tick(nowMs: number): void {
    const { limits, counters } = this.options;
    const { output } = this.#writer;
    if (this.ended) return;
    this.tasks?.drain();
    if (output.queued === 0 || output.sent !== this.#lastSent) {
      this.#lastSent = output.sent;
      this.#lastProgressMs = nowMs;
    }
    if (this.#heard) {
      this.#heard = false;
      this.#lastHeardMs = nowMs;
      this.#pingSentMs = undefined;
    }
    if (nowMs - (this.#lastProgressMs ?? nowMs) >= limits.stallTimeoutMs) {
      counters.deadPeers++;
      this.options.close('the initiator takes no data', false);
    } else if (this.#pingSentMs !== undefined) {
      if (nowMs - this.#pingSentMs < limits.stallTimeoutMs) return;
      counters.deadPeers++;
      this.options.close('the initiator answers no ping', false);
    } else if (limits.keepaliveMs > 0 && nowMs - (this.#lastHeardMs ?? nowMs) >= limits.keepaliveMs) {
      this.#ping(nowMs);
    }
  }

  #ping(nowMs: number): void {
    this.#pingSentMs = nowMs;
    this.#pingTag = (this.#pingTag + 1) & 0x7fffffff;
    const { view } = this.#writer.start(NOP_IN, FINAL);
    const { at } = this.#writer.output;
    view.setUint32(at + AT_ITT, NO_TAG);
    view.setUint32(at + AT_TTT, this.#pingTag);
    this.#writer.stamp(view, at, false); // StatSN is shown, not taken
    this.#writer.finish();
    this.options.wake();
  }

  /**
   * Ends the session: no more answers, tasks aborted, nexus gone.
   *
   * @returns resolves when nothing of it runs any more; the same promise every time
   */
  terminate(): Promise<void> {
    this.#ending ??= this.#terminate();
    return this.#ending;
  }

  async #terminate(): Promise<void> {
    this.tasks?.close();
    const { device, nexus } = this.options;
    if (device !== undefined && nexus !== undefined) await device.detach(nexus);
  }

  // --- PDUs that go out ---

  #reject(reason: number, view: DataView = this.#headerView, at = 0): void {
    this.options.counters.rejects++;
    const header = new Uint8Array(view.buffer, view.byteOffset + at, BHS_LENGTH).slice();
    this.#send(REJECT, FINAL, BHS_LENGTH, (out, outAt) => {
      out.setUint8(outAt + 2, reason);
      out.setUint32(outAt + AT_ITT, NO_TAG);
      this.#copyData(header, BHS_LENGTH);
    });
  }

  /** Queues a PDU that carries status. `fill` sets its own fields of the zeroed header, and the data. */
  #send(opcode: number, flags: number, dataLength: number, fill: (view: DataView, at: number) => void): void {
    const { view } = this.#writer.start(opcode, flags, dataLength);
    const { at } = this.#writer.output;
    fill(view, at);
    this.#writer.stamp(view, at, true);
    this.#writer.finish(dataLength);
  }

  #copyData(data: Uint8Array, length: number): void {
    const { output, headLength } = this.#writer;
    output.chunk?.memory.set(length === data.length ? data : data.subarray(0, length), output.at + headLength);
  }

  #keepHeader(view: DataView, at: number): void {
    for (let i = 0; i < BHS_LENGTH; i += 4) this.#headerView.setUint32(i, view.getUint32(at + i));
  }
}

const INITIATOR_OPCODES: ReadonlySet<number> = new Set([
  SCSI_COMMAND,
  TASK_MANAGEMENT_REQUEST,
  LOGIN_REQUEST,
  DATA_OUT,
]);

const EMPTY = new Uint8Array(0);
