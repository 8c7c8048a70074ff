import type { IoVec } from '../../formats/core/iov.ts';
import {
  CompletionBatch,
  RECORD_CDB,
  RECORD_COMMAND,
  RECORD_DOUBTFUL,
  RECORD_ID,
  RECORD_IDS,
  RECORD_IOVECS,
  RECORD_KIND,
  RECORD_TASK_MANAGEMENT,
  RECORD_UNKNOWN,
  RECORD_WORDS,
  UioDevice,
  type UioListener,
} from '../io/native.ts';
import { INTERNAL_TARGET_FAILURE, writeSense } from '../scsi/sense.ts';
import { ABORT_TASK, BUSY, CHECK_CONDITION, type DeviceServer, type Nexus, TASK_ABORTED } from '../scsi/task.ts';
import { TcmuTask } from './task.ts';

const INQUIRY = 0x12;

export interface TcmuDeviceOptions {
  /** Descriptors of the UIO device; they stay the caller's. Of a real device all three are the same. */
  readonly memoryFd: number;
  readonly eventFd: number;
  readonly kickFd: number;
  /** Size of the region, bytes, as sysfs has it. */
  readonly regionSize: number;
  /** Runs the commands: of its units only LUN 0 is used. */
  readonly server: DeviceServer;
  /** The one nexus that there is: the kernel does not say who sent a command. */
  readonly nexus: Nexus;
  /** Called before an INQUIRY, which tells the unit's names: they may have been given to it meanwhile. Must not reject. */
  readonly refreshNames?: (() => Promise<void>) | undefined;
  /** The ring cannot be used any more: close the device, and open it again after a reset of the ring. */
  readonly onBroken: (reason: string) => void;
  /** The kernel has removed the device. */
  readonly onGone: () => void;
}

/** What has passed through a device. */
export interface TcmuCounters {
  commands: number;
  /** Entries that pointed outside of where they may. */
  malformed: number;
  taskManagement: number;
  /** Entries of an opcode that is not known. */
  unknown: number;
  resets: number;
}

/**
 * One TCMU device: takes commands out of the ring, has them run by the SCSI device server, puts the outcomes back.
 *
 * Reads and writes of the image go straight to and from the data area. A command that completes in the tick in which it was fetched costs
 * no promise; the outcomes of a tick go back in one call.
 */
