import type { Nexus, ScsiTask } from './task.ts';
import { HEAD_OF_QUEUE, ORDERED, SIMPLE, TASK_ABORTED, TASK_SET_FULL } from './task.ts';

/** Commands of one unit that may be active or waiting; more get TASK SET FULL. */
export const MAX_TASKS = 4096;

interface Entry {
  readonly task: ScsiTask;
  /** ORDERED or HEAD OF QUEUE: while it runs no SIMPLE task starts. */
  readonly exclusive: boolean;
  /** The task ends with TASK ABORTED instead of vanishing. */
  reportAbort: boolean;
  done: Promise<void>;
  /** Ends a task that waits. */
  resolve: (() => void) | undefined;
}

/** Which tasks task management is about. */
export interface AbortRequest {
  /** Only tasks of this nexus. */
  nexus?: Nexus | undefined;
  /** Only the task with this tag. */
  tag?: number | undefined;
  /** A task that stays: the command that aborts. */
  except?: ScsiTask | undefined;
  /** The nexus that asks; its own tasks always vanish without a status. */
  issuer?: Nexus | undefined;
  /** TAS of the control mode page: tasks of other nexuses end with TASK ABORTED. */
  reportToOthers?: boolean | undefined;
}

/**
 * The task set of one logical unit (SAM-5 section 8): who may start, who waits, who is aborted.
 *
 * SIMPLE tasks start at once unless an ORDERED one waits or runs or a HEAD OF QUEUE one runs. ORDERED tasks wait for everything older.
 * HEAD OF QUEUE tasks never wait. So those that wait are SIMPLE and ORDERED ones in order of arrival, and the queue is a plain FIFO.
 */
export class TaskSet {
  readonly #start: (task: ScsiTask) => Promise<void> | undefined;
  readonly #active = new Map<ScsiTask, Entry>();
  readonly #waiting: Entry[] = [];
  /** ORDERED and HEAD OF QUEUE tasks that run. */
  #exclusive = 0;

  /** @param start runs a task: undefined when it has completed, else a promise that never rejects */
  constructor(start: (task: ScsiTask) => Promise<void> | undefined) {
    this.#start = start;
  }

  /** Tasks that run or wait (those that complete in the tick they came in are never seen). */
  get size(): number {
    return this.#active.size + this.#waiting.length;
  }

  /** Runs the task now, or when its turn comes. Undefined: it has completed. */
  execute(task: ScsiTask): Promise<void> | undefined {
    if (task.attribute === SIMPLE && this.#waiting.length === 0 && this.#exclusive === 0) {
      const pending = this.#start(task);
      return pending === undefined ? undefined : this.#track(task, pending, false);
    }
    return this.#executeInOrder(task);
  }

  #executeInOrder(task: ScsiTask): Promise<void> | undefined {
    if (this.size >= MAX_TASKS) {
      task.status = TASK_SET_FULL;
      return undefined;
    }
    const exclusive = task.attribute !== SIMPLE;
    const now = task.attribute === HEAD_OF_QUEUE || (task.attribute === ORDERED && this.size === 0);
    if (now) return this.#begin(task, exclusive);
    const entry: Entry = { task, exclusive, reportAbort: false, done: NOTHING, resolve: undefined };
    entry.done = new Promise<void>((resolve) => {
      entry.resolve = resolve;
    });
    this.#waiting.push(entry);
    return entry.done;
  }

  #begin(task: ScsiTask, exclusive: boolean): Promise<void> | undefined {
    if (exclusive) this.#exclusive++;
    const pending = this.#start(task);
    if (pending !== undefined) return this.#track(task, pending, exclusive);
    if (exclusive) this.#exclusive--;
    return undefined;
  }

  #track(task: ScsiTask, pending: Promise<void>, exclusive: boolean): Promise<void> {
    const entry: Entry = { task, exclusive, reportAbort: false, done: NOTHING, resolve: undefined };
    this.#active.set(task, entry);
    entry.done = pending.then(() => this.#ended(entry));
    return entry.done;
  }

  #ended(entry: Entry): void {
    this.#active.delete(entry.task);
    if (entry.exclusive) this.#exclusive--;
    if (entry.reportAbort) endAborted(entry.task);
    // After whoever waits for this task has heard of its end: outcomes go out in the order of completion.
    if (this.#waiting.length > 0) void entry.done.then(() => this.#startWaiting());
  }

  #startWaiting(): void {
    for (;;) {
      const entry = this.#waiting[0];
      if (entry === undefined) return;
      const ready = entry.task.attribute === ORDERED ? this.#active.size === 0 : this.#exclusive === 0;
      if (!ready) return;
      this.#waiting.shift();
      const pending = this.#begin(entry.task, entry.exclusive);
      if (pending === undefined) entry.resolve?.();
      else void pending.then(entry.resolve);
    }
  }

  /** Marks tasks as aborted; those that wait end now. @returns their nexuses (one per task), and when all have ended */
  abort(request: AbortRequest): { nexuses: Nexus[]; ended: Promise<void> } {
    const nexuses: Nexus[] = [];
    const running: Promise<void>[] = [];
    const affected = (task: ScsiTask): boolean =>
      task !== request.except &&
      (request.nexus === undefined || task.nexus.id === request.nexus.id) &&
      (request.tag === undefined || task.tag === request.tag);
    const reports = (task: ScsiTask): boolean =>
      request.reportToOthers === true && request.issuer !== undefined && task.nexus.id !== request.issuer.id;

    for (const entry of this.#active.values()) {
      if (!affected(entry.task)) continue;
      nexuses.push(entry.task.nexus);
      entry.reportAbort = reports(entry.task);
      entry.task.aborted = true;
      running.push(entry.done);
    }
    for (let i = 0; i < this.#waiting.length; ) {
      const entry = this.#waiting[i] as Entry;
      if (!affected(entry.task)) {
        i++;
        continue;
      }
      this.#waiting.splice(i, 1);
      nexuses.push(entry.task.nexus);
      if (reports(entry.task)) endAborted(entry.task);
      else entry.task.aborted = true;
      entry.resolve?.();
      running.push(entry.done);
    }
    // An ORDERED task that has gone may have held others back.
    this.#startWaiting();
    return { nexuses, ended: Promise.all(running).then(() => undefined) };
  }

  /** Resolves when every task that is here now has ended. */
  async drain(): Promise<void> {
    await Promise.all([...this.#active.values(), ...this.#waiting].map((entry) => entry.done));
  }
}

const NOTHING = Promise.resolve();

/** The outcome of a task that another nexus aborted, where the initiator wants to hear of it. */
function endAborted(task: ScsiTask): void {
  task.aborted = false;
  task.status = TASK_ABORTED;
  task.senseLength = 0;
  task.dataInUsed = 0;
}
