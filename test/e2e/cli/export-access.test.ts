/** Who reaches what `export` serves, how it ends, and what it tells while it runs. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { get } from 'node:http';
import { connect, type Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { describe, test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { cli, readyUrls, startCli, startCliExport } from '../../support/cli.ts';
import { type LunetteExport, startExport } from '../../support/lunette-export.ts';
import { run, runOk, start } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryFile } from '../../support/temporary.ts';

const initiator = requires.qemuIscsi() || requires.libiscsi();
const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === '::1'),
);

const image = (t: Cleanup, path = 'disk.qcow2'): Promise<string> => qemu.create(t, { size: 16 * MiB, path });

async function secretFile(t: Cleanup, secret: string): Promise<string> {
  const path = await temporaryFile(t, 'secret');
  await writeFile(path, `${secret}\n`, { mode: 0o600 });
  return path;
}

/** Resolves when the peer has closed. */
function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    socket.on('error', () => undefined);
    socket.on('close', () => resolve());
  });
}

describe('export', { skip: initiator }, () => {
  test('names of targets come from the files, and differ', async (t) => {
    const images = [await image(t, 'My Disk.qcow2'), await image(t, 'my disk.qcow2'), await image(t, '磁盘.raw')];
    const running = await startCliExport(t, ['-f', 'qcow2', ...images], 3);
    assert.deepEqual(
      readyUrls(running.stdout).map((url) => url.replace(/^.*lunette\.host:/, '')),
      ['my-disk/0', 'my-disk-2/0', 'disk/0'],
    );
  });

  test('--chap lets in who knows the secret, and nobody else', async (t) => {
    const secret = 'correct-horse';
    const file = await secretFile(t, secret);
    const running = await startCliExport(t, ['--chap', 'alice', '--chap-secret-file', file, await image(t)]);
    const url = readyUrls(running.stdout)[0] as string;
    const as = (user: string, password: string) => run('iscsi-inq', [url.replace('://', `://${user}%${password}@`)]);
    assert.equal((await as('alice', secret)).status, 0);
    assert.notEqual((await as('alice', 'wrong-horse-x')).status, 0);
    assert.notEqual((await as('bob', secret)).status, 0);
    assert.notEqual((await run('iscsi-inq', [url])).status, 0);
    await running.waitFor(/login refused/, 'stderr');
    assert.doesNotMatch(running.stdout + running.stderr, new RegExp(secret), 'the secret is in no output');
    assert.match(running.stderr, /USER%SECRET@/);
  });

  test('--mutual-chap proves to the initiator who we are', async (t) => {
    const [secret, mutual] = ['correct-horse', 'battery-staple'];
    const args = ['--chap', 'alice', '--chap-secret-file', await secretFile(t, secret)];
    args.push('--mutual-chap', 'lunette', '--mutual-chap-secret-file', await secretFile(t, mutual));
    const running = await startCliExport(t, [...args, await image(t)]);
    const url = (readyUrls(running.stdout)[0] as string).replace('://', `://alice%${secret}@`);
    const target = (user: string, password: string) => `${url}?target_user=${user}&target_password=${password}`;
    assert.equal((await run('iscsi-inq', [target('lunette', mutual)])).status, 0);
    assert.notEqual((await run('iscsi-inq', [target('lunette', 'another-secret')])).status, 0);
    const same = await cli(
      'export',
      '--listen',
      '0',
      ...args.slice(0, 6),
      '--mutual-chap-secret-file',
      args[3] as string,
      await image(t),
    );
    assert.equal(same.status, 1);
    assert.match(same.stderr, /the two CHAP secrets must differ/);
  });

  test('--allow-initiator lets in those names only', async (t) => {
    const [alice, carol] = ['iqn.2020-01.com.example:alice', 'iqn.2020-01.com.example:carol'];
    const running = await startCliExport(t, ['--allow-initiator', alice, '--allow-initiator', carol, await image(t)]);
    const url = readyUrls(running.stdout)[0] as string;
    const as = async (name: string) => (await run('iscsi-inq', ['-i', name, url])).status;
    assert.equal(await as(alice), 0);
    assert.equal(await as(carol), 0);
    assert.notEqual(await as('iqn.2020-01.com.example:bob'), 0);
  });

  test('listening to all interfaces without CHAP is warned about, with CHAP not', async (t) => {
    const open = await startCliExport(t, ['--listen', '0.0.0.0:0', await image(t)]);
    await open.waitFor(/warning: anybody who reaches 0\.0\.0\.0 can read and write these images: add --chap/, 'stderr');
    const url = readyUrls(open.stdout)[0] as string;
    assert.doesNotMatch(url, /0\.0\.0\.0/);
    assert.equal((await run('iscsi-inq', [url])).status, 0, 'the URL can be connected to');
    const chap = ['--chap', 'alice', '--chap-secret-file', await secretFile(t, 'correct-horse')];
    const closedOff = await startCliExport(t, ['--listen', '0.0.0.0:0', ...chap, await image(t)]);
    assert.doesNotMatch(closedOff.stderr, /warning/);
  });

  test('IPv6 addresses are in brackets', { skip: requires.that(hasIpv6, 'this machine has no ::1') }, async (t) => {
    const running = await startCliExport(t, ['--listen', '[::1]:0', await image(t)]);
    const url = readyUrls(running.stdout)[0] as string;
    assert.match(url, /^iscsi:\/\/\[::1\]:\d+\/iqn\./);
    assert.equal((await run('iscsi-inq', [url])).status, 0);
  });

  test('a port that is taken is named with who has it, and the images are let go', async (t) => {
    const first = await startCliExport(t, [await image(t)]);
    const { port } = new URL((readyUrls(first.stdout)[0] as string).replace('iscsi:', 'http:'));
    const other = await image(t);
    const { status, stdout, stderr } = await cli('export', '--listen', port, other);
    assert.equal(status, 1);
    assert.equal(stdout, '');
    assert.match(
      stderr,
      new RegExp(`^lunette: 127\\.0\\.0\\.1:${port}: .* \\(process ${process.pid}\\) listens on this port`, 'm'),
    );
    assert.match(stderr, /127\.0\.0\.1:0/);
    await qemu.io(other, 'write 0 64k');
  });

  test('--json prints events as JSON lines on stdout and the log as JSON lines on stderr', async (t) => {
    const path = await image(t);
    const running = await startCliExport(t, ['--json', path]);
    const ready = JSON.parse(running.stdout) as Record<string, unknown>;
    const url = ready.url as string;
    assert.deepEqual(ready, {
      event: 'ready',
      message: `ready ${url} (disk.qcow2, qcow2, 16 MiB)`,
      url,
      target: 'iqn.2026-11.lunette.host:disk',
      lun: 0,
      image: path,
      format: 'qcow2',
      size: 16 * MiB,
      readOnly: false,
    });
    await runOk('iscsi-inq', [url]);
    running.interrupt('SIGINT');
    assert.equal(await running.ended, 0);
    assert.deepEqual(JSON.parse(running.stdout.split('\n')[1] as string), { event: 'stopped', signal: 'SIGINT' });
    const log = running.stderr
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    assert.ok(log.some(({ initiator, msg }) => typeof initiator === 'string' && /session started/.test(String(msg))));
    for (const { level, time } of log) assert.ok(typeof level === 'number' && !Number.isNaN(Date.parse(String(time))));
  });

  test('--metrics shows what an initiator has done', async (t) => {
    const running = await startCliExport(t, ['--metrics', '127.0.0.1:0', await image(t)]);
    const [, where] = await running.waitFor(/metrics: (http:\S+)\n/, 'stderr');
    const url = readyUrls(running.stdout)[0] as string;
    await qemu.io(url, 'write -P 1 0 1M', 'read -P 1 0 1M', 'flush');
    const text = await new Promise<string>((resolve, reject) => {
      get(where as string, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (chunk: string) => {
          body += chunk;
        });
        response.on('end', () => resolve(body));
      }).on('error', reject);
    });
    const value = (pattern: RegExp): number => Number(pattern.exec(text)?.[1]);
    assert.ok(value(/^lunette_scsi_bytes_total\{[^}]*direction="write"\} (\d+)/m) >= MiB, text);
    assert.ok(value(/^lunette_scsi_bytes_total\{[^}]*direction="read"\} (\d+)/m) >= MiB);
    assert.ok(value(/^lunette_scsi_commands_total\{[^}]*opcode="0x35",status="good"\} (\d+)/m) >= 1);
    assert.ok(value(/^lunette_scsi_latency_seconds_count\{[^}]*kind="write"\} (\d+)/m) >= 1);
    assert.ok(value(/^lunette_iscsi_logins_total\{result="success"\} (\d+)/m) >= 1);
    assert.match(text, /^lunette_iscsi_sessions\{target="iqn\.2026-11\.lunette\.host:disk"\} \d+$/m);
    assert.match(text, /^lunette_event_loop_delay_seconds\{quantile="0\.99"\} /m);
    assert.match(text, /^lunette_cache_lookups_total\{result="miss"\} /m);
    running.interrupt();
    assert.equal(await running.ended, 0);
  });

  test('a signal that comes before anything is ready ends it in order', async (t) => {
    const path = await image(t);
    const running = startCli(t, ['export', '--listen', '127.0.0.1:0', path]);
    while (!running.interruptible) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(running.stdout, '');
    running.interrupt();
    assert.equal(await running.ended, 0);
    assert.equal(running.interruptible, false);
    await qemu.io(path, 'write 0 64k');
  });
});

