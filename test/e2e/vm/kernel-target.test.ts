/** Disks under load over the kernel's target, and the daemon killed under them. */

import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { suite, test } from 'node:test';
import { runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { requiresVm, runVm } from '../../support/vm.ts';
import { tryLibiscsi } from './libiscsi.ts';
import { requiresPackaging, tryPackage } from './package.ts';

const img = (folder: string, ...args: string[]): Promise<string> => runOk('qemu-img', args, { cwd: folder });

// Two at a time, the longest first: each waits for much of its time.
suite('over the kernel’s target', { concurrency: 2, skip: requiresVm() }, () => {
  test('a daemon killed ten times under load, ended under load, or dead for long: what was flushed is there, errors come only from the long death', async (t) => {
    const seed = await temporaryDirectory(t);
    const images = join(seed, 'images');
    await mkdir(images);
    await img(images, 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '512M');
    await img(images, 'create', '-q', '-f', 'qcow2', 'dead.qcow2', '64M');
    await img(images, 'create', '-q', '-f', 'vmdk', 'new.vmdk', '16M');
    await writeFile(join(seed, 'pattern'), randomFor(t).bytes(4_096_000));
    await runVm(t, 'survival', { seed, seconds: 900 });
  });

  test(
    'what libiscsi’s suite finds on a disk behind the kernel’s target is the kernel’s own',
    { skip: requires.libiscsi() },
    tryLibiscsi,
  );

  test('file systems, trimmed space, verified load, resets and hostile commands over the kernel’s target', async (t) => {
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

  test(
    'the Debian package takes tcmu-runner’s place, is kept running by systemd, and leaves nothing when it is removed',
    {
      skip: requiresPackaging(),
    },
    tryPackage,
  );

  test('stock targetcli makes, saves, restores, grows and deletes backstores; daemons come and go meanwhile', async (t) => {
    const seed = await temporaryDirectory(t);
    const images = join(seed, 'images');
    await mkdir(images);
    await img(images, 'create', '-q', '-f', 'qcow2', 'q.qcow2', '64M');
    await img(images, 'create', '-q', '-f', 'vmdk', 'm.vmdk', '64M');
    await img(images, 'create', '-q', '-f', 'vdi', 'v.vdi', '64M');
    await img(images, 'create', '-q', '-f', 'qcow', 'old.qcow', '16M');
    await runVm(t, 'targetcli', { seed, seconds: 400 });
  });

  test('export --transport lio makes targets of the kernel and takes them down; discs in drives are exchanged', async (t) => {
    const seed = await temporaryDirectory(t);
    const images = join(seed, 'images');
    await mkdir(images);
    await img(images, 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '128M');
    await img(images, 'create', '-q', '-f', 'vmdk', 'data.vmdk', '32M');
    await runOk('qemu-io', ['-f', 'vmdk', '-c', 'write -P 7 1M 3M', join(images, 'data.vmdk')]);
    const random = randomFor(t);
    await writeFile(join(images, 'a.iso'), random.bytes(2 * 1024 * 1024));
    await writeFile(join(images, 'b.iso'), random.bytes(3 * 1024 * 1024));
    await runVm(t, 'export', { seed, seconds: 400 });
  });
});
