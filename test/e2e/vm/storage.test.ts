/** Disks under load over the kernel’s target: file systems, resets, commands that make no sense. */

import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { requiresVm, runVm, seedWith } from '../../support/vm.ts';

test('file systems, trimmed space, verified load, resets and hostile commands over the kernel’s target', {
  skip: requiresVm(),
}, async (t) => {
  const { seed, images } = await seedWith(t, { 'disk.qcow2': '512M', 'disk.vmdk': '256M', 'hostile.qcow2': '16M' });
  const tree = join(seed, 'tree');
  const sums: string[] = [];
  for (const folder of ['a', 'b']) {
    await mkdir(join(tree, folder), { recursive: true });
    for (let i = 0; i < 40; i++) {
      const bytes = Buffer.alloc(1000 + 7919 * i).map((_, at) => (at * (i + 3)) % 256);
      await writeFile(join(tree, folder, `file${i}`), bytes);
      sums.push(`${createHash('md5').update(bytes).digest('hex')}  tree/${folder}/file${i}\n`);
    }
  }
  await writeFile(join(images, 'tree.md5'), sums.join(''));
  await runOk('tar', ['-C', seed, '-cf', join(images, 'tree.tar'), 'tree']);
  await writeFile(join(seed, 'seed'), `${randomFor(t).below(2 ** 31)}\n`);
  await runVm(t, 'storage', { seed, seconds: 600 });
});
