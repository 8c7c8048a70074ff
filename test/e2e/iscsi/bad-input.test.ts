/** Images and peers that lie: a clear error or a closed connection for them, and nothing at all for everybody else. */

import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { describe, test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { hostileImages } from '../../support/hostile-qcow2.ts';
import { type LunetteExport, runLunette, startExport } from '../../support/lunette-export.ts';
import { run } from '../../support/process.ts';
import { openDescriptors } from '../../support/process-usage.ts';
import { qemu, qemuIoResult } from '../../support/qemu.ts';
import { type Random, randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';

const skip = requires.qemuIscsi() || requires.linux();

/** No stack trace, no crash: a line that a person can read. */
function assertPlainError(text: string, what: string): void {
  assert.doesNotMatch(text, /^\s+at .*:\d+:\d+\)?$/m, `${what}: a stack trace\n${text}`);
  assert.doesNotMatch(text, /INTERNAL|RangeError|TypeError|heap out of memory/, `${what}\n${text}`);
}

describe('a hostile image', { skip }, () => {
  test('is described or refused by info, at once and with a clear error', { timeout: 180_000 }, async (t) => {
    for (const { name, path } of await hostileImages(t)) {
      const began = Date.now();
      const { status, signal, stdout, stderr } = await runLunette(['info', '-f', 'qcow2', '--json', path], 20_000);
      const outcome = `${name}: ${signal ?? `status ${status}`}\n${stdout}${stderr}`;
      assert.equal(signal, null, outcome);
      assert.ok(status === 0 || status === 1, outcome);
      assertPlainError(stderr, name);
      if (status === 1) assert.match(stderr, /^lunette: .+\([A-Z_]+\)$/m, outcome);
      else assert.doesNotThrow(() => JSON.parse(stdout), outcome);
      assert.ok(Date.now() - began < 15_000, `${name} took ${Date.now() - began} ms`);
    }
  });

  test('that can be opened fails its own requests, and a good one beside it goes on', {
    timeout: 300_000,
  }, async (t) => {
    const good = await qemu.create(t, { size: 16 * MiB, path: 'bystander.qcow2' });
    await qemu.io(good, 'write -P 7 0 1M');
    let served = 0;
    for (const { name, path } of await hostileImages(t)) {
      const alone = await runLunette(['info', '-f', 'qcow2', path], 20_000);
      if (alone.status !== 0) continue;
      let target: LunetteExport;
      try {
        target = await startExport(t, [path, good], { args: ['-f', 'qcow2'], timeoutMs: 20_000 });
      } catch (error) {
        // Refused for writing: as good, when it says why.
        assert.match(String(error), /lunette: .+\([A-Z_]+\)/, name);
        continue;
      }
      served++;
      const [bad, bystander] = target.exports;
      assert.ok(bad !== undefined && bystander !== undefined);
      for (const command of [
        'read 0 64k',
        'read 512k 1M',
        'read 60M 1M',
        'write 0 4k',
        'write 128k 64k',
        'discard 0 1M',
        'flush',
      ]) {
        const result = await qemuIoResult(bad.url, [command], '-f', 'raw');
        assert.equal(result.signal, null, `${name}: ${command}`);
        await qemu.io(bystander.url, 'read -P 7 0 1M');
      }
      assert.ok(target.peakResidentBytes() < 400 * MiB, `${name}: ${target.peakResidentBytes()} bytes resident`);
      assertPlainError(target.stderr, name);
      // An image that cannot be brought in order at the end is told about, all others are.
      const { status, signal } = await target.process.stop('SIGTERM', 20_000);
      assert.equal(signal, null, name);
      if (status !== 0) assert.match(target.stderr, /hostile-\d+\.qcow2: .+\([A-Z_]+\)/, `${name}: status ${status}`);
    }
    t.diagnostic(`${served} hostile images could be served`);
    await qemu.assertClean(good);
  });
});

/** A login request's header with fields to lie in. */
function loginHeader(
  fields: { opcode?: number; flags?: number; ahs?: number; length?: number; version?: number } = {},
): Buffer {
  const header = Buffer.alloc(48);
  header[0] = fields.opcode ?? 0x43;
  header[1] = fields.flags ?? 0x87;
  header[2] = fields.version ?? 0;
  header[4] = fields.ahs ?? 0;
  header.writeUIntBE(fields.length ?? 0, 5, 3);
  header.writeUInt32BE(1, 16);
  return header;
}

function pad(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
}

function login(text: string, fields: Parameters<typeof loginHeader>[0] = {}): Buffer {
  return Buffer.concat([loginHeader({ length: Buffer.byteLength(text), ...fields }), pad(text)]);
}

const NAME = 'InitiatorName=iqn.2026-11.lunette.test:junk\0';

/** What a broken or malicious peer sends first. */
function junk(random: Random, iqn: string): Record<string, Buffer> {
  const proper = login(`${NAME}SessionType=Normal\0TargetName=${iqn}\0AuthMethod=None\0`);
  return {
    'random bytes': Buffer.from(random.bytes(4096)),
    'an HTTP request': Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(4)),
    zeros: Buffer.alloc(4096),
    'all ones': Buffer.alloc(4096, 0xff),
    'a login that says 16 MiB follow': Buffer.concat([loginHeader({ length: 0xff_ffff }), Buffer.alloc(65536)]),
    'a login with the longest AHS': Buffer.concat([loginHeader({ ahs: 255, length: 4 }), Buffer.alloc(2048)]),
    'a login of a later version': login(NAME, { version: 9 }),
    'a login without a name': login('SessionType=Discovery\0'),
    'a login to a target that is not there': login(`${NAME}SessionType=Normal\0TargetName=iqn.2000-01.no.where:x\0`),
    'keys without a value or an end': login('====\0=\0a\0b=\0TargetName', {}),
    'a key of 16 KiB': login(`${NAME}X-${'a'.repeat(16_000)}=1\0`),
    'a thousand keys': login(NAME + Array.from({ length: 1000 }, (_, at) => `X-k${at}=v\0`).join('')),
    'text that is not UTF-8': Buffer.concat([loginHeader({ length: 64 }), Buffer.alloc(64, 0xc3)]),
    'a stage that does not exist': login(NAME, { flags: 0x8a }),
    'a command before the login': Buffer.concat([loginHeader({ opcode: 0x01, flags: 0xc1, length: 0 })]),
    'Data-Out before the login': Buffer.concat([loginHeader({ opcode: 0x05, length: 4096 }), Buffer.alloc(4096)]),
    'an opcode that does not exist': loginHeader({ opcode: 0x3e }),
    'continued text without an end': Buffer.concat(
      Array.from({ length: 200 }, () => login(`${'a=b\0'.repeat(200)}`, { flags: 0x44 })),
    ),
    'half a header': proper.subarray(0, 23),
    'half a login': proper.subarray(0, proper.length - 9),
    'a login, then noise': Buffer.concat([proper, Buffer.from(random.bytes(65536))]),
    'a login, then a command that says 16 MiB follow': Buffer.concat([
      proper,
      loginHeader({ opcode: 0x01, flags: 0xa1, length: 0xff_ffff }),
      Buffer.alloc(65536),
    ]),
    'a login, then cut text requests': Buffer.concat([
      proper,
      loginHeader({ opcode: 0x04, flags: 0x40, length: 8192 }),
    ]),
  };
}

