/** Formats that QEMU opens for us: `qemu:FORMAT:PATH` through a qemu-nbd of our own. */

import assert from 'node:assert/strict';
import { chmod, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { IoVec } from '../../../formats/index.ts';
import { createHost } from '../../../src/open/host.ts';
import { openBridge } from '../../../src/qemu/bridge.ts';
import { runLunette, startExport } from '../../support/lunette-export.ts';
import { startNbdExport } from '../../support/nbd.ts';
import { run, runOk } from '../../support/process.ts';
import { childrenOf, isRunning } from '../../support/process-usage.ts';
import { qemu } from '../../support/qemu.ts';
import { findProgram, requires } from '../../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;
const needs = requires.qemuNbd() || requires.linux();

interface Foreign {
  /** As QEMU names it on a command line that is not ours. */
  readonly node: string;
  readonly path: string;
  readonly key?: string;
}

/** An image of a format with 7 in its second MiB. */
async function foreign(t: Cleanup, format: string, name = `disk.${format}`): Promise<Foreign> {
  const folder = await temporaryDirectory(t);
  const path = join(folder, name);
  if (format !== 'luks') {
    await qemu.create(t, { format, path, size: 8 * MiB });
    await runOk('qemu-io', ['-f', format, '-c', 'write -P 7 1M 1M', path]);
    return { node: `driver=${format},file.driver=file,file.filename=${path.replaceAll(',', ',,')}`, path };
  }
  const key = join(folder, 'key');
  await writeFile(key, 'a passphrase');
  const secret = `secret,id=s,file=${key}`;
  const create = ['create', '-q', '--object', secret, '-f', 'luks', '-o', 'key-secret=s,iter-time=10', path, '8M'];
  // It measures how quick the machine is, and gives up when that is busy.
  for (let i = 1; i < 10 && (await run('qemu-img', create)).status !== 0; i++) await rm(path, { force: true });
  const node = `driver=luks,key-secret=s,file.driver=file,file.filename=${path}`;
  await runOk('qemu-io', ['--object', secret, '--image-opts', '-c', 'write -P 7 1M 1M', node]);
  return { node, path, key };
}

/** An open that is not the bridge's. */
async function openHost(path: string): Promise<void> {
  const host = createHost();
  try {
    await host.open(path, { format: 'raw', readOnly: true });
  } finally {
    await host.close();
  }
}

async function within(seconds: number, what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    if (i > seconds * 50) assert.fail(`not within ${seconds} s: ${what}`);
    await sleep(20);
  }
}

test('every format that qemu-img makes: read and written through the bridge, QEMU finds it whole, others find it locked', {
  skip: needs,
}, async (t) => {
  for (const format of ['vpc', 'vhdx', 'qed', 'parallels', 'qcow', 'luks']) {
    const { node, path, key } = await foreign(t, format);
    const url = `qemu:${format}:${path}`;
    const bytes = Buffer.alloc(MiB);
    const reading = await openBridge(url, { readOnly: true, secretFile: key });
    await reading.image.readv(MiB, IoVec.of(bytes));
    assert.ok(bytes.equals(Buffer.alloc(MiB, 7)), format);
    await assert.rejects(reading.image.writev(0, IoVec.of(bytes)), { code: 'READ_ONLY' });
    const shared = await openBridge(url, { readOnly: true, secretFile: key, forceShare: true });
    await shared.image.close();
    await reading.image.close();

    const { image, pid } = await openBridge(url, { readOnly: false, secretFile: key });
    t.after(() => image.close().catch(() => undefined));
    await image.writev(3 * MiB, IoVec.of(bytes.fill(9), 0, 100_000));
    await image.writeZeroes(MiB, 64 * 1024, true);
    await image.flush();
    await assert.rejects(openBridge(url, { readOnly: false, secretFile: key }), { code: 'LOCKED' });
    await assert.rejects(openHost(path), { code: 'LOCKED' });
    await image.close();
    assert.ok(!isRunning(pid as number), 'it ends with the image');
    const theirs = [...(key === undefined ? [] : ['--object', `secret,id=s,file=${key}`]), '--image-opts', node];
    const reads = ['read -P 9 3M 100000', 'read -P 0 1M 64k', 'read -P 7 1088k 960k'];
    await runOk('qemu-io', ['-r', ...reads.flatMap((read) => ['-c', read]), ...theirs]);
  }
});

