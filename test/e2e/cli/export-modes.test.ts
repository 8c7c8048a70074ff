/** What `export` does with an image: written in place, guarded, read-only, a snapshot of it, or under an overlay. */

import assert from 'node:assert/strict';
import { readdir, readFile, symlink, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { cli, readyUrls, startCliExport } from '../../support/cli.ts';
import { startExport } from '../../support/lunette-export.ts';
import { run, runOk, start } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

const initiator = requires.qemuIscsi();

/** A qcow2 of 16 MiB with 1s in its first MiB, in a directory of its own. */
async function imageOfOnes(t: Cleanup): Promise<string> {
  const image = await qemu.create(t, { size: 16 * MiB });
  await qemu.io(image, 'write -P 1 0 1M');
  return image;
}

const sum = async (path: string): Promise<string> => (await runOk('sha256sum', [path])).split(' ')[0] as string;

/** A file that is open under a path that is gone: in /proc, by process. */
async function deletedOverlays(pid: number): Promise<string[]> {
  const links = await runOk('ls', ['-l', `/proc/${pid}/fd`]);
  return links.split('\n').filter((line) => /\.lunette-.*qcow2 \(deleted\)/.test(line));
}

describe('export', { skip: initiator }, () => {
  test('prints exactly one ready line per image on stdout, and how to attach on stderr', async (t) => {
    const image = await imageOfOnes(t);
    const running = await startCliExport(t, [image]);
    const port = new URL((readyUrls(running.stdout)[0] as string).replace('iscsi:', 'http:')).port;
    assert.equal(
      running.stdout,
      `ready iscsi://127.0.0.1:${port}/iqn.2026-11.lunette.host:disk/0 (disk.qcow2, qcow2, 16 MiB)\n`,
    );
    for (const hint of ['iscsi-ls', 'qemu-system', 'iscsiadm -m discovery', '--login', 'Connect-IscsiTarget']) {
      await running.waitFor(new RegExp(hint), 'stderr');
    }
    running.interrupt('SIGINT');
    assert.equal(await running.ended, 0);
  });

  test('-q prints the ready line and nothing else', async (t) => {
    const running = await startCliExport(t, ['-q', await imageOfOnes(t)]);
    await qemu.io(readyUrls(running.stdout)[0] as string, 'read -P 1 0 1M');
    running.interrupt();
    assert.equal(await running.ended, 0);
    assert.equal(running.stderr, '');
  });

  test('writes of an initiator are in the image after the end', async (t) => {
    const image = await imageOfOnes(t);
    const running = await startCliExport(t, [image]);
    await qemu.io(readyUrls(running.stdout)[0] as string, 'write -P 2 64k 64k', 'read -P 1 0 64k');
    running.interrupt();
    assert.equal(await running.ended, 0);
    await qemu.io(image, 'read -P 1 0 64k', 'read -P 2 64k 64k', 'read -P 1 128k 896k');
    await qemu.assertClean(image);
  });

  test('--snapshot serves an internal snapshot, read-only, by name or id', async (t) => {
    const image = await imageOfOnes(t);
    await qemu.img('snapshot', '-c', 'first', image);
    await qemu.io(image, 'write -P 9 0 1M');
    for (const name of ['first', '1']) {
      const running = await startCliExport(t, ['--snapshot', name, image]);
      const url = readyUrls(running.stdout)[0] as string;
      await qemu.img('compare', '-f', 'raw', '-F', 'raw', url, url);
      const read = await run('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 1 0 1M', url]);
      assert.doesNotMatch(read.stdout + read.stderr, /failed/);
      const refused = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 64k', url]);
      assert.match(refused.stdout + refused.stderr, /read.?only|write.?protect|not permitted/i);
      running.interrupt();
      assert.equal(await running.ended, 0);
    }
    const missing = await cli('export', '--listen', '0', '--snapshot', 'second', image);
    assert.equal(missing.status, 1);
    assert.match(missing.stderr, /second.*\(NOT_FOUND\)/);
  });

  test('--snapshot with --ephemeral is a disk that can be written to, as it was then', async (t) => {
    const image = await imageOfOnes(t);
    await qemu.img('snapshot', '-c', 'first', image);
    await qemu.io(image, 'write -P 9 0 1M');
    const before = await sum(image);
    const running = await startCliExport(t, ['--snapshot', 'first', '--ephemeral', image]);
    const url = readyUrls(running.stdout)[0] as string;
    await qemu.io(url, 'read -P 1 0 1M', 'write -P 2 1k 1k', 'discard 64k 64k', 'write -z 128k 64k');
    await qemu.io(
      url,
      'read -P 1 0 1k',
      'read -P 2 1k 1k',
      'read -P 1 2k 62k',
      'read -P 0 128k 64k',
      'read -P 1 192k 64k',
    );
    running.interrupt();
    assert.equal(await running.ended, 0);
    assert.equal(await sum(image), before);
  });

  test('--ephemeral says where writes go, and leaves nothing behind, not even after kill -9', async (t) => {
    const image = await imageOfOnes(t);
    const before = await sum(image);
    const served = await startExport(t, image, { args: ['--ephemeral'] });
    await qemu.io(served.url, 'write -P 2 0 4M', 'flush');
    const [, place] = await served.process.waitForLine(/writes go to a temporary overlay in (\S+) \(.* free\)/, {
      stream: 'stderr',
    });
    assert.ok([dirname(image), tmpdir()].includes(place as string), place);
    assert.equal((await deletedOverlays(served.pid)).length, 1);
    await served.kill();
    for (const directory of [dirname(image), tmpdir()]) {
      const left = (await readdir(directory)).filter((name) => name.startsWith(`.lunette-${served.pid}-`));
      assert.deepEqual(left, []);
    }
    assert.equal(await sum(image), before);
  });

  test('--ephemeral keeps others from writing to the image meanwhile', async (t) => {
    const image = await imageOfOnes(t);
    const running = await startCliExport(t, ['--ephemeral', image]);
    const refused = await run('qemu-io', ['-c', 'write 0 64k', image]);
    assert.match(refused.stderr, /lock/);
    running.interrupt();
    await running.ended;
    await qemu.io(image, 'write 0 64k');
  });

  test('--overlay makes the overlay when it is missing, and goes on with it when it is there', async (t) => {
    const image = await imageOfOnes(t);
    const overlay = join(dirname(image), 'today.qcow2');
    const before = await sum(image);
    const first = await startCliExport(t, ['--overlay', overlay, image]);
    await first.waitFor(/writes go to .*today\.qcow2, made for it/, 'stderr');
    await qemu.io(readyUrls(first.stdout)[0] as string, 'write -P 2 0 64k');
    first.interrupt();
    assert.equal(await first.ended, 0);
    assert.equal(await sum(image), before);
    const info = await qemu.info(overlay);
    assert.equal(info['backing-filename'], 'disk.qcow2', 'by name alone, so that both can be moved');
    assert.equal(info['backing-filename-format'], 'qcow2');
    await qemu.assertClean(overlay);

    const second = await startCliExport(t, ['--overlay', overlay, image]);
    await qemu.io(readyUrls(second.stdout)[0] as string, 'read -P 2 0 64k', 'read -P 1 64k 960k', 'write -P 3 64k 64k');
    second.interrupt();
    assert.equal(await second.ended, 0);
    await qemu.io(overlay, 'read -P 2 0 64k', 'read -P 3 64k 64k', 'read -P 1 128k 896k');
    await qemu.assertClean(overlay);
  });

  test('an overlay in another directory names the image by its whole path, also through a link', async (t) => {
    const image = await imageOfOnes(t);
    const directory = await temporaryDirectory(t);
    const link = join(directory, 'link.qcow2');
    await symlink(image, link);
    const overlay = join(await temporaryDirectory(t), 'o.qcow2');
    for (const name of [image, link]) {
      const running = await startCliExport(t, ['--overlay', overlay, name]);
      await qemu.io(readyUrls(running.stdout)[0] as string, 'read -P 1 0 1M');
      running.interrupt();
      assert.equal(await running.ended, 0);
    }
    assert.equal((await qemu.info(overlay))['backing-filename'], image);
  });

  test('a file that is no overlay of the image is refused and left alone', async (t) => {
    const image = await imageOfOnes(t);
    const other = await qemu.create(t, { size: 16 * MiB, path: join(dirname(image), 'other.qcow2') });
    const ofOther = await qemu.create(t, { path: join(dirname(image), 'of-other.qcow2'), backing: 'other.qcow2' });
    const text = await temporaryFile(t, 'letter.txt', 'Dear Sir or Madam');
    for (const [overlay, why] of [
      [other, /it has no backing file/],
      [ofOther, /this is an overlay of other\.qcow2, not of /],
      [text, /no qcow2 file/],
    ] as const) {
      const before = await sum(overlay);
      const { status, stderr } = await cli('export', '--listen', '0', '--overlay', overlay, image);
      assert.equal(status, 1);
      assert.match(stderr, why);
      assert.match(stderr, /\(PARENT_MISMATCH\)/);
      assert.equal(await sum(overlay), before);
    }
  });

  test('a raw image that was only probed refuses writes that would make it a qcow2; with -f raw they go through', async (t) => {
    const image = await temporaryFile(t, 'disk.img', '');
    await truncate(image, MiB);
    const header = await temporaryFile(
      t,
      'header.bin',
      Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(508)]),
    );

    const probed = await startCliExport(t, [image]);
    await probed.waitFor(/taken for raw by its content/, 'stderr');
    const url = readyUrls(probed.stdout)[0] as string;
    const refused = await run('qemu-io', [
      '-f',
      'raw',
      '-c',
      `write -s ${header} 0 512`,
      '-c',
      'write -P 5 512 4k',
      url,
    ]);
    assert.match(refused.stdout + refused.stderr, /write failed/);
    await probed.waitFor(/look like qcow2 was refused/, 'stderr');
    await qemu.io(url, 'read -P 0 0 512', 'read -P 5 512 4k', 'write -P 6 0 512');
    probed.interrupt();
    assert.equal(await probed.ended, 0);

    const named = await startCliExport(t, ['-f', 'raw', image]);
    await qemu.io(readyUrls(named.stdout)[0] as string, `write -s ${header} 0 512`);
    named.interrupt();
    assert.equal(await named.ended, 0);
    assert.equal((await readFile(image)).toString('latin1', 0, 4), 'QFI\xfb');
  });

  test('an image that QEMU writes to is refused with the holder’s name, and can be read with -U', async (t) => {
    const image = await imageOfOnes(t);
    const holder = start(t, 'qemu-io', ['-c', 'sleep 60000', image]);
    for (let tries = 0; !(await run('qemu-img', ['info', image])).stderr.includes('lock'); tries++)
      assert.ok(tries < 500);
    const refused = await cli('export', '--listen', '0', image);
    assert.equal(refused.status, 1);
    assert.match(
      refused.stderr,
      new RegExp(`held by qemu-io \\(pid ${holder.pid}\\).*\\(LOCKED\\)\n.*--read-only or --ephemeral`),
    );
    const reading = await cli('export', '--listen', '0', '--read-only', image);
    assert.match(reading.stderr, /\(LOCKED\)\n.*--force-share/);
    const shared = await startCliExport(t, ['-U', '--read-only', image]);
    const read = await run('qemu-io', [
      '-r',
      '-f',
      'raw',
      '-c',
      'read -P 1 0 1M',
      readyUrls(shared.stdout)[0] as string,
    ]);
    assert.doesNotMatch(read.stdout + read.stderr, /failed/);
    assert.equal((await cli('info', image)).status, 1);
    assert.equal((await cli('info', '-U', image)).status, 0);
  });

  test('one image cannot be exported twice for writing, and a failure serves none', async (t) => {
    const image = await imageOfOnes(t);
    const { status, stdout, stderr } = await cli('export', '--listen', '0', image, image);
    assert.equal(status, 1);
    assert.equal(stdout, '');
    assert.match(stderr, /\(LOCKED\)/);
    const twice = await startCliExport(t, ['--read-only', image, image], 2);
    assert.match(twice.stdout, /host:disk\/0 .*\n.*host:disk-2\/0 /);
  });

  test('--one-target makes the images LUN 0, 1, 2 of one target', async (t) => {
    const images = [await imageOfOnes(t), await qemu.create(t, { size: 8 * MiB }), await imageOfOnes(t)];
    const running = await startCliExport(t, ['--one-target', '--name', 'Group', ...images], 3);
    const urls = readyUrls(running.stdout);
    assert.deepEqual(
      urls.map((url) => url.replace(/.*host:/, '')),
      ['group/0', 'group/1', 'group/2'],
    );
    await qemu.io(urls[1] as string, 'read -P 0 0 8M', 'write -P 2 0 64k');
    await qemu.io(urls[2] as string, 'read -P 1 0 1M');
  });

  test('--block-size 4096 and a size that is no multiple of it: the rest is not visible, and a warning says so', async (t) => {
    const image = await temporaryFile(t, 'disk.raw', '');
    await truncate(image, 64 * KiB + 512);
    const running = await startCliExport(t, ['-f', 'raw', '--block-size', '4096', image]);
    await running.waitFor(/its last 512 bytes are less than a block/, 'stderr');
    const size = await runOk('iscsi-readcapacity16', [readyUrls(running.stdout)[0] as string]);
    assert.match(size, /BLOCK LENGTH IN BYTES:4096$/m);
    assert.match(size, /^RETURNED LOGICAL BLOCK ADDRESS:15$/m);
  });

  test('an image of no size is refused', async (t) => {
    const { status, stderr } = await cli('export', '--listen', '0', '-f', 'raw', await temporaryFile(t, 'empty', ''));
    assert.equal(status, 1);
    assert.match(stderr, /0 bytes, less than one block of 512 \(INVALID\)/);
  });
});
