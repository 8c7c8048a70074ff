/** `lunette daemon` with exports from its configuration, without the kernel's target. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { MiB } from '../../../formats/core/units.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { lunetteArgs } from '../../support/built.ts';
import { connectInitiator } from '../../support/iscsi-initiator.ts';
import { run, runOk, start } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requirePrograms, requires } from '../../support/requires.ts';
import { cdb } from '../../support/scsi.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

/** Listens where systemd would, and prints what it is told. */
const SYSTEMD = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('listening', flush=True)
while True:
    for line in s.recv(4096).decode().split('\\n'):
        print(line, flush=True)
`;

test('images are served as configured; a reload serves others; a wrong configuration changes nothing', {
  skip: requires.qemuImg() || requires.libiscsi() || requirePrograms(['python3'], 'python3'),
}, async (t) => {
  const directory = await temporaryDirectory(t);
  const config = join(directory, 'lunette.toml');
  const socket = join(directory, 'nbd.sock');
  const disk = await qemu.create(t, { size: 32 * MiB, path: join(directory, 'disk.qcow2') });
  const data = await qemu.create(t, { size: 16 * MiB, path: join(directory, 'data.qcow2') });
  await qemu.io(disk, 'write -P 0x11 1M 2M');
  await qemu.io(data, 'write -P 0x22 1M 2M');
  const entry = (name: string, image: string, transport: string, more = ''): string =>
    `[[export]]\nname = "${name}"\nimage = "${image}"\ntransport = "${transport}"\n${more}\n`;
  const head = `[tcmu]\nenable = false\n[iscsi]\nlisten = "127.0.0.1:0"\n[nbd]\nsocket = "${socket}"\n`;
  await writeFile(
    config,
    `state-directory = "${directory}"\n${head}${entry('one', disk, 'iscsi')}${entry('two', data, 'nbd', 'read-only = true')}`,
  );

  const notify = join(directory, 'notify.sock');
  const systemd = start(t, 'python3', ['-c', SYSTEMD, notify]);
  await systemd.waitForLine(/^listening$/);
  const args = lunetteArgs('daemon', '--config', config);
  const daemon = start(t, process.execPath, args, { env: { ...process.env, NOTIFY_SOCKET: notify } });
  const url = async (name: string): Promise<string> =>
    (await daemon.waitForLine(new RegExp(`${name}: ready (\\S+)`), { stream: 'stderr' }))[1] as string;
  const iscsi = await url('one');
  assert.match(iscsi, /^iscsi:\/\/127\.0\.0\.1:\d+\/iqn\.2026-11\.lunette\.host:one\/0$/);
  const nbd = await url('two');
  await daemon.waitForLine(/^ready \(0 devices, 2 exports\)$/);
  await systemd.waitForLine(/^READY=1$/);
  await systemd.waitForLine(/^STATUS=0 devices, 2 exports$/);
  await runOk('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'qcow2', iscsi, disk]);
  await runOk('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'qcow2', nbd, data]);
  const write = ['-f', 'raw', '-c', 'write 0 4096', nbd];
  assert.notEqual((await run('qemu-io', write)).status, 0, 'a read-only export took a write');

  await writeFile(config, 'cache = = 1\n');
  daemon.child.kill('SIGHUP');
  await daemon.waitForLine(/the configuration stays as it was: .*line 1/, { stream: 'stderr' });
  await runOk('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'qcow2', iscsi, disk]);

  await writeFile(
    config,
    `state-directory = "${directory}"\n${head}${entry('one', disk, 'iscsi')}${entry('three', data, 'nbd')}`,
  );
  daemon.child.kill('SIGHUP');
  await daemon.waitForLine(/removed export two/, { stream: 'stderr' });
  const three = await url('three');
  await systemd.waitForLine(/^RELOADING=1$/);
  await runOk('qemu-io', ['-f', 'raw', '-c', 'write -P 0x33 0 64k', three]);
  // What did not change was not interrupted: the address is the same.
  await runOk('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'qcow2', iscsi, disk]);

  daemon.child.kill('SIGTERM');
  assert.deepEqual(await daemon.wait(), { status: 0, signal: null });
  await systemd.waitForLine(/^STOPPING=1$/);
  await runOk('qemu-img', ['check', '-q', data]);
  await qemu.io(data, 'read -P 0x33 0 64k');
  assert.match(await readFile(config, 'utf8'), /three/);
});

const portOf = (url: string): number => Number(/:(\d+)\//.exec(url)?.[1]);

test('a reload touches what has changed: sessions of other exports go on, also of one that cannot be opened', {
  skip: requires.qemuImg(),
}, async (t) => {
  const directory = await temporaryDirectory(t);
  const config = join(directory, 'lunette.toml');
  const socket = join(directory, 'nbd.sock');
  const disks = await Promise.all(
    ['one', 'two', 'three'].map((name) => qemu.create(t, { size: 16 * MiB, path: join(directory, `${name}.qcow2`) })),
  );
  const [one = '', two = '', three = ''] = disks;
  const entry = (name: string, image: string, transport: string, more = ''): string =>
    `[[export]]\nname = "${name}"\nimage = "${image}"\ntransport = "${transport}"\n${more}\n`;
  const head = `state-directory = "${directory}"\n[tcmu]\nenable = false\n[iscsi]\nlisten = "127.0.0.1:0"\n[nbd]\nsocket = "${socket}"\n`;
  const kept = entry('disk', one, 'iscsi') + entry('data', two, 'nbd');
  await writeFile(config, `${head}${kept}${entry('gone', join(directory, 'missing.qcow2'), 'nbd')}`);
  const daemon = start(t, process.execPath, lunetteArgs('daemon', '--config', config));
  const ready = async (name: string): Promise<string> =>
    (await daemon.waitForLine(new RegExp(`${name}: ready (\\S+)`), { stream: 'stderr' }))[1] as string;
  const iscsi = await ready('disk');
  const nbd = await ready('data');
  await daemon.waitForLine(/gone is not served over nbd: .*missing\.qcow2/, { stream: 'stderr' });

  // Sessions that stay: an initiator that logs in once, and a client that connects once.
  const initiator = await connectInitiator(portOf(iscsi));
  t.after(() => initiator.close());
  await initiator.login({ target: 'iqn.2026-11.lunette.host:disk' });
  const client = await NbdImage.open(nbd, { reconnectMs: 0 });
  t.after(() => client.close().catch(() => undefined));
  const check = async (value: number): Promise<void> => {
    assert.equal((await initiator.command(cdb.testUnitReady)).status, 0);
    const bytes = Buffer.alloc(4096, value);
    await client.writev(0, IoVec.of(bytes));
    const back = Buffer.alloc(4096);
    await client.readv(0, IoVec.of(back));
    assert.deepEqual(back, bytes);
  };
  await initiator.command(cdb.testUnitReady); // takes the unit attention of power on
  await check(1);

  // One more of each, and the missing one is there now.
  await runOk('qemu-img', ['create', '-q', '-f', 'qcow2', join(directory, 'missing.qcow2'), '1M']);
  await writeFile(
    config,
    `${head}${kept}${entry('gone', join(directory, 'missing.qcow2'), 'nbd')}${entry('more', three, 'iscsi')}`,
  );
  daemon.child.kill('SIGHUP');
  const more = await ready('more');
  await ready('gone');
  await check(2);
  assert.equal(portOf(more), portOf(iscsi));

  // And away with them: their images are free, the others go on.
  await writeFile(config, `${head}${kept}`);
  daemon.child.kill('SIGHUP');
  await daemon.waitForLine(/removed export more/, { stream: 'stderr' });
  for (let left = 200; (await run('qemu-io', ['-f', 'qcow2', '-c', 'write 0 4k', three])).status !== 0; left--) {
    assert.ok(left > 0, 'the image of an export that was removed stays locked');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await check(3);
  assert.notEqual((await run('qemu-img', ['info', more])).status, 0);
  await client.close();
  daemon.child.kill('SIGTERM');
  assert.deepEqual(await daemon.wait(), { status: 0, signal: null });
});

test('a drop-in for systemd names the directories of the configuration', async (t) => {
  const directory = await temporaryDirectory(t);
  const config = join(directory, 'lunette.toml');
  await writeFile(config, 'allow = ["/images"]\n');
  const args = lunetteArgs('daemon', '--print-drop-in', '--config', config);
  assert.match(await runOk(process.execPath, args), /^ReadWritePaths=-\/images$/m);
});
