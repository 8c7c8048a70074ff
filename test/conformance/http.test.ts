/** Images on a web server that is not ours (busybox), as QEMU reads them and as we do. */

import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { MiB } from '../../formats/core/units.ts';
import { cli, readyUrls, startCliExport } from '../support/cli.ts';
import { freePort } from '../support/ports.ts';
import { run, start } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { cannotRun, requirePrograms, requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuIo() || requirePrograms(['busybox'], 'busybox');

/** A folder and the address that it has. */
async function served(t: TestContext): Promise<{ folder: string; url: string }> {
  const folder = await temporaryDirectory(t);
  const port = await freePort();
  start(t, 'busybox', ['httpd', '-f', '-p', `127.0.0.1:${port}`, '-h', folder]);
  const url = `http://127.0.0.1:${port}`;
  await writeFile(join(folder, 'there'), 'yes');
  for (let i = 0; i < 100 && !(await fetch(`${url}/there`).catch(() => undefined))?.ok; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return { folder, url };
}

async function chain(folder: string): Promise<void> {
  await mkdir(join(folder, 'images'));
  const base = join(folder, 'images/base.qcow2');
  await qemu.img('create', '-q', '-f', 'qcow2', base, '48M');
  await qemu.io(base, 'write -P 1 1M 20M', 'write -P 2 40M 2M');
  const top = join(folder, 'images/top.qcow2');
  await qemu.img('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', top);
  await qemu.io(top, 'write -P 3 2M 3M', 'write -z 10M 1M');
}

test('a chain on a web server is read, described and mapped as QEMU does', { skip }, async (t) => {
  const { folder, url } = await served(t);
  await chain(folder);
  const [top, local] = [`${url}/images/top.qcow2`, join(folder, 'images/top.qcow2')];
  const probe = await run('qemu-img', ['info', top]);
  if (probe.status !== 0) return cannotRun(t, `qemu-img reads no http here: ${probe.stderr}`);

  const out = join(folder, 'out.raw');
  const converted = await cli('convert', '--checksum', '-O', 'raw', top, out);
  assert.equal(converted.status, 0, converted.stderr);
  assert.equal(await qemu.compare(out, top, '-f', 'raw', '-F', 'qcow2'), true);
  const checksum = await cli('checksum', '--algorithm', 'sha256', top);
  assert.equal(checksum.stdout.split(' ')[0], converted.stdout.split(' ')[0]);

  assert.equal((await cli('compare', top, local)).status, 0);
  const ours = JSON.parse((await cli('info', '--compat', '7.2', '--backing-chain', '--json', top)).stdout);
  const theirs = JSON.parse((await run('qemu-img', ['info', '--backing-chain', '--output=json', top])).stdout);
  for (const each of theirs) delete each.children;
  assert.deepEqual(ours, theirs);
  const map = await cli('map', '--json', '--compat', '7.2', top);
  assert.deepEqual(JSON.parse(map.stdout), JSON.parse((await run('qemu-img', ['map', '--output=json', top])).stdout));
});

test('a disk on a web server is exported, read-only, and with an overlay that takes writes', { skip }, async (t) => {
  const { folder, url } = await served(t);
  await chain(folder);
  const top = `${url}/images/top.qcow2`;
  const plain = await startCliExport(t, ['--transport', 'nbd', top]);
  const [nbd] = readyUrls(plain.stdout);
  assert.equal(await qemu.compare(nbd as string, join(folder, 'images/top.qcow2'), '-f', 'raw', '-F', 'qcow2'), true);
  const write = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 512', nbd as string]);
  assert.notEqual(write.status, 0);
  const overlay = await startCliExport(t, ['--transport', 'nbd', '--ephemeral', top]);
  const [writable] = readyUrls(overlay.stdout);
  await qemu.io(writable as string, 'write -P 9 0 64k', 'read -P 9 0 64k', 'read -P 3 2M 3M');
});

test('an image on a web server names no files elsewhere', { skip }, async (t) => {
  const { folder, url } = await served(t);
  await chain(folder);
  const secret = join(await temporaryDirectory(t), 'secret.raw');
  await writeFile(secret, Buffer.alloc(MiB, 0x73));
  await mkdir(join(folder, 'images/deep'));
  for (const [name, backing] of Object.entries({
    local: secret,
    above: '../base.qcow2',
    elsewhere: `http://localhost:1/base.qcow2`,
  })) {
    const image = join(folder, `images/deep/${name}.qcow2`);
    await qemu.img(
      'create',
      '-q',
      '-u',
      '-f',
      'qcow2',
      '-b',
      backing,
      '-F',
      backing === secret ? 'raw' : 'qcow2',
      image,
      '1M',
    );
    const denied = await cli('checksum', `${url}/images/deep/${name}.qcow2`);
    assert.equal(denied.status, 1);
    assert.match(denied.stderr, /outside the directories .*\(DENIED\)/, name);
  }
  const allowed = await cli('checksum', '--allow', `${url}/images`, `${url}/images/deep/above.qcow2`);
  assert.equal(allowed.status, 0, allowed.stderr);
  const local = join(folder, 'images/local.qcow2');
  await qemu.img('create', '-q', '-u', '-f', 'qcow2', '-b', `${url}/images/base.qcow2`, '-F', 'qcow2', local, '48M');
  assert.match((await cli('checksum', local)).stderr, /\(DENIED\)\n.*--allow http:/);
  const base = await cli('checksum', `${url}/images/base.qcow2`);
  const through = await cli('checksum', '--allow', `${url}/images/`, local);
  assert.equal(through.stdout.split(' ')[0], base.stdout.split(' ')[0], through.stderr);
});

test('commands that write refuse addresses, and say what is wrong with them', { skip }, async (t) => {
  const { folder, url } = await served(t);
  await writeFile(join(folder, 'a.raw'), Buffer.alloc(MiB));
  for (const args of [
    ['resize', `${url}/a.raw`, '2M'],
    ['create', '-f', 'raw', `${url}/new.raw`, '1M'],
    ['convert', '-O', 'raw', join(folder, 'a.raw'), `${url}/a.raw`],
  ]) {
    const { status, stderr } = await cli(...args);
    assert.equal(status, 1, args.join(' '));
    assert.match(stderr, /web server/, args.join(' '));
  }
  assert.match(
    (await cli('info', `${url}/missing.raw`)).stderr,
    /no such file on the server \(status 404\) \(NOT_FOUND\)/,
  );
  assert.equal((await readFile(join(folder, 'a.raw'))).length, MiB);
});
