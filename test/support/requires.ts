/**
 * What a test needs of the machine. Each answer goes into a test's `skip` option:
 * `test('…', { skip: requires.qemuImg() }, …)`. False means that it is there. What is missing is a reason to skip on a
 * developer's machine; with CI=true it is an error, so that a test cannot vanish from CI unnoticed.
 */

import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

/** `false`: run the test. A string: why not. */
export type Skip = false | string;

// tgtd, mke2fs and debugfs are in sbin, which an ordinary user's PATH does not have.
const DIRECTORIES = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin'].filter(
  (directory) => directory !== '',
);

/** True where a missing program must fail instead of skip. */
export function inCi(): boolean {
  return process.env.CI === 'true';
}

/** The absolute path of a program on PATH or in an sbin directory; undefined when there is none. */
export function findProgram(name: string): string | undefined {
  for (const directory of DIRECTORIES) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // Not in this directory.
    }
  }
  return undefined;
}

/** Turns a missing condition into a reason to skip, or into a failure in CI. */
export function requireCondition(holds: boolean, reason: string): Skip {
  if (holds) return false;
  if (inCi()) throw new Error(`${reason} (CI=true: a missing requirement fails)`);
  return reason;
}

/** For a test that finds out on its way that it cannot run here: skips it, with the reason, or fails it in CI. */
export function cannotRun(t: { skip(reason?: string): void }, reason: string): void {
  requireCondition(false, reason);
  t.skip(reason);
}

/** Needs all of these programs. `from` is the Debian package to name in the reason. */
export function requirePrograms(names: readonly string[], from: string): Skip {
  const missing = names.filter((name) => findProgram(name) === undefined);
  return requireCondition(
    missing.length === 0,
    `${missing.join(', ')} not found: scripts/install-test-packages installs Debian's ${from}`,
  );
}

export const requires = {
  qemuImg: (): Skip => requirePrograms(['qemu-img'], 'qemu-utils'),
  qemuIo: (): Skip => requirePrograms(['qemu-img', 'qemu-io'], 'qemu-utils'),
  qemuNbd: (): Skip => requirePrograms(['qemu-img', 'qemu-nbd'], 'qemu-utils'),
  /** qemu-img with QEMU's own iSCSI initiator (iscsi://… as an image name). */
  qemuIscsi: (): Skip => requirePrograms(['qemu-img', 'qemu-io'], 'qemu-utils and qemu-block-extra'),
  /** iscsi-ls, iscsi-inq, iscsi-readcapacity16, iscsi-perf, iscsi-test-cu. */
  libiscsi: (): Skip => requirePrograms(['iscsi-ls', 'iscsi-inq', 'iscsi-perf', 'iscsi-test-cu'], 'libiscsi-bin'),
  tgt: (): Skip => requirePrograms(['tgtd', 'tgtadm'], 'tgt'),
  e2fsprogs: (): Skip => requirePrograms(['mke2fs', 'debugfs', 'e2fsck'], 'e2fsprogs'),
  fio: (): Skip => requirePrograms(['fio'], 'fio'),
  nbdkit: (): Skip => requirePrograms(['nbdkit'], 'nbdkit'),
  nbdinfo: (): Skip => requirePrograms(['nbdinfo', 'nbdcopy'], 'libnbd-bin'),
  /** A real browser, without a window. */
  chromium: (): Skip => requirePrograms(['chromium'], 'chromium'),
  /** 7zz: a reader of VDI and VMDK headers that is not ours. */
  sevenZip: (): Skip => requirePrograms(['7zz'], '7zip'),
  vmdkinfo: (): Skip => requirePrograms(['vmdkinfo'], 'libvmdk-utils'),
  /** A condition of the test's own, with the reason to print when it does not hold. */
  that: requireCondition,
  root: (): Skip => requireCondition(process.getuid?.() === 0, 'needs root'),
  linux: (): Skip => requireCondition(process.platform === 'linux', 'needs Linux'),
} as const;
