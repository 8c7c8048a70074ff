/** A device server of a few lines for tests of transports: memory for a disk, and every command can be made to wait. */

import {
  ABORT_TASK,
  type DeviceServer,
  type Nexus,
  type ScsiTask,
  type TaskManagementFunction,
  TMF_COMPLETE,
  TMF_NO_TASK,
} from '../../src/scsi/task.ts';

interface Running {
  readonly task: ScsiTask;
  /** Ends it: runs the command unless it was aborted. */
  finish(): void;
}

const BLOCK = 512;

/** Knows READ(16), WRITE(16), TEST UNIT READY and SYNCHRONIZE CACHE(16) on LUN 0 and 1; anything else fails with 5/20/00. */
export class FakeDeviceServer implements DeviceServer {
  readonly disk: Uint8Array;
  readonly attached: Nexus[] = [];
  readonly detached: Nexus[] = [];
  readonly managed: { action: TaskManagementFunction; lun: number; tag: number | undefined }[] = [];
  /** Opcodes in the order of their execution. */
  readonly executed: { opcode: number; tag: number; attribute: number }[] = [];
  /** Commands wait for release() when this says so. */
  async: (task: ScsiTask) => boolean = () => false;
  /** Bytes of sense that failing commands give: a fixed-format 5/20/00 first. */
  senseLength = 18;
  readonly running: Running[] = [];
  /** detach() takes until this resolves. */
  detaching: Promise<void> = Promise.resolve();
  readonly #watchers = new Set<() => void>();

  constructor(size = 4 * 1024 * 1024) {
    this.disk = new Uint8Array(size);
  }

  plan(task: ScsiTask): void {
    task.dataOutLength = 0;
    task.dataInLength = 0;
    const length = blocksOf(task) * BLOCK;
    if (task.lun > 1 || lbaOf(task) * BLOCK + length > this.disk.length) return;
    if (task.cdb[0] === 0x88) task.dataInLength = length;
    if (task.cdb[0] === 0x8a) task.dataOutLength = length;
  }

  execute(task: ScsiTask): Promise<void> | undefined {
    this.executed.push({ opcode: task.cdb[0] as number, tag: task.tag, attribute: task.attribute });
    if (!this.async(task)) {
      this.#run(task);
      for (const watch of [...this.#watchers]) watch();
      return undefined;
    }
    return new Promise((resolve) => {
      const running: Running = {
        task,
        finish: () => {
          this.running.splice(this.running.indexOf(running), 1);
          if (!task.aborted) this.#run(task);
          resolve();
        },
      };
      this.running.push(running);
      for (const watch of [...this.#watchers]) watch();
    });
  }

  /** Ends all commands that wait, the oldest first. */
  release(): void {
    for (const running of [...this.running]) running.finish();
  }

  /** Resolves when so many commands wait. */
  async waiting(count: number): Promise<void> {
    if (this.running.length >= count) return;
    await new Promise<void>((resolve) => {
      const watch = (): void => {
        if (this.running.length < count) return;
        this.#watchers.delete(watch);
        resolve();
      };
      this.#watchers.add(watch);
    });
  }

  async manage(nexus: Nexus, lun: number, action: TaskManagementFunction, tag?: number): Promise<number> {
    this.managed.push({ action, lun, tag });
    const hit = this.running.filter(
      ({ task }) =>
        action > 5 || (task.lun === lun && (action !== ABORT_TASK || (task.nexus === nexus && task.tag === tag))),
    );
    for (const { task } of hit) task.aborted = true;
    for (const running of hit) running.finish();
    return action === ABORT_TASK && hit.length === 0 ? TMF_NO_TASK : TMF_COMPLETE;
  }

  attach(nexus: Nexus): void {
    this.attached.push(nexus);
  }

  async detach(nexus: Nexus): Promise<void> {
    const hit = this.running.filter(({ task }) => task.nexus === nexus);
    for (const { task } of hit) task.aborted = true;
    for (const running of hit) running.finish();
    await this.detaching;
    this.detached.push(nexus);
  }

  #run(task: ScsiTask): void {
    const at = lbaOf(task) * BLOCK;
    const length = blocksOf(task) * BLOCK;
    task.status = 0;
    switch (task.lun > 1 ? -1 : task.cdb[0]) {
      case 0x00:
      case 0x91:
        return;
      case 0x88:
        if (at + length > this.disk.length) break;
        task.dataInUsed = task.dataIn.copyIn(0, this.disk.subarray(at, at + length));
        task.transferLength = length;
        return;
      case 0x8a:
        if (at + length > this.disk.length) break;
        task.dataOut.copyOut(0, this.disk.subarray(at, at + Math.min(length, task.dataOut.byteLength)));
        task.transferLength = length;
        return;
    }
    task.status = 2;
    task.sense.fill(0);
    task.sense.set([0x70, 0, 5, 0, 0, 0, 0, this.senseLength - 8, 0, 0, 0, 0, 0x20, 0]);
    task.senseLength = this.senseLength;
  }
}

function lbaOf(task: ScsiTask): number {
  return Number(new DataView(task.cdb.buffer, task.cdb.byteOffset).getBigUint64(2));
}

function blocksOf(task: ScsiTask): number {
  return new DataView(task.cdb.buffer, task.cdb.byteOffset).getUint32(10);
}
