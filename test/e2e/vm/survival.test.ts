/** The daemon killed, ended and dead for long under load over the kernel’s target. */

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { requiresVm, runVm } from '../../support/vm.ts';

const img = (folder: string, ...args: string[]): Promise<string> => runOk('qemu-img', args, { cwd: folder });

test('a daemon killed ten times under load, ended under load, or dead for long: what was flushed is there, errors come only from the long death', {
  skip: requiresVm(),
}, async (t) => {
  const seed = await temporaryDirectory(t);
  const images = join(seed, 'images');
  await mkdir(images);
  await img(images, 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '512M');
  await img(images, 'create', '-q', '-f', 'qcow2', 'dead.qcow2', '64M');
  await img(images, 'create', '-q', '-f', 'vmdk', 'new.vmdk', '16M');
  await writeFile(join(seed, 'pattern'), randomFor(t).bytes(4_096_000));
  await runVm(t, 'survival', { seed, seconds: 1200 });
});
