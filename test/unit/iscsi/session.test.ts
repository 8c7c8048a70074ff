import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MemoryPortal, TARGET_NAME } from '../../support/iscsi-endpoint.ts';
import { cdb16 } from '../../support/iscsi-initiator.ts';
import { BLOCK, opcodes, pattern } from '../../support/iscsi-steps.ts';
import { encodePdu, type Pdu } from '../../support/iscsi-wire.ts';

describe('NOP, text, logout, reject', () => {
  test('a ping comes back with its data, cut to what the initiator takes', async () => {
    const { initiator } = await new MemoryPortal().session({ MaxRecvDataSegmentLength: '512' });
    assert.deepEqual(await initiator.ping(pattern(301)), pattern(301));
    assert.deepEqual(await initiator.ping(pattern(1000)), pattern(512, 1));
  });

  test('SendTargets in a normal session tells of the target that is logged in to, and refuses All', async () => {
    const { initiator } = await new MemoryPortal({ more: ['iqn.2026-11.lunette.test:other'] }).session();
    const own = `TargetName=${TARGET_NAME}\0TargetAddress=127.0.0.1:3260,1\0`;
    assert.equal(await initiator.text({ SendTargets: '' }), own);
    assert.equal(await initiator.text({ SendTargets: TARGET_NAME }), own);
    assert.equal(await initiator.text({ SendTargets: 'iqn.2026-11.lunette.test:other' }), '');
    assert.equal(await initiator.text({ SendTargets: 'All' }), 'SendTargets=Reject\0');
    assert.equal(
      await initiator.text({ Nonsense: '1', MaxBurstLength: '512' }),
      'Nonsense=NotUnderstood\0MaxBurstLength=Reject\0',
    );
  });

  test('a long discovery answer is continued over PDUs, and hides targets that are not for the initiator', async () => {
    const names = Array.from({ length: 200 }, (_, i) => `iqn.2026-11.lunette.test:disk${i}`);
    const portal = new MemoryPortal({ more: names });
    const { initiator } = portal.connect();
    await initiator.login({ keys: { MaxRecvDataSegmentLength: '512' } });
    const answer = await initiator.text({ SendTargets: 'All' });
    assert.equal(answer.match(/TargetName=/g)?.length, 201);
    assert.equal(
      await initiator.text({ SendTargets: names[7] as string }),
      `TargetName=${names[7]}\0TargetAddress=127.0.0.1:3260,1\0`,
    );
    assert.equal(await initiator.text({ SendTargets: 'iqn.2026-11.lunette.test:none' }), '');
    const hidden = new MemoryPortal({ target: { allowedInitiators: ['iqn.2026-11.lunette.test:friend'] } });
    const stranger = hidden.connect().initiator;
    await stranger.login({});
    assert.equal(await stranger.text({ SendTargets: 'All' }), '');
  });

  test('commands in a discovery session are rejected', async () => {
    const { initiator } = new MemoryPortal().connect();
    await initiator.login({});
    initiator.command([0]).catch(() => {});
    await initiator.until(() => initiator.unsolicited.length > 0);
    assert.equal(initiator.unsolicited[0]?.bytes[2], 0x04);
  });

  test('a logout is answered when nothing of the session runs any more', async () => {
    const portal = new MemoryPortal();
    const connection = await portal.session();
    portal.device.async = () => true;
    const lost = connection.initiator.command([0]).catch(() => 'lost');
    assert.equal(await connection.initiator.logout(), 0);
    assert.equal(portal.device.running.length, 0);
    assert.equal(portal.device.detached.length, 1);
    assert.equal(await lost, 'lost');
    assert.equal(connection.closeReason, 'logout');
    assert.equal(portal.target.sessions.size, 0);
  });

  test('neither a logout nor a login anew is answered before the old nexus is gone', async () => {
    const portal = new MemoryPortal();
    const first = await portal.session();
    let open = (): void => {};
    portal.device.detaching = new Promise((resolve) => (open = resolve));
    const events: string[] = [];
    const second = portal.session().then((connection) => {
      events.push(`login after ${portal.device.detached.length}`);
      return connection;
    });
    await first.initiator.until(() => first.initiator.closed).catch(() => {});
    for (let i = 0; i < 20; i++) await Promise.resolve();
    assert.equal(events.length, 0);
    open();
    const { initiator } = await second;
    portal.device.detaching = new Promise((resolve) => (open = resolve));
    const out = initiator.logout().then(() => events.push(`logout after ${portal.device.detached.length}`));
    for (let i = 0; i < 20; i++) await Promise.resolve();
    open();
    await out;
    assert.deepEqual(events, ['login after 1', 'logout after 2']);
  });

  test('a logout of another connection, or for recovery, is refused and changes nothing', async () => {
    const { initiator } = await new MemoryPortal().session();
    const tag = initiator.newTag();
    const fields = { opcode: 6, immediate: true, flags: 0x81, itt: tag, word20: 0x00050000, cmdSN: initiator.cmdSN };
    assert.equal((await initiator.ask(fields)).bytes[2], 1);
    assert.equal(await initiator.logout(2), 2);
    assert.equal((await initiator.command([0])).status, 0);
  });

  test('what is not known is rejected with its header', async () => {
    const { initiator } = await new MemoryPortal().session();
    for (const [opcode, reason] of [
      [0x10, 3],
      [0x03, 4],
      [0x1c, 5],
      [0x3f, 5],
    ] as const) {
      initiator.unsolicited.length = 0;
      initiator.send({ opcode, immediate: true, itt: 0x42, data: pattern(5) });
      await initiator.until(() => initiator.unsolicited.length === 1);
      const reject = initiator.unsolicited[0] as Pdu;
      assert.deepEqual([reject.bytes[2], reject.data.length, reject.data[0]], [reason, 48, opcode | 0x40]);
    }
    assert.equal((await initiator.command([0])).status, 0);
  });
});