export class TcmuDevice implements UioListener {
  readonly counters: TcmuCounters = { commands: 0, malformed: 0, taskManagement: 0, unknown: 0, resets: 0 };
  readonly #options: TcmuDeviceOptions;
  readonly #server: DeviceServer;
  readonly #uio: UioDevice;
  readonly #words: Uint32Array;
  readonly #memory: Uint8Array;
  readonly #completions = new CompletionBatch();
  readonly #free: TcmuTask[] = [];
  readonly #inFlight = new Set<TcmuTask>();
  /** Outcomes wait for the end of the batch. False before it when the ring is found void: the rest of the batch is as well. */
  #fetching = false;
  #flushQueued = false;
  /** After a reset: what was in flight has to end before anything new is fetched. */
  #restarting = false;
  #stopped = false;
  #closed = false;
  #drained: (() => void)[] = [];
  readonly #flush = (): void => {
    this.#flushQueued = false;
    this.#handOver();
  };

  /** @throws {Error} when the region cannot be mapped or is no command ring */
  constructor(options: TcmuDeviceOptions) {
    this.#options = options;
    this.#server = options.server;
    const { memoryFd, eventFd, kickFd, regionSize } = options;
    this.#uio = new UioDevice({ memoryFd, eventFd, kickFd, size: regionSize, listener: this });
    this.#words = this.#uio.batch;
    this.#memory = this.#uio.memory;
  }

  /** Bytes that the data of all commands in flight can take. */
  get dataAreaSize(): number {
    return this.#uio.dataAreaSize;
  }

  /** Begins to serve, with what waits in the ring. */
  start(): void {
    this.#uio.start();
  }

  /** Commands that have been fetched and not completed. */
  get inFlight(): number {
    return this.#inFlight.size;
  }

  /** Fetches no more; resolves when what was fetched has completed. */
  stop(): Promise<void> {
    this.#stopped = true;
    this.#uio.stop();
    return this.#drain();
  }

  /** Stops and unmaps the region. The descriptors can be closed then. Safe to call twice. */
  async close(): Promise<void> {
    await this.stop();
    this.#closed = true;
    this.#uio.close();
  }

  // --- what the ring says ---

  commands(records: number): void {
    const words = this.#words;
    this.#fetching = true;
    let at = 0;
    let unknown = 0;
    for (let i = 0; i < records && this.#fetching; i++) {
      const kind = (words[at + RECORD_KIND] as number) & 0xffff;
      if (kind === RECORD_COMMAND) this.#begin(at, false);
      else if (kind === RECORD_DOUBTFUL) this.#begin(at, true);
      else if (kind === RECORD_TASK_MANAGEMENT) this.#manage(at);
      else if (kind === RECORD_UNKNOWN) unknown++;
      else this.#refuseMalformed(at);
      at += words[at + RECORD_WORDS] as number;
    }
    this.counters.unknown += unknown;
    if (!this.#fetching) return;
    this.#fetching = false;
    // Nothing but the kernel's own completion of them: it waits for the wakeup all the same.
    if (unknown > 0 && this.#completions.isEmpty && !this.#closed) this.#uio.complete(this.#completions);
    this.#handOver();
  }

  reset(): void {
    this.counters.resets++;
    this.#void();
    this.#restarting = true;
    this.#restartWhenDrained();
  }

  broken(reason: string): void {
    // A fetch and a completion in one turn may both find it so.
    if (this.#stopped) return;
    this.#void();
    this.#stopped = true;
    this.#options.onBroken(reason);
  }

  gone(): void {
    if (this.#stopped) return;
    this.#void();
    this.#stopped = true;
    this.#options.onGone();
  }

  // --- commands ---

  /** @param doubtful reads from before a reset may have gone to its pages: the initiator is to send again what it writes */
  #begin(at: number, doubtful: boolean): void {
    const words = this.#words;
    const task = this.#free.pop() ?? new TcmuTask(this.#options.nexus, (ended) => this.#endLater(ended));
    this.counters.commands++;
    task.fill(words, at);
    this.#server.plan(task);
    const total = task.expectedLength;
    if (total > 0) {
      const out = Math.min(task.dataOutLength, total);
      if (out > 0) {
        this.#append(at, task.dataOut, 0, out);
        if (out < total) this.#append(at, task.rest, out, total);
      } else {
        const room = Math.min(task.dataInLength, total);
        this.#append(at, task.dataIn, 0, room);
        if (room < total) this.#append(at, task.rest, room, total);
      }
    }
    if (doubtful && task.dataOutLength > 0) {
      task.status = BUSY;
      return this.#end(task);
    }
    const pending =
      task.cdb[0] === INQUIRY && this.#options.refreshNames !== undefined
        ? this.#executeNamed(task, this.#options.refreshNames)
        : this.#server.execute(task);
    if (pending === undefined) {
      this.#end(task);
    } else {
      this.#inFlight.add(task);
      void pending.then(task.done);
    }
  }

  async #executeNamed(task: TcmuTask, refreshNames: () => Promise<void>): Promise<void> {
    await refreshNames();
    await this.#server.execute(task);
  }

  /** Adds [from, to) of a command's buffers to a list. */
  #append(at: number, list: IoVec, from: number, to: number): void {
    const words = this.#words;
    const count = words[at + RECORD_IOVECS] as number;
    const length = (words[at + RECORD_KIND] as number) >>> 16;
    let iovec = at + RECORD_CDB + Math.max(4, (length + 3) >>> 2);
    let position = 0;
    for (let i = 0; i < count && position < to; i++, iovec += 2) {
      const start = words[iovec] as number;
      const size = words[iovec + 1] as number;
      const skip = Math.max(0, from - position);
      const end = Math.min(size, to - position);
      if (end > skip) list.append(this.#memory, start + skip, end - skip);
      position += size;
    }
  }

  #endLater(task: TcmuTask): void {
    this.#inFlight.delete(task);
    this.#end(task);
    if (this.#inFlight.size > 0) return;
    if (this.#restarting) this.#restartWhenDrained();
    if (this.#drained.length === 0) return;
    // Completed means: the kernel has been told.
    this.#handOver();
    const waiting = this.#drained;
    this.#drained = [];
    for (const resolve of waiting) resolve();
  }

  #end(task: TcmuTask): void {
    if (!task.void && !this.#closed) this.#complete(task);
    task.release();
    this.#free.push(task);
  }

  #complete(task: TcmuTask): void {
    if (this.#completions.isFull && !this.#handOver()) return;
    const { tag } = task;
    if (task.status === CHECK_CONDITION) {
      // No data goes to the initiator then.
      this.#completions.addWithSense(tag, CHECK_CONDITION, task.sense, task.senseLength);
    } else {
      const readLength = this.#coverRest(task);
      this.#completions.add(tag, task.aborted ? TASK_ABORTED : task.status, readLength);
    }
    if (this.#fetching || this.#flushQueued) return;
    this.#flushQueued = true;
    // After the microtasks: what else ends in this turn of the loop goes back in the same call.
    process.nextTick(this.#flush);
  }

  /**
   * The kernel copies all that the initiator expects, unless it is told of less: what we did not put into those pages is somebody else's. A
   * command that takes data may come with a buffer to be filled as well: in which direction it goes the ring does not say.
   *
   * @returns what the kernel is told; 0: nothing
   */
  #coverRest(task: TcmuTask): number {
    const { dataOut, dataIn, rest, expectedLength } = task;
    const told = this.#uio.takesReadLength;
    if (dataOut.count > 0) {
      // It looks at the length where it reads only, and not at one of 0.
      dataOut.fill(0, told ? 1 : dataOut.byteLength);
      if (!told) rest.fill(0, rest.byteLength);
      return told ? 1 : 0;
    }
    const used = task.aborted ? 0 : task.dataInUsed;
    if (used >= expectedLength) return 0;
    if (used > 0 && told) return used;
    dataIn.fill(used, dataIn.byteLength - used);
    rest.fill(0, rest.byteLength);
    return 0;
  }

  /** @returns false when the ring was found void: what was fetched from it has nobody to be completed for */
  #handOver(): boolean {
    if (this.#completions.isEmpty || this.#closed) return true;
    const taken = this.#restarting || this.#uio.complete(this.#completions);
    this.#completions.clear();
    return taken;
  }

  #refuseMalformed(at: number): void {
    this.counters.malformed++;
    const sense = new Uint8Array(96);
    const length = writeSense(sense, INTERNAL_TARGET_FAILURE, false);
    if (this.#completions.isFull && !this.#handOver()) return;
    this.#completions.addWithSense(this.#words[at + RECORD_ID] as number, CHECK_CONDITION, sense, length);
  }

  /** The kernel says what it has given up. It waits for those commands to complete, whatever their outcome. */
  #manage(at: number): void {
    const words = this.#words;
    this.counters.taskManagement++;
    const count = words[at + RECORD_IOVECS] as number;
    for (let i = 0; i < count; i++) {
      void this.#server.manage(this.#options.nexus, 0, ABORT_TASK, words[at + RECORD_IDS + i] as number);
    }
  }

  // --- the end of it ---

  /** Nobody waits any more for what is in flight. */
  #void(): void {
    this.#fetching = false;
    this.#completions.clear();
    for (const task of this.#inFlight) {
      task.void = true;
      void this.#server.manage(this.#options.nexus, 0, ABORT_TASK, task.tag);
    }
  }

  #restartWhenDrained(): void {
    // Native I/O of a task from before may still write to pages that the kernel is about to give to another.
    if (this.#inFlight.size > 0) return;
    this.#restarting = false;
    if (this.#stopped || this.#closed) return;
    this.#uio.restart();
  }

  #drain(): Promise<void> {
    if (this.#inFlight.size === 0) {
      this.#handOver();
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      this.#drained.push(resolve);
    });
  }
}