/** Sends bytes and waits until the peer hangs up, or for a while when it waits for more. Gives what came back. */
function send(port: number, bytes: Buffer, patienceMs: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const received: Buffer[] = [];
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes));
    const timer = setTimeout(() => socket.destroy(), patienceMs);
    socket.on('data', (chunk) => received.push(chunk));
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED') reject(error);
    });
    socket.once('close', () => {
      clearTimeout(timer);
      resolve(Buffer.concat(received));
    });
  });
}

/** A session that never stops reading until told, and fails if a read ever does. */
function steadyReader(url: string): { stop(): Promise<number> } {
  let going = true;
  let reads = 0;
  const loop = (async (): Promise<number> => {
    while (going) {
      // One session with many requests each time.
      await qemu.io(url, ...Array.from({ length: 50 }, () => 'read -P 7 0 1M'));
      reads += 50;
    }
    return reads;
  })();
  loop.catch(() => {}); // Reported by stop().
  return {
    stop: () => {
      going = false;
      return loop;
    },
  };
}

describe('a hostile peer', { skip }, () => {
  test('gets a reject or a closed connection, while another session goes on', { timeout: 120_000 }, async (t) => {
    const random = randomFor(t);
    const image = await qemu.create(t, { size: 16 * MiB });
    await qemu.io(image, 'write -P 7 0 1M');
    const target = await startExport(t, image);
    const reader = steadyReader(target.url);
    for (const [name, bytes] of Object.entries(junk(random, target.iqn))) {
      await send(target.port, bytes, 400);
      // Again, a few bytes at a time and from several at once.
      await Promise.all([3, 48, 49, 51].map((length) => send(target.port, bytes.subarray(0, length), 200)));
      assert.ok(!target.process.ended, `${name} ended the export\n${target.stderr}`);
    }
    assert.ok((await reader.stop()) > 0);
    assert.ok(target.peakResidentBytes() < 350 * MiB, `${target.peakResidentBytes()} bytes resident`);
    assertPlainError(target.stderr, 'junk');
    await qemu.io(target.url, 'write -P 8 2M 1M', 'read -P 8 2M 1M');
    await target.stop();
    await qemu.assertClean(image);
  });

  test('opens 1,000 connections that say nothing or half a header: sessions go on, memory is bounded', {
    timeout: 120_000,
  }, async (t) => {
    const image = await qemu.create(t, { size: 16 * MiB });
    await qemu.io(image, 'write -P 7 0 1M');
    const target = await startExport(t, image);
    await qemu.io(target.url, 'read -P 7 0 1M');
    const reader = steadyReader(target.url);
    const before = target.residentBytes();
    const sockets: Socket[] = [];
    t.after(() => {
      for (const socket of sockets) socket.destroy();
    });
    const half = login(`${NAME}SessionType=Discovery\0`).subarray(0, 30);
    for (let batch = 0; batch < 10; batch++) {
      await Promise.all(
        Array.from({ length: 100 }, (_, at) => {
          return new Promise<void>((resolve) => {
            const socket = connect(target.port, '127.0.0.1', () => {
              if (at % 2 === 0) socket.write(half);
              resolve();
            });
            socket.on('error', () => resolve());
            sockets.push(socket);
          });
        }),
      );
    }
    const after = target.residentBytes();
    t.diagnostic(
      `1,000 half-open connections: ${((after - before) / MiB).toFixed(1)} MiB more, ${openDescriptors(target.pid)} descriptors`,
    );
    assert.ok(after - before < 100 * MiB, `${after - before} bytes more`);
    assert.ok((await reader.stop()) > 0);
    assert.ok(!target.process.ended, target.stderr);
    for (const socket of sockets) socket.destroy();
    // Their room is there again for those who have something to say.
    const listing = await run('iscsi-ls', [`iscsi://127.0.0.1:${target.port}`]);
    assert.equal(listing.status, 0, listing.stderr);
    await qemu.io(target.url, 'write -P 9 0 1M', 'read -P 9 0 1M');
    await target.stop();
    await qemu.assertClean(image);
  });

  test('that is killed while it writes leaves a session that its successor takes over', {
    timeout: 60_000,
  }, async (t) => {
    const image = await qemu.create(t, { size: 64 * MiB });
    const target = await startExport(t, image);
    // Writes without an end: only the kill stops it, however quick the machine is.
    const writer = ['bench', '-w', '-f', 'raw', '-c', '100000000', '-d', '16', '-s', '64k', target.url];
    for (let time = 0; time < 3; time++) {
      await assert.rejects(run('qemu-img', writer, { timeoutMs: 200 + 150 * time }), /still running/);
      await qemu.io(target.url, 'write -P 3 60M 1M', 'read -P 3 60M 1M');
    }
    await target.stop();
    await qemu.assertClean(image);
  });
});
