/** Administrators’ own tool with the daemon in tcmu-runner’s place. */

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { runOk } from '../../support/process.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { requiresVm, runVm } from '../../support/vm.ts';

const img = (folder: string, ...args: string[]): Promise<string> => runOk('qemu-img', args, { cwd: folder });

test('stock targetcli makes, saves, restores, grows and deletes backstores; daemons come and go meanwhile', {
  skip: requiresVm(),
}, async (t) => {
  const seed = await temporaryDirectory(t);
  const images = join(seed, 'images');
  await mkdir(images);
  await img(images, 'create', '-q', '-f', 'qcow2', 'q.qcow2', '64M');
  await img(images, 'create', '-q', '-f', 'vmdk', 'm.vmdk', '64M');
  await img(images, 'create', '-q', '-f', 'vdi', 'v.vdi', '64M');
  await img(images, 'create', '-q', '-f', 'qcow', 'old.qcow', '16M');
  await runVm(t, 'targetcli', { seed, seconds: 400, cpus: 1 });
});
