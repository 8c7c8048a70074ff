import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { describe, type TestContext, test } from 'node:test';
import { Portal, type PortalOptions } from '../../../src/iscsi/portal.ts';
import { IscsiTarget } from '../../../src/iscsi/target.ts';
import { FakeDeviceServer } from '../../support/fake-device-server.ts';
import { connectInitiator, IscsiInitiator } from '../../support/iscsi-initiator.ts';
import { BLOCK, pattern } from '../../support/iscsi-steps.ts';

const NAME = 'iqn.2026-11.lunette.test:disk';

async function start(
  t: TestContext,
  options: Partial<PortalOptions> = {},
): Promise<{ portal: Portal; device: FakeDeviceServer; port: number }> {
  const device = new FakeDeviceServer();
  const portal = new Portal({
    listen: { host: '127.0.0.1', port: 0 },
    targets: [new IscsiTarget({ name: NAME, device })],
    ...options,
  });
  await portal.listen();
  t.after(() => portal.close({ graceMs: 0 }));
  return { portal, device, port: portal.address.port };
}

describe('portal', () => {
  test('serves reads and writes over TCP, several in flight on several sessions', async (t) => {
    const { port, device } = await start(t);
    device.async = (task) => task.tag % 3 === 0;
    const timer = setInterval(() => device.release(), 1);
    t.after(() => clearInterval(timer));
    await Promise.all(
      ['000000000001', '000000000002', '000000000003'].map(async (isid, i) => {
        const initiator = await IscsiInitiator.connect({ port, target: NAME, isid });
        const data = pattern(1500 * BLOCK, i);
        await Promise.all(
          Array.from({ length: 30 }, (_, n) =>
            initiator.write(i * 1500 + n * 50, data.subarray(n * 50 * BLOCK, (n + 1) * 50 * BLOCK)),
          ),
        );
        const all = await Promise.all(Array.from({ length: 60 }, (_, n) => initiator.read(i * 1500 + n * 25, 25)));
        assert.ok(Buffer.concat(all).equals(data));
        assert.ok((await initiator.read(i * 1500, 1500)).equals(data));
        await initiator.close();
      }),
    );
  });

  test('tells of the address that the initiator came to, IPv6 in brackets', async (t) => {
    const { portal, port } = await start(t, { listen: { host: '::1', port: 0 } });
    assert.equal(portal.authority, `[::1]:${port}`);
    const initiator = await IscsiInitiator.connect({ port, host: '::1' });
    assert.equal(await initiator.text({ SendTargets: 'All' }), `TargetName=${NAME}\0TargetAddress=[::1]:${port},1\0`);
    await initiator.close();
  });

  test('a target may come and go', async (t) => {
    const { portal, port } = await start(t);
    const name = 'iqn.2026-11.lunette.test:second';
    const second = new IscsiTarget({ name, device: new FakeDeviceServer() });
    portal.addTarget(second);
    assert.throws(() => portal.addTarget(second), { code: 'EXISTS' });
    const initiator = await IscsiInitiator.connect({ port, target: name });
    const stays = await IscsiInitiator.connect({ port, target: NAME });
    const removed = portal.removeTarget(name, { graceMs: 2000 });
    await initiator.until(() => initiator.unsolicited.length > 0);
    await initiator.close();
    await removed;
    await assert.rejects(IscsiInitiator.connect({ port, target: name }), { status: 0x0203 });
    assert.equal((await stays.read(0, 1)).length, BLOCK);
    await stays.close();
  });

  test('an address in use is an error that says so', async (t) => {
    const { port } = await start(t);
    const second = new Portal({ listen: { host: '127.0.0.1', port } });
    await assert.rejects(second.listen(), (error: Error) =>
      /listening on 127.0.0.1:\d+.*EADDRINUSE/.test(error.message),
    );
  });
});

describe('shutdown', () => {
  test('asks for logout, lets commands in flight finish, and ends', async (t) => {
    const { portal, device, port } = await start(t);
    const initiator = await IscsiInitiator.connect({ port, target: NAME });
    device.async = () => true;
    const read = initiator.read(0, 8);
    await device.waiting(1);
    const closed = portal.close({ graceMs: 5000 });
    await initiator.until(() => initiator.unsolicited.length > 0);
    const message = initiator.unsolicited[0];
    assert.deepEqual([message?.opcode, message?.bytes[36]], [0x32, 1]);
    await assert.rejects(connectInitiator(port));
    device.release();
    assert.equal((await read).length, 8 * BLOCK);
    await initiator.close();
    await closed;
    assert.equal(portal.connections, 0);
    assert.equal(device.detached.length, 1);
  });

  test('ends within its time whatever initiators and commands do', async (t) => {
    const { portal, device, port } = await start(t);
    const initiator = await IscsiInitiator.connect({ port, target: NAME });
    const half = await connectInitiator(port);
    device.async = () => true;
    const lost = initiator.read(0, 8).catch(() => 'lost');
    await device.waiting(1);
    const began = performance.now();
    await portal.close({ graceMs: 300 });
    assert.ok(performance.now() - began < 2000);
    assert.equal(await lost, 'lost');
    await half.until(() => half.closed).catch(() => {});
    assert.equal(half.closed, true);
  });
});

describe('limits', () => {
  test('1,000 connections that never log in cost little, and others log in meanwhile', async (t) => {
    const { portal, port } = await start(t, { limits: { maxPendingLogins: 50 } });
    const sockets: Socket[] = [];
    t.after(() => {
      for (const socket of sockets) socket.destroy();
    });
    const before = await IscsiInitiator.connect({ port, target: NAME, isid: '000000000001' });
    for (let batch = 0; batch < 20; batch++) {
      await Promise.all(
        Array.from({ length: 50 }, () => {
          const socket = connect(port, '127.0.0.1');
          socket.on('error', () => {});
          sockets.push(socket);
          return new Promise((resolve) => socket.once('connect', resolve));
        }),
      );
      if (batch % 5 === 0) {
        const initiator = await IscsiInitiator.connect({ port, target: NAME, isid: '000000000002' });
        assert.equal((await initiator.read(0, 1)).length, BLOCK);
        await initiator.close();
      }
    }
    assert.equal((await before.read(0, 1)).length, BLOCK);
    // Sockets that were closed are gone a little later.
    for (let i = 0; i < 100 && portal.connections > 51; i++) await before.ping();
    assert.ok(portal.connections <= 51, `${portal.connections} connections`);
    assert.ok(portal.counters.refusedConnections >= 900);
    assert.equal(portal.pool.used, 0);
  });

  test('who does not log in in time is dropped', async (t) => {
    const { portal, port } = await start(t, { limits: { loginTimeoutMs: 500 } });
    const initiator = await connectInitiator(port);
    await initiator.until(() => initiator.closed, 5000).catch(() => {});
    assert.equal(initiator.closed, true);
    assert.equal(portal.counters.loginTimeouts, 1);
  });

  test('a limit that makes no sense is refused', () => {
    assert.throws(() => new Portal({ listen: { host: '::', port: 0 }, limits: { queueDepth: 0 } }), {
      code: 'INVALID',
    });
  });
});
