import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MemoryPortal, TARGET_NAME } from '../../support/iscsi-endpoint.ts';
import { cdb16 } from '../../support/iscsi-initiator.ts';
import { BLOCK, lastR2T, opcodes, pattern, R2T_ONLY, startWrite } from '../../support/iscsi-steps.ts';

describe('CmdSN', () => {
  test('commands that come early wait for those before them', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session();
    const first = initiator.cmdSN;
    const results = [2, 1, 0].map((ahead) => {
      initiator.cmdSN = first + ahead;
      return initiator.command(cdb16(0x00, 0, 0));
    });
    await Promise.all(results);
    // Tags were given out in the order of sending: 1, 2, 3.
    assert.deepEqual(
      portal.device.executed.map(({ tag }) => tag),
      [3, 2, 1],
    );
    assert.equal(initiator.expCmdSN, first + 3);
  });

  test('a number below or above the window is ignored, and the session goes on', async () => {
    const portal = new MemoryPortal({ limits: { queueDepth: 8 } });
    const { initiator } = await portal.session();
    const next = initiator.cmdSN;
    for (const cmdSN of [next - 1, (next - 100) >>> 0, initiator.maxCmdSN + 1]) {
      initiator.send({ opcode: 1, flags: 0x80, itt: 0x1000, cmdSN });
      // With data, which has to be skipped.
      initiator.send({ opcode: 1, flags: 0xa0, itt: 0x1000, word20: 512, cmdSN, data: pattern(512) });
    }
    assert.equal(portal.counters.ignoredCommands, 6);
    assert.equal((await initiator.command([0])).status, 0);
    assert.equal(portal.device.executed.length, 1);
  });

  test('numbers wrap around', async () => {
    const portal = new MemoryPortal();
    const connection = portal.connect();
    await connection.initiator.login({ target: TARGET_NAME, cmdSN: 0xfffffffe });
    for (let i = 0; i < 5; i++) assert.equal((await connection.initiator.command([0])).status, 0);
    assert.equal(connection.initiator.expCmdSN, 3);
  });

  test('the window shrinks with every outstanding command and opens when they are answered', async () => {
    const portal = new MemoryPortal({ limits: { queueDepth: 4 } });
    const { initiator } = await portal.session();
    portal.device.async = () => true;
    const first = initiator.cmdSN;
    const results = [0, 1, 2, 3].map(() => initiator.command([0]));
    await initiator.ping();
    assert.equal(initiator.maxCmdSN, first + 3);
    portal.device.running[0]?.finish();
    await results[0];
    assert.equal(initiator.maxCmdSN, first + 4);
    portal.device.release();
    await Promise.all(results);
    assert.equal(initiator.maxCmdSN, first + 7);
  });

  test('the end of the window never goes back', async () => {
    const { initiator } = await new MemoryPortal({ limits: { queueDepth: 4 } }).session();
    const first = initiator.cmdSN++;
    const results = [1, 2, 3].map(() => initiator.command([0]));
    await initiator.ping();
    assert.deepEqual([initiator.expCmdSN, initiator.maxCmdSN], [first, first + 3]);
    initiator.send({ opcode: 1, flags: 0x80, itt: 0x99, cmdSN: first });
    await Promise.all(results);
    assert.equal(initiator.expCmdSN, first + 4);
  });

  test('immediate commands take no number, and there may not be any number of them', async () => {
    const portal = new MemoryPortal({ limits: { immediateCommands: 2 } });
    const { initiator } = await portal.session();
    portal.device.async = () => true;
    const before = initiator.cmdSN;
    const results = [0, 1].map(() => initiator.command([0], { immediate: true }));
    initiator.send({ opcode: 1, immediate: true, flags: 0x80, itt: 0x5000, cmdSN: before });
    await initiator.until(() => initiator.unsolicited.length === 1);
    assert.deepEqual(opcodes(initiator.unsolicited), [0x3f]);
    assert.equal(initiator.unsolicited[0]?.bytes[2], 0x06);
    portal.device.release();
    await Promise.all(results);
    assert.equal(initiator.expCmdSN, before);
  });

  test('a tag that is in use ends the session: nothing less can tell the two apart', async () => {
    const portal = new MemoryPortal();
    const connection = await portal.session();
    const { initiator } = connection;
    portal.device.async = () => true;
    const lost = initiator.command([0]).catch(() => 'lost');
    initiator.send({ opcode: 1, flags: 0x80, itt: 1, cmdSN: initiator.cmdSN });
    assert.equal(await lost, 'lost');
    assert.match(connection.closeReason as string, /tag is in use/);
  });
});

describe('order', () => {
  test('an ORDERED command waits for data of earlier writes, later ones wait for it, HEAD OF QUEUE for none', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session(R2T_ONLY);
    const write = startWrite(initiator, 0x77);
    const ordered = initiator.command([0], { attribute: 2 });
    const simple = initiator.command([0], { attribute: 1 });
    await initiator.command([0], { attribute: 3 });
    assert.deepEqual(
      portal.device.executed.map(({ attribute }) => attribute),
      [1],
    );
    const { transferTag } = lastR2T(initiator);
    initiator.send({ opcode: 5, itt: 0x77, word20: transferTag, data: pattern(BLOCK) });
    await Promise.all([write, ordered, simple]);
    assert.deepEqual(
      portal.device.executed.map(({ attribute }) => attribute),
      [1, 0, 2, 0],
    );
  });

  test('an ORDERED write holds up what comes after it until its data is there', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session(R2T_ONLY);
    const write = startWrite(initiator, 0x77, { flags: 0xa2 });
    const after = initiator.command([0]);
    await initiator.ping();
    assert.equal(portal.device.executed.length, 0);
    initiator.send({ opcode: 5, itt: 0x77, word20: lastR2T(initiator).transferTag, data: pattern(BLOCK) });
    await Promise.all([write, after]);
    assert.deepEqual(
      portal.device.executed.map(({ opcode }) => opcode),
      [0x8a, 0x00],
    );
  });
});
