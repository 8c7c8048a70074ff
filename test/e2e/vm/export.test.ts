/** Targets of the kernel’s made and taken down by the command alone. */

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { requiresVm, runVm } from '../../support/vm.ts';

const img = (folder: string, ...args: string[]): Promise<string> => runOk('qemu-img', args, { cwd: folder });

test('export --transport lio makes targets of the kernel and takes them down; discs in drives are exchanged', {
  skip: requiresVm(),
}, async (t) => {
  const seed = await temporaryDirectory(t);
  const images = join(seed, 'images');
  await mkdir(images);
  await img(images, 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '128M');
  await img(images, 'create', '-q', '-f', 'vmdk', 'data.vmdk', '32M');
  await runOk('qemu-io', ['-f', 'vmdk', '-c', 'write -P 7 1M 3M', join(images, 'data.vmdk')]);
  const random = randomFor(t);
  await writeFile(join(images, 'a.iso'), random.bytes(2 * 1024 * 1024));
  await writeFile(join(images, 'b.iso'), random.bytes(3 * 1024 * 1024));
  await runVm(t, 'export', { seed, seconds: 400, cpus: 1 });
});