test('the command line: info says that the bridge answered, an export is served with its secret and is not written to', {
  skip: needs,
}, async (t) => {
  const { path, key } = await foreign(t, 'luks');
  const args = ['--secret-file', key as string];
  const info = await runLunette(['info', '--json', ...args, `qemu:luks:${path}`]);
  assert.deepEqual([info.status, info.stderr], [0, '']);
  const facts = JSON.parse(info.stdout) as Record<string, unknown>;
  assert.deepEqual([facts.format, facts['virtual-size']], ['luks', 8 * MiB]);
  assert.match(JSON.stringify(facts['format-specific']), /"bridge":"qemu-nbd","bridge-version":"\d+\./);
  const served = await startNbdExport(t, `qemu:luks:${path}`, { args: ['--socket', '', '--read-only', ...args] });
  assert.match(served.process.stdout, /ready nbd\+unix.* \(disk.luks, luks, 8 MiB\)/);
  await runOk('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 7 1M 1M', served.url]);
  assert.notEqual((await run('qemu-io', ['-f', 'raw', '-c', 'write 0 64k', served.url])).status, 0);
  assert.equal((await served.process.stop()).status, 0);
  const doctor = await runLunette(['doctor']);
  assert.match(doctor.stdout, /qemu-nbd +\d.*formats: vpc, vhdx, .*luks/);
});

test('a name with commas, quotes, colons and blanks is one name; and the same over iSCSI', {
  skip: needs,
}, async (t) => {
  const { path } = await foreign(t, 'vhdx', 'a,driver=raw "b":\'c\' ü{}.vhdx');
  const served = await startExport(t, `qemu:vhdx:${path}`, { args: ['--name', 'disk'] });
  const raw = join(await temporaryDirectory(t), 'copy.raw');
  await qemu.convert(served.url, raw, '-f', 'raw', '-O', 'raw');
  const bytes = await readFile(raw);
  assert.deepEqual([bytes.length, bytes[MiB], bytes[2 * MiB]], [8 * MiB, 7, 0]);
  await served.stop();
});

test('snapshots, JSON, protocols and the file that is not there', { skip: needs }, async (t) => {
  const disk = await qemu.create(t, { size: 8 * MiB });
  await qemu.io(disk, 'write -P 1 0 64k');
  await qemu.img('snapshot', '-c', 'snapshot.odd,name', disk);
  await qemu.io(disk, 'write -P 2 0 64k');
  const { image } = await openBridge(`qemu:qcow2:${disk}`, { readOnly: true, snapshot: 'snapshot.odd,name' });
  const bytes = new Uint8Array(512);
  await image.readv(0, IoVec.of(bytes));
  assert.equal(bytes[0], 1);
  await image.close();
  await assert.rejects(openBridge(`qemu:qcow2:${disk}`, { readOnly: true, snapshot: 'none' }), { code: 'NOT_FOUND' });
  const node = { driver: 'qcow2', file: { driver: 'file', filename: disk } };
  const json = await openBridge(`qemu:json:${JSON.stringify(node)}`, { readOnly: true });
  assert.deepEqual([json.image.format, json.image.size], ['qcow2', 8 * MiB]);
  await json.image.close();
  await assert.rejects(openBridge(`qemu:vhdx:${disk}.none`, { readOnly: true }), { code: 'NOT_FOUND' });
  await assert.rejects(openBridge(`qemu:vhdx:${disk}`, { readOnly: true }), { code: 'BAD_MAGIC' });
  await assert.rejects(openBridge(`qemu:vhdx:${disk}`, { readOnly: true, program: '/none/qemu-nbd' }), {
    code: 'UNAVAILABLE',
    help: /apt install qemu-utils/,
  });
  await assert.rejects(openBridge(`qemu:luks:${disk}`, { readOnly: true }), { code: 'AUTH', help: /--secret-file/ });
});

test('qemu-nbd is killed: reads and what was flushed go on, what was not flushed is not pretended', {
  skip: needs,
}, async (t) => {
  const { path } = await foreign(t, 'vhdx');
  const said: string[] = [];
  const opened = await openBridge(`qemu:vhdx:${path}`, { readOnly: false, warn: (text) => said.push(text) });
  const { image } = opened;
  t.after(() => image.close().catch(() => undefined));
  const pid = opened.pid as number;
  await image.writev(0, IoVec.of(Buffer.alloc(4096, 1)));
  await image.flush();
  process.kill(pid, 'SIGKILL');
  // Under way while it is killed, answered by the next one.
  const bytes = Buffer.alloc(8192);
  await Promise.all([image.readv(0, IoVec.of(bytes, 0, 4096)), image.writev(4096, IoVec.of(Buffer.alloc(4096, 2)))]);
  await image.flush();
  await image.readv(0, IoVec.of(bytes));
  assert.deepEqual([bytes[0], bytes[4096]], [1, 2]);
  assert.match(said.join('\n'), /qemu-nbd has ended \(signal SIGKILL\)[\s\S]*started again \(pid \d+\)/);

  const next = childrenOf(process.pid).get('qemu-nbd') as number;
  await image.writev(8192, IoVec.of(Buffer.alloc(4096, 3)));
  process.kill(next, 'SIGKILL');
  await within(10, 'its end is noticed', () => said.filter((text) => text.includes('SIGKILL')).length === 2);
  const lost = { code: 'IO', message: /may be lost.*until it is opened again/, path: `qemu:vhdx:${path}` };
  await assert.rejects(image.flush(), lost);
  await assert.rejects(image.writev(0, IoVec.of(Buffer.alloc(512))), lost);
  await assert.rejects(image.readv(0, IoVec.of(bytes)), lost);
  await assert.rejects(image.close(), lost);
  assert.equal(childrenOf(process.pid).get('qemu-nbd'), undefined, 'nothing is started for an image that is lost');
  const again = await openBridge(`qemu:vhdx:${path}`, { readOnly: false });
  await again.image.readv(0, IoVec.of(bytes));
  assert.deepEqual([bytes[0], bytes[4096]], [1, 2]);
  await again.image.close();
});

