/** What a running daemon is asked and told: `lunette status` and `stop`, its interface on D-Bus, metrics and health. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import type { DaemonStatus } from '../../../src/daemon/control.ts';
import { lunetteArgs } from '../../support/built.ts';
import { PrivateBus, requiresBus, requiresRoot } from '../../support/private-bus.ts';
import { type RunResult, run, runOk, start } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const skip = requiresBus() || requiresRoot() || requires.qemuImg() || requires.libiscsi();
const SERVICE = 'org.lunette.Daemon1';
const PATH = '/org/lunette/Daemon1';

async function setUp(t: Cleanup) {
  const bus = await PrivateBus.start(t);
  const directory = await temporaryDirectory(t);
  const config = join(directory, 'lunette.toml');
  const socket = join(directory, 'nbd.sock');
  const disk = await qemu.create(t, { size: 32 * MiB, path: join(directory, 'disk.qcow2') });
  const data = await qemu.create(t, { size: 16 * MiB, path: join(directory, 'data.qcow2') });
  await qemu.io(disk, 'write -P 0x11 1M 2M');
  await writeFile(
    config,
    `state-directory = "${directory}"
metrics = "127.0.0.1:0"
[tcmu]
enable = false
[iscsi]
listen = "127.0.0.1:0"
[nbd]
socket = "${socket}"
[[export]]
name = "one"
image = "${disk}"
transport = "iscsi"
[[export]]
name = "two"
image = "${data}"
transport = "nbd"
[[export]]
name = "three"
image = "/nowhere/at-all.qcow2"
transport = "nbd"
`,
  );
  const daemon = start(t, process.execPath, lunetteArgs('daemon', '--config', config));
  const [, metrics = ''] = await daemon.waitForLine(/metrics at (http:\S+)\/metrics/, { stream: 'stderr' });
  const [, iscsi = ''] = await daemon.waitForLine(/one: ready (\S+)/, { stream: 'stderr' });
  const [, nbd = ''] = await daemon.waitForLine(/two: ready (\S+)/, { stream: 'stderr' });
  await daemon.waitForLine(/^ready/);
  const cli = (...args: string[]): Promise<RunResult> => run(process.execPath, lunetteArgs(...args));
  const tell = (method: string, ...args: string[]): Promise<RunResult> =>
    bus.call(SERVICE, PATH, `${SERVICE}.${method}`, args);
  return { bus, daemon, disk, data, metrics, iscsi, nbd, cli, tell };
}

test('status says what is served and what is not; stop ends one export', { skip }, async (t) => {
  const { disk, data, metrics, iscsi, nbd, cli, daemon } = await setUp(t);
  await runOk('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'qcow2', iscsi, disk]);
  const json = await cli('status', '--json');
  assert.equal(json.status, 0, json.stderr);
  const status = JSON.parse(json.stdout) as DaemonStatus;
  assert.deepEqual(
    status.served.map(({ name, transport, image, format, size, url }) => [name, transport, image, format, size, url]),
    [
      ['one', 'iscsi', disk, 'qcow2', 32 * MiB, iscsi],
      ['two', 'nbd', data, 'qcow2', 16 * MiB, nbd],
    ],
  );
  assert.equal(status.pid, daemon.child.pid);
  const [one] = status.served;
  assert.ok((one?.bytesRead ?? 0) >= 2 * MiB, 'what was read over iSCSI is counted');
  assert.ok((one?.latencies?.read.count ?? 0) > 0);
  assert.match(status.problems.join(), /three \(nbd\): .*at-all\.qcow2/);

  const { stdout } = await cli('status');
  assert.match(stdout, /^one +iscsi +qcow2 +32 MiB/m);
  assert.match(stdout, /^two +nbd +qcow2 +16 MiB/m);
  assert.match(stdout, /^cache: /m);
  assert.match(stdout, /^not well: three \(nbd\)/m);

  const health = await fetch(`${metrics}/health`);
  assert.equal(health.status, 503);
  assert.match(await health.text(), /^three \(nbd\): /);
  const text = await (await fetch(`${metrics}/metrics`)).text();
  assert.match(text, /^lunette_problems 1$/m);
  assert.match(text, /^lunette_tcmu_devices 0$/m);
  assert.match(text, /lunette_scsi_commands_total\{target="iqn\.2026-11\.lunette\.host:one",lun="0",opcode="0x/);

  assert.equal((await cli('stop', 'two')).status, 0);
  await runOk('qemu-io', ['-f', 'qcow2', '-c', 'write 0 4k', data]);
  await runOk('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'qcow2', iscsi, disk]);
  const again = await cli('stop', 'two');
  assert.equal(again.status, 1);
  assert.match(again.stderr, /nothing of the name two is served.*Served are: one/s);
});

test('snapshots are taken and deleted, a disk grows and is flushed, while it is served', { skip }, async (t) => {
  const { disk, iscsi, data, nbd, tell, daemon } = await setUp(t);
  await runOk('qemu-io', ['-f', 'raw', '-c', 'write -P 0x22 1M 64k', nbd]);
  assert.match((await tell('CreateSnapshot', 'string:two', 'string:before')).stdout, /string "1"/);
  await runOk('qemu-io', ['-f', 'raw', '-c', 'write -P 0x33 1M 64k', nbd]);
  const snapshot = nbd.replace('///two', '///two%40before');
  await runOk('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 0x22 1M 64k', snapshot]);
  await runOk('qemu-io', ['-r', '-f', 'raw', '-c', 'read -P 0x33 1M 64k', nbd]);
  assert.match(await runOk('qemu-img', ['snapshot', '-U', '-l', data]), /before/);

  assert.equal((await tell('Resize', 'string:one', `uint64:${48 * MiB}`)).status, 0);
  assert.match(await runOk('iscsi-readcapacity16', [iscsi]), /50331648/);
  assert.equal((await tell('Flush', 'string:one')).status, 0);
  assert.match((await tell('List')).stdout, /string "one"/);
  assert.match((await tell('Statistics', 'string:one')).stdout, /bytesRead/);

  // Errors have names.
  const error = async (name: RegExp, method: string, ...args: string[]): Promise<void> => {
    const { status, stderr } = await tell(method, ...args);
    assert.equal(status, 1);
    assert.match(stderr, name);
  };
  await error(/org\.lunette\.Error\.NotFound: nothing of the name four/, 'Flush', 'string:four');
  await error(/org\.lunette\.Error\.NotFound/, 'DeleteSnapshot', 'string:two', 'string:never');
  await error(/org\.lunette\.Error\.Invalid: .*not made smaller/, 'Resize', 'string:one', `uint64:${MiB}`);

  // The client of the snapshot has gone; the server hears of it a little later.
  let deleted: RunResult = await tell('DeleteSnapshot', 'string:two', 'string:before');
  for (let left = 100; deleted.status !== 0 && left > 0; left--) {
    assert.match(deleted.stderr, /org\.lunette\.Error\.Locked/);
    await new Promise((resolve) => setTimeout(resolve, 50));
    deleted = await tell('DeleteSnapshot', 'string:two', 'string:before');
  }
  assert.equal(deleted.status, 0, deleted.stderr);
  daemon.child.kill('SIGTERM');
  assert.deepEqual(await daemon.wait(), { status: 0, signal: null });
  for (const image of [disk, data]) await runOk('qemu-img', ['check', '-q', image]);
  assert.doesNotMatch(await runOk('qemu-img', ['snapshot', '-l', data]), /before/);
});

test('only root is told anything', { skip }, async (t) => {
  const { bus } = await setUp(t);
  for (const method of ['Status', 'List']) {
    const { status, stderr, stdout } = await bus.call(SERVICE, PATH, `${SERVICE}.${method}`, [], { asNobody: true });
    assert.deepEqual([status, stdout], [1, '']);
    assert.match(stderr, /AccessDenied: only root/);
  }
});

test('without a daemon status says how to start one', { skip }, async (t) => {
  await PrivateBus.start(t);
  const { status, stderr } = await run(process.execPath, lunetteArgs('status'));
  assert.equal(status, 1);
  assert.match(stderr, /no lunette daemon runs on this machine.*systemctl start lunette/s);
});
