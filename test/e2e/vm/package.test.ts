/** The Debian package on a machine with systemd. */

import { copyFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { copyCheckout } from '../../support/checkout.ts';
import { npmEnvironment } from '../../support/npm.ts';
import { runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { requirePrograms, type Skip } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { requiresVm, runVm, seedWith } from '../../support/vm.ts';

/** What making and using the package takes, beside the VM. */
function requiresPackaging(): Skip {
  const programs = ['dpkg-deb', 'npm', 'make', 'g++', 'python3', 'tcmu-runner', 'systemd-analyze', 'mandoc', 'setpriv'];
  return requirePrograms(programs, 'build-essential, tcmu-runner, systemd and mandoc');
}

/** Makes the package, and gives its path. */
async function buildPackage(directory: string): Promise<string> {
  const copy = await copyCheckout(directory);
  const printed = await runOk(join(copy, 'scripts/build-deb'), [directory], {
    cwd: copy,
    env: npmEnvironment(),
    timeoutMs: 900_000,
  });
  await rm(copy, { recursive: true });
  return printed.trim().split('\n').at(-1) as string;
}

test('the Debian package takes tcmu-runner’s place, is kept running by systemd, and leaves nothing when it is removed', {
  skip: requiresVm() || requiresPackaging(),
}, async (t) => {
  const path = await buildPackage(await temporaryDirectory(t));
  const { seed } = await seedWith(t, { 'disk.qcow2': '64M', 'side.qcow2': '16M' });
  await copyFile(path, join(seed, 'lunette.deb'));
  await writeFile(join(seed, 'pattern'), randomFor(t).bytes(1024 * 1024));
  await runVm(t, 'package', { seed, systemd: true, seconds: 1200, cpus: 1 });
});