test('a qemu-nbd that is killed again and again comes back later and later, and reads get through', {
  skip: needs,
}, async (t) => {
  const { path } = await foreign(t, 'vpc');
  const { image } = await openBridge(`qemu:vpc:${path}`, { readOnly: true });
  t.after(() => image.close());
  for (let round = 0; round < 4; round++) {
    const bytes = Buffer.alloc(64 * 1024);
    const reads = Array.from({ length: 20 }, (_, i) => image.readv(MiB + i * 512, IoVec.of(Buffer.alloc(16_384))));
    process.kill(childrenOf(process.pid).get('qemu-nbd') as number, 'SIGKILL');
    await Promise.all(reads);
    await image.readv(MiB, IoVec.of(bytes));
    assert.ok(bytes.equals(Buffer.alloc(64 * 1024, 7)));
  }
});

for (const tethered of [true, false]) {
  test(`kill -9 of ours ends qemu-nbd ${tethered ? 'by the kernel' : 'by a shell that watches'}; nothing stays locked, directories are swept`, {
    skip: needs,
  }, async (t) => {
    const { path } = await foreign(t, 'qed');
    const folder = await temporaryDirectory(t);
    const env: NodeJS.ProcessEnv = { ...process.env, TMPDIR: folder, XDG_RUNTIME_DIR: '' };
    if (!tethered) {
      const bin = join(folder, 'bin');
      await mkdir(bin);
      for (const program of ['qemu-nbd', 'sleep']) await symlink(findProgram(program) as string, join(bin, program));
      env.PATH = bin;
    }
    const served = await startExport(t, `qemu:qed:${path}`, { args: ['--name', 'disk'], env });
    const children = childrenOf(served.pid);
    const child = tethered
      ? children.get('qemu-nbd')
      : childrenOf(children.get('sh') ?? (children.get('dash') as number)).get('qemu-nbd');
    assert.ok(child !== undefined && isRunning(child));
    const left = async (): Promise<string[]> =>
      (await readdir(folder)).filter((name) => name.startsWith('lunette-qemu-'));
    assert.equal((await left()).length, 1);
    await served.kill();
    await within(15, 'qemu-nbd ends', () => !isRunning(child));
    const again = await startExport(t, `qemu:qed:${path}`, { args: ['--name', 'disk'], env });
    assert.equal((await left()).length, 1, 'what the killed one left is swept');
    await again.stop();
    assert.deepEqual(await left(), []);
  });
}

test('its words are in our log, and a program that is no qemu-nbd is not taken for one', { skip: needs }, async (t) => {
  const folder = await temporaryDirectory(t);
  const { path } = await foreign(t, 'vpc');
  const odd = join(folder, 'qemu-nbd');
  await writeFile(odd, '#!/bin/sh\necho "something else 9.9"\n');
  await chmod(odd, 0o755);
  await assert.rejects(openBridge(`qemu:vpc:${path}`, { readOnly: true, program: odd }), { code: 'UNAVAILABLE' });
  const wordy = join(folder, 'wordy', 'qemu-nbd');
  await mkdir(join(folder, 'wordy'));
  await writeFile(
    wordy,
    `#!/bin/sh\n[ "$1" = -V ] || { (sleep 0.5; echo "a word" >&2) & }\nexec ${findProgram('qemu-nbd')} "$@"\n`,
  );
  await chmod(wordy, 0o755);
  const said: string[] = [];
  const { image } = await openBridge(`qemu:vpc:${path}`, {
    readOnly: true,
    program: wordy,
    warn: (text, of) => said.push(`${of}: ${text}`),
  });
  await within(10, 'it says something', () => said.length > 0);
  assert.deepEqual(said, [`qemu:vpc:${path}: a word`]);
  await image.close();
});