describe('the export program', { skip: initiator }, () => {
  /** An initiator that is logged in and has been stopped: it answers nothing. */
  async function stuckInitiator(t: Cleanup, served: LunetteExport): Promise<void> {
    const stuck = start(t, 'qemu-io', ['-f', 'raw', '-c', 'sleep 60000', served.url]);
    await served.process.waitForLine(/session started.*org\.linux-kvm/, { stream: 'stderr' });
    stuck.child.kill('SIGSTOP');
  }

  test('ends with status 0 within 10 s although an initiator does not react', { timeout: 60_000 }, async (t) => {
    const path = await image(t);
    const served = await startExport(t, path);
    await stuckInitiator(t, served);
    const halfOpen = connect(served.port, '127.0.0.1');
    const gone = closed(halfOpen);
    await new Promise<void>((resolve) => halfOpen.once('connect', () => resolve()));
    await served.stop();
    await gone;
    await qemu.io(path, 'write 0 64k');
  });

  test('SIGINT, SIGTERM and the end of the terminal all end it in order', { timeout: 60_000 }, async (t) => {
    const path = await image(t);
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      const served = await startExport(t, path);
      await qemu.io(served.url, 'write -P 3 0 64k');
      assert.deepEqual(await served.process.stop(signal), { status: 0, signal: null });
      await qemu.assertClean(path);
    }
  });

  test('ends while an initiator writes: what was flushed is there, and the image is clean', {
    timeout: 60_000,
  }, async (t) => {
    const path = await image(t);
    const served = await startExport(t, path);
    await qemu.io(served.url, 'write -P 7 0 1M', 'flush');
    const writer = run('qemu-io', ['-f', 'raw', ...Array(200).fill(['-c', 'write -P 8 8M 1M']).flat(), served.url], {
      timeoutMs: 50_000,
    });
    await served.process.waitForLine(/session started.*org\.linux-kvm/, { stream: 'stderr' });
    await served.stop();
    // QEMU's initiator goes on trying to log in again: it is of no further use here.
    await qemu.io(path, 'read -P 7 0 1M');
    await qemu.assertClean(path);
    await writer.catch(() => undefined);
  });

  test('a second signal ends it at once', { timeout: 60_000 }, async (t) => {
    const served = await startExport(t, await image(t));
    await stuckInitiator(t, served);
    served.process.child.kill('SIGINT');
    await served.process.waitForLine(/SIGINT: finishing/, { stream: 'stderr' });
    assert.equal((await served.process.stop('SIGINT')).status, 130);
  });

  test('takes less than 90 MB with one idle LUN', { timeout: 60_000 }, async (t) => {
    const served = await startExport(t, await image(t));
    await runOk('iscsi-inq', [served.url]);
    const megabytes = served.residentBytes() / 1e6;
    t.diagnostic(`${megabytes.toFixed(1)} MB`);
    assert.ok(megabytes < 90, `${megabytes} MB`);
    await served.stop();
  });
});
