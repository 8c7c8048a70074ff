import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { LoopbackRequest } from './request.ts';
import { link, mkdir, mkdirShared, type Step, write } from './step.ts';

/** A target of tcm_loop over backstores that exist: its units appear as disks of this machine. */
export function loopbackSteps(request: LoopbackRequest, backstores: readonly string[]): Step[] {
  const target = `loopback/${request.wwn}`;
  const tpg = `${target}/tpgt_1`;
  // Making the fabric's directory loads its module.
  const steps = [mkdirShared('loopback'), mkdir(target), mkdir(tpg), write(`${tpg}/nexus`, request.nexus, 'NULL')];
  backstores.forEach((backstore, lun) => {
    steps.push(mkdir(`${tpg}/lun/lun_${lun}`), link(`${tpg}/lun/lun_${lun}/lunette`, backstore));
  });
  return steps;
}

/**
 * The block device that a unit has become, `/dev/sdX` or `/dev/srX`; undefined while the kernel has not found it.
 *
 * @param address what the TPG's `address` attribute says: host:channel:target
 */
export function blockDeviceOf(address: string, lun: number, sysfs = '/sys'): string | undefined {
  try {
    const [name] = readdirSync(join(sysfs, 'class/scsi_device', `${address}:${lun}`, 'device/block'));
    return name === undefined ? undefined : `/dev/${name}`;
  } catch {
    return undefined;
  }
}

/** Where tcm_loop put a target: `host:channel:target`. */
export function loopbackAddress(root: string, wwn: string): string {
  return readFileSync(join(root, `loopback/${wwn}/tpgt_1/address`), 'utf8').trim();
}