describe('time', () => {
  test('a silent initiator is pinged, one that does not answer is dropped', async () => {
    const portal = new MemoryPortal({ limits: { keepaliveMs: 10_000, stallTimeoutMs: 30_000 } });
    const connection = await portal.session();
    const { initiator } = connection;
    const tick = async (ms: number): Promise<void> => {
      connection.endpoint.tick(ms);
      await Promise.resolve();
    };
    await tick(0);
    await tick(9999);
    assert.equal(initiator.unsolicited.length, 0);
    await tick(10_000);
    assert.deepEqual(opcodes(initiator.unsolicited), [0x20]);
    await tick(11_000); // it has answered
    await tick(20_000);
    assert.equal(connection.closeReason, undefined);
    initiator.answerPings = false;
    await tick(21_000);
    await tick(50_999);
    assert.equal(connection.closeReason, undefined);
    await tick(51_000);
    assert.equal(connection.closeReason, 'the initiator answers no ping');
    assert.equal(portal.counters.deadPeers, 1);
  });

  test('an initiator that takes no data costs bounded memory, holds up nobody, and is dropped', async () => {
    const portal = new MemoryPortal({ limits: { outputLimit: 1024 * 1024, totalMemory: 8 * 1024 * 1024 } });
    const stuck = await portal.session({}, '000000000001');
    stuck.stuck = true;
    stuck.endpoint.tick(0);
    for (let i = 0; i < 30; i++) stuck.initiator.read(0, 2048).catch(() => {});
    for (let i = 0; i < 1000; i++) stuck.initiator.ping(pattern(1000)).catch(() => {});
    assert.equal(stuck.paused, true);
    assert.ok(portal.pool.used <= 4 * 1024 * 1024, `${portal.pool.used} bytes`);
    const other = await portal.session({}, '000000000002');
    for (let i = 0; i < 20; i++) assert.equal((await other.initiator.read(0, 2048)).length, 1024 * 1024);
    stuck.endpoint.tick(29_000);
    assert.equal(stuck.closeReason, undefined);
    stuck.endpoint.tick(30_000);
    assert.equal(stuck.closeReason, 'the initiator takes no data');
  });

  test('commands of one chunk wait when their answers are too much at once', async () => {
    const portal = new MemoryPortal({ limits: { outputLimit: 1024 * 1024 } });
    const connection = await portal.session();
    const { initiator } = connection;
    connection.stuck = true;
    const fields = { opcode: 1, flags: 0xc1, word20: 2048 * BLOCK, cdb: cdb16(0x88, 0, 2048) };
    const tags = Array.from({ length: 30 }, () => initiator.newTag());
    const results = tags.map((tag) => initiator.expect(tag, 2048 * BLOCK));
    initiator.sendBytes(Buffer.concat(tags.map((itt) => encodePdu({ ...fields, itt, cmdSN: initiator.cmdSN++ }))));
    assert.ok(portal.pool.used <= 3 * 1024 * 1024, `${portal.pool.used} bytes`);
    connection.unstick();
    for (const { status } of await Promise.all(results)) assert.equal(status, 0);
  });

  test('an initiator that reads again gets all its answers', async () => {
    const portal = new MemoryPortal({ limits: { outputLimit: 1024 * 1024 } });
    const connection = await portal.session();
    connection.stuck = true;
    portal.device.disk.set(pattern(1024 * 1024));
    const reads = Array.from({ length: 40 }, () => connection.initiator.read(0, 2048));
    connection.unstick();
    for (const data of await Promise.all(reads)) assert.ok(data.equals(portal.device.disk.subarray(0, 2048 * BLOCK)));
  });
});

