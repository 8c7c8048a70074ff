/** Disks under load over the kernel’s target: file systems, resets, commands that make no sense. */

import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { requiresVm, runVm } from '../../support/vm.ts';

const img = (folder: string, ...args: string[]): Promise<string> => runOk('qemu-img', args, { cwd: folder });

test('file systems, trimmed space, verified load, resets and hostile commands over the kernel’s target', {
  skip: requiresVm(),
}, async (t) => {
  const seed = await temporaryDirectory(t);
  const images = join(seed, 'images');
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
  await mkdir(images);
  await writeFile(join(images, 'tree.md5'), sums.join(''));
  await runOk('tar', ['-C', seed, '-cf', join(images, 'tree.tar'), 'tree']);
  await img(images, 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '512M');
  await img(images, 'create', '-q', '-f', 'vmdk', 'disk.vmdk', '256M');
  await img(images, 'create', '-q', '-f', 'qcow2', 'hostile.qcow2', '16M');
  await writeFile(join(seed, 'seed'), `${randomFor(t).below(2 ** 31)}\n`);
  await runVm(t, 'storage', { seed, seconds: 600 });
});
