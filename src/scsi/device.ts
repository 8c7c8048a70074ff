import { dispatchAbsent } from './absent-unit.ts';
import { executeTask, planTask, startTask } from './dispatch.ts';
import { COMMANDS_CLEARED, DEVICE_RESET, POWER_ON, POWER_ON_OR_RESET, REPORTED_LUNS_CHANGED } from './sense.ts';
import {
  ABORT_TASK,
  ABORT_TASK_SET,
  CLEAR_TASK_SET,
  type DeviceServer,
  LUN_RESET,
  type Nexus,
  type ScsiTask,
  TARGET_COLD_RESET,
  TARGET_WARM_RESET,
  type TaskManagementFunction,
  TMF_COMPLETE,
  TMF_NO_LUN,
  TMF_NO_TASK,
  TMF_NOT_SUPPORTED,
} from './task.ts';
import type { AbortRequest } from './task-set.ts';
import { LogicalUnit, type Surroundings, type TargetPort, type UnitOptions } from './unit.ts';

/** The largest LUN: flat space addressing has 14 bits. */
export const MAX_LUN = 16383;

export interface ScsiDeviceOptions {
  /** SCSI name string of the target device: for iSCSI its IQN. */
  name?: string | undefined;
  /** Default: one port with id 1 and the device's name. */
  ports?: readonly TargetPort[] | undefined;
  /** SPC-4 protocol identifier. Default 5: iSCSI. */
  protocol?: number | undefined;
  /** Version descriptors of the transport for INQUIRY. Default: iSCSI without a revision. */
  transportVersions?: readonly number[] | undefined;
}

/**
 * A SCSI target device: logical units by number, and what belongs to all of them. Knows no transport; one that it serves calls the
 * DeviceServer methods.
 */
export class ScsiDevice implements DeviceServer, Surroundings {
  readonly name: string | undefined;
  readonly ports: readonly TargetPort[];
  readonly protocol: number;
  readonly transportVersions: readonly number[];
  /** By LUN; holes where there is no unit. */
  readonly #units: (LogicalUnit | undefined)[] = [];
  readonly #nexuses = new Map<number, Nexus>();

  constructor(options: ScsiDeviceOptions = {}) {
    this.name = options.name;
    this.ports = options.ports ?? [{ id: 1, name: options.name ?? 'port' }];
    this.protocol = options.protocol ?? 5;
    this.transportVersions = options.transportVersions ?? [0x0960];
  }

  /** Adds a logical unit; nexuses are told that the set of units has changed. @throws {RangeError} the LUN is taken or out of range */
  addUnit(lun: number, options: UnitOptions): LogicalUnit {
    if (!Number.isInteger(lun) || lun < 0 || lun > MAX_LUN) throw new RangeError(`LUN ${lun} is not in 0..${MAX_LUN}`);
    if (this.#units[lun] !== undefined) throw new RangeError(`LUN ${lun} is taken`);
    const unit = new LogicalUnit(lun, options, this, startTask);
    this.#setChanged();
    for (const nexus of this.#nexuses.values()) unit.attentions.raise(nexus, POWER_ON_OR_RESET);
    while (this.#units.length < lun) this.#units.push(undefined);
    this.#units[lun] = unit;
    return unit;
  }

  /** Takes a unit away: aborts its tasks, waits for them. The image stays open: it is the caller's. False: there is none. */
  async removeUnit(lun: number): Promise<boolean> {
    const unit = this.#units[lun];
    if (unit === undefined) return false;
    this.#units[lun] = undefined;
    this.#setChanged();
    await unit.tasks.abort({}).ended;
    await unit.close();
    return true;
  }

  unit(lun: number): LogicalUnit | undefined {
    return this.#units[lun];
  }

  /** All units, by ascending LUN. */
  units(): LogicalUnit[] {
    return this.#units.filter((unit) => unit !== undefined);
  }

  luns(): number[] {
    return this.units().map((unit) => unit.lun);
  }

  unitByNaa(designator: Uint8Array): LogicalUnit | undefined {
    return this.units().find((unit) => Buffer.compare(unit.identity.naa, designator) === 0);
  }

  lunsReported(nexus: Nexus): void {
    for (const unit of this.units()) unit.attentions.clear(nexus, REPORTED_LUNS_CHANGED);
  }

  plan(task: ScsiTask): void {
    const unit = this.#units[task.lun];
    if (unit !== undefined) {
      planTask(unit, task);
      return;
    }
    task.dataOutLength = 0;
    // What is answered without a unit is short or bounded by the number of units.
    task.dataInLength = 8 + 8 * this.units().length + 64;
  }

  execute(task: ScsiTask): Promise<void> | undefined {
    const unit = this.#units[task.lun];
    if (unit !== undefined) return executeTask(unit, task);
    dispatchAbsent(this, task);
    return undefined;
  }

  async manage(nexus: Nexus, lun: number, action: TaskManagementFunction, tag?: number): Promise<number> {
    if (action === TARGET_WARM_RESET || action === TARGET_COLD_RESET) {
      const attention = action === TARGET_COLD_RESET ? POWER_ON : DEVICE_RESET;
      await Promise.all(this.units().map((unit) => resetUnit(unit, nexus, attention)));
      return TMF_COMPLETE;
    }
    const unit = this.#units[lun];
    if (unit === undefined) return TMF_NO_LUN;
    switch (action) {
      case ABORT_TASK: {
        const { nexuses, ended } = unit.tasks.abort({ nexus, tag });
        await ended;
        return nexuses.length > 0 ? TMF_COMPLETE : TMF_NO_TASK;
      }
      case ABORT_TASK_SET:
        await unit.tasks.abort({ nexus }).ended;
        return TMF_COMPLETE;
      case CLEAR_TASK_SET:
        await clearTasks(unit, { issuer: nexus });
        return TMF_COMPLETE;
      case LUN_RESET:
        await resetUnit(unit, nexus, DEVICE_RESET);
        return TMF_COMPLETE;
      default:
        return TMF_NOT_SUPPORTED;
    }
  }

  attach(nexus: Nexus): void {
    this.#nexuses.set(nexus.id, nexus);
    for (const unit of this.units()) unit.attentions.raise(nexus, POWER_ON_OR_RESET);
  }

  async detach(nexus: Nexus): Promise<void> {
    this.#nexuses.delete(nexus.id);
    await Promise.all(
      this.units().map(async (unit) => {
        await unit.tasks.abort({ nexus }).ended;
        unit.reservations.drop(nexus);
        unit.attentions.drop(nexus);
      }),
    );
  }

  /** Ends all units; the images stay open. */
  async close(): Promise<void> {
    await Promise.all(this.luns().map((lun) => this.removeUnit(lun)));
  }

  #setChanged(): void {
    for (const unit of this.units()) unit.attentions.raiseAll(REPORTED_LUNS_CHANGED);
  }
}

/** Aborts every task of a unit. Nexuses that lose tasks without a status get a unit attention (TAS 0), but for the one that asked. */
async function clearTasks(unit: LogicalUnit, request: AbortRequest): Promise<void> {
  const reportToOthers = unit.modePages.taskAbortedStatus;
  const { nexuses, ended } = unit.tasks.abort({ ...request, reportToOthers });
  if (!reportToOthers) {
    for (const other of nexuses) if (other.id !== request.issuer?.id) unit.attentions.raise(other, COMMANDS_CLEARED);
  }
  await ended;
}

async function resetUnit(unit: LogicalUnit, nexus: Nexus, attention: number): Promise<void> {
  await clearTasks(unit, { issuer: nexus });
  unit.reset(attention);
}
