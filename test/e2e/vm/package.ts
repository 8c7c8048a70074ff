/** The Debian package on a machine with systemd. */

import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { npmEnvironment } from '../../support/npm.ts';
import { PROJECT_ROOT, runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { runVm } from '../../support/vm.ts';

/** What making and using it takes, beside the VM. */
export const PACKAGE_PROGRAMS = [
  'dpkg-deb',
  'npm',
  'make',
  'g++',
  'python3',
  'tcmu-runner',
  'systemd-analyze',
  'mandoc',
  'setpriv',
];

/** Makes the package, and gives its path. It compiles this checkout anew: not while something runs from it. */
export async function buildPackage(directory: string): Promise<string> {
  const build = join(PROJECT_ROOT, 'scripts/build-deb');
  const printed = await runOk(build, [directory], { env: npmEnvironment(), timeoutMs: 900_000 });
  return printed.trim().split('\n').at(-1) as string;
}

/** Lets a machine install, use and remove the package. */
export async function tryPackage(t: TestContext, path: string): Promise<void> {
  const seed = await temporaryDirectory(t);
  const images = join(seed, 'images');
  await mkdir(images);
  await copyFile(path, join(seed, 'lunette.deb'));
  await runOk('qemu-img', ['create', '-q', '-f', 'qcow2', join(images, 'disk.qcow2'), '64M']);
  await runOk('qemu-img', ['create', '-q', '-f', 'qcow2', join(images, 'side.qcow2'), '16M']);
  await writeFile(join(seed, 'pattern'), randomFor(t).bytes(1024 * 1024));
  await runVm(t, 'package', { seed, systemd: true, seconds: 1500 });
}
