/** Targets of the kernel’s made and taken down by the command alone. */

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { requiresVm, runVm, seedWith } from '../../support/vm.ts';

test('export --transport lio makes targets of the kernel and takes them down; discs in drives are exchanged', {
  skip: requiresVm(),
}, async (t) => {
  const { seed, images } = await seedWith(t, { 'disk.qcow2': '128M', 'data.vmdk': '32M' });
  await runOk('qemu-io', ['-f', 'vmdk', '-c', 'write -P 7 1M 3M', join(images, 'data.vmdk')]);
  const random = randomFor(t);
  await writeFile(join(images, 'a.iso'), random.bytes(2 * 1024 * 1024));
  await writeFile(join(images, 'b.iso'), random.bytes(3 * 1024 * 1024));
  await runVm(t, 'export', { seed, seconds: 400, cpus: 1 });
});