describe('sessions of one initiator port', () => {
  test('a new login of the same port ends the old session first', async () => {
    const portal = new MemoryPortal();
    const old = await portal.session();
    portal.device.async = () => true;
    const lost = old.initiator.command([0]).catch(() => 'lost');
    const fresh = await portal.session();
    assert.equal(await lost, 'lost');
    assert.match(old.closeReason as string, /logged in anew/);
    assert.equal(portal.device.detached[0], portal.device.attached[0]);
    assert.equal(portal.device.attached.length, 2);
    assert.notEqual(fresh.initiator.tsih, old.initiator.tsih);
    assert.equal(portal.target.sessions.size, 1);
    assert.equal(portal.counters.sessions, 1);
    portal.device.async = () => false;
    assert.equal((await fresh.initiator.command([0])).status, 0);
  });

  test('a login with the handle of a session takes its place under the same handle', async () => {
    const portal = new MemoryPortal();
    const old = await portal.session();
    const { initiator } = portal.connect();
    await initiator.login({ target: TARGET_NAME, tsih: old.initiator.tsih });
    assert.equal(initiator.tsih, old.initiator.tsih);
    assert.notEqual(old.closeReason, undefined);
  });

  test('the handle must be of that session, and a second connection is one too many', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session();
    await assert.rejects(portal.connect().initiator.login({ target: TARGET_NAME, tsih: 0x7777 }), { status: 0x020a });
    const second = { target: TARGET_NAME, tsih: initiator.tsih, cid: 1 };
    await assert.rejects(portal.connect().initiator.login(second), { status: 0x0206 });
    assert.equal((await initiator.command([0])).status, 0);
  });

  test('other ports have sessions beside it, up to the limit', async () => {
    const portal = new MemoryPortal({ target: { maxSessions: 2 } });
    await portal.session({}, '000000000001');
    const two = await portal.session({}, '000000000002');
    await assert.rejects(portal.session({}, '000000000003'), { status: 0x0302 });
    two.initiator.destroy();
    await portal.session({}, '000000000003');
  });

  test('the nexus has the name of the initiator port and its TransportID', async () => {
    const portal = new MemoryPortal();
    await portal.session({}, '00023d00002a');
    const nexus = portal.device.attached[0];
    const name = 'iqn.2026-11.lunette.test:initiator,i,0x00023d00002a';
    assert.equal(nexus?.initiatorPort, name);
    const id = Buffer.from(nexus?.transportId ?? []);
    assert.equal(id[0], 0x45);
    assert.equal(id.readUInt16BE(2), id.length - 4);
    assert.equal(id.length % 4, 0);
    assert.equal(id.subarray(4, 4 + name.length).toString(), name);
  });
});

describe('a device server that breaks its promises', () => {
  test('ends the session it breaks them to, and no other', async () => {
    const portal = new MemoryPortal();
    const other = await portal.session({}, '000000000002');
    const { execute, manage } = portal.device;
    const breakers = [
      () => (portal.device.execute = () => Promise.reject(new Error('execute'))),
      () => {
        portal.device.execute = () => {
          throw new Error('execute at once');
        };
      },
      () => (portal.device.manage = () => Promise.reject(new Error('manage'))),
    ];
    for (const breakIt of breakers) {
      const connection = await portal.session({}, '000000000001');
      breakIt();
      const { initiator } = connection;
      const asked = portal.device.manage === manage ? initiator.command([0]) : initiator.manage(5);
      await assert.rejects(asked);
      assert.equal(connection.closeReason, 'internal error');
      Object.assign(portal.device, { execute, manage });
    }
    assert.deepEqual(
      portal.internalErrors.map((error) => (error as Error).message),
      ['execute', 'execute at once', 'manage'],
    );
    assert.equal((await other.initiator.command([0])).status, 0);
  });
});
