import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MemoryPortal } from '../../support/iscsi-endpoint.ts';
import { cdb16 } from '../../support/iscsi-initiator.ts';
import { BLOCK, lastR2T, opcodes, pattern, R2T_ONLY, startWrite } from '../../support/iscsi-steps.ts';
import { encodePdu, type Pdu } from '../../support/iscsi-wire.ts';

describe('Data-Out out of sequence fails the command and leaves the session', () => {
  const wrong: Readonly<Record<string, object>> = {
    DataSN: { word36: 27 },
    'buffer offset': { word40: 4 },
    'past the end of the burst': { data: pattern(BLOCK + 4) },
    'F bit before the end of the burst': { data: pattern(4) },
  };
  for (const [name, fields] of Object.entries(wrong)) {
    test(name, async () => {
      const portal = new MemoryPortal();
      const { initiator } = await portal.session(R2T_ONLY);
      const write = startWrite(initiator, 0x99);
      const { transferTag, offset, length } = lastR2T(initiator);
      assert.deepEqual([offset, length], [0, BLOCK]);
      initiator.send({ opcode: 5, itt: 0x99, word20: transferTag, data: pattern(BLOCK), ...fields });
      const result = await write;
      assert.deepEqual([result.status, result.sense[2], result.sense[12], result.sense[13]], [2, 0x0b, 0x47, 0x05]);
      assert.equal(portal.device.executed.length, 0);
      assert.equal((await initiator.command([0])).status, 0);
      assert.equal(portal.pool.used <= 266240, true);
    });
  }

  test('its answer waits for the end of the sequence', async () => {
    const { initiator } = await new MemoryPortal().session(R2T_ONLY);
    const write = startWrite(initiator, 0x99, { blocks: 2 });
    const { transferTag } = lastR2T(initiator);
    let over = false;
    void write.then(() => (over = true));
    const data = pattern(BLOCK);
    initiator.send({ opcode: 5, flags: 0, itt: 0x99, word20: transferTag, word36: 1, word40: BLOCK, data });
    await initiator.ping();
    assert.equal(over, false);
    initiator.send({ opcode: 5, itt: 0x99, word20: transferTag, word36: 0, word40: 0, data });
    assert.equal((await write).status, 2);
  });

  test('data that nobody asked for fails the command when it comes with it, or as Data-Out', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session(R2T_ONLY);
    const immediate = initiator.expect(0x10);
    const fields = { opcode: 1, flags: 0xa1, itt: 0x10, word20: BLOCK, cdb: cdb16(0x8a, 0, 1) };
    initiator.send({ ...fields, cmdSN: initiator.cmdSN++, data: pattern(BLOCK) });
    assert.deepEqual([...(await immediate).sense.subarray(12, 14)], [0x0c, 0x0c]);
    const write = startWrite(initiator, 0x11);
    initiator.send({ opcode: 5, itt: 0x11, word20: 0xffffffff, data: pattern(BLOCK) });
    initiator.send({ opcode: 5, itt: 0x11, word20: lastR2T(initiator).transferTag, data: pattern(BLOCK) });
    assert.deepEqual([...(await write).sense.subarray(12, 14)], [0x0c, 0x0c]);
    assert.equal(portal.device.executed.length, 0);
  });

  test('data for commands that are not there is dropped', async () => {
    const { initiator } = await new MemoryPortal().session();
    for (const tag of [0xffffffff, 0, 5, 0x12345678]) {
      initiator.send({ opcode: 5, itt: 0x4711, word20: tag, data: pattern(100) });
    }
    assert.equal((await initiator.command([0])).status, 0);
  });
});

describe('digests', () => {
  test('bad data fails its command with a Reject and 0B/47/05', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session({ DataDigest: 'CRC32C' });
    const bytes = encodePdu(
      {
        opcode: 1,
        flags: 0xa1,
        itt: 9,
        word20: BLOCK,
        cmdSN: initiator.cmdSN++,
        cdb: cdb16(0x8a, 0, 1),
        data: pattern(BLOCK),
      },
      { data: () => 0xdeadbeef },
    );
    const write = initiator.expect(9);
    initiator.sendBytes(bytes);
    assert.deepEqual([...(await write).sense.subarray(12, 14)], [0x47, 0x05]);
    const reject = initiator.unsolicited[0] as Pdu;
    assert.deepEqual([reject.opcode, reject.bytes[2]], [0x3f, 0x02]);
    assert.deepEqual(reject.data, bytes.subarray(0, 48));
    assert.equal(portal.counters.dataDigestErrors, 1);
    assert.equal((await initiator.command([0])).status, 0);
  });

  test('a bad NOP-Out is rejected and does not hold up what follows it', async () => {
    const { initiator } = await new MemoryPortal().session({ DataDigest: 'CRC32C' });
    const fields = { opcode: 0, itt: 9, word20: 0xffffffff, cmdSN: initiator.cmdSN++, data: pattern(10) };
    initiator.sendBytes(encodePdu(fields, { data: () => 1 }));
    assert.equal((await initiator.command([0])).status, 0);
    assert.deepEqual(opcodes(initiator.unsolicited), [0x3f]);
  });

  test('a bad header ends the connection', async () => {
    const portal = new MemoryPortal();
    const connection = await portal.session({ HeaderDigest: 'CRC32C' });
    connection.initiator.sendBytes(encodePdu({ opcode: 0, itt: 1 }, { header: () => 0 }));
    assert.equal(connection.closeReason, 'header digest error');
    assert.equal(portal.counters.headerDigestErrors, 1);
  });
});

describe('memory', () => {
  test('writes wait for memory with their R2Ts, and all get through', async () => {
    const portal = new MemoryPortal({ limits: { totalMemory: 2 * 1024 * 1024, sessionMemory: 1024 * 1024 } });
    const { initiator } = await portal.session(R2T_ONLY);
    let most = 0;
    const data = pattern(1500 * BLOCK);
    portal.device.async = () => {
      most = Math.max(most, portal.pool.used);
      return false;
    };
    await Promise.all(Array.from({ length: 30 }, (_, i) => initiator.write(i * 4, data)));
    assert.ok(most <= 3 * 1024 * 1024, `${most} bytes`);
  });

  test('unasked data beyond the limit is answered TASK SET FULL and dropped', async () => {
    const portal = new MemoryPortal({ limits: { totalMemory: 1024 * 1024, sessionMemory: 1024 * 1024 } });
    const { initiator } = await portal.session({ FirstBurstLength: '262144' });
    portal.device.async = () => true;
    const writes = Array.from({ length: 20 }, () =>
      initiator.command(cdb16(0x8a, 0, 512), { dataOut: pattern(512 * BLOCK) }),
    );
    await initiator.ping();
    assert.ok(portal.pool.used <= 2 * 1024 * 1024);
    portal.device.release();
    const statuses = (await Promise.all(writes)).map(({ status }) => status);
    assert.deepEqual([...new Set(statuses)].sort(), [0, 0x28]);
    assert.equal(portal.counters.taskSetFull, statuses.filter((status) => status === 0x28).length);
  });

  test('a transfer longer than the limit is refused', async () => {
    const { initiator } = await new MemoryPortal({ limits: { maxTransferLength: 1024 } }).session();
    const result = await initiator.command(cdb16(0x88, 0, 4), { readLength: 2048 });
    assert.deepEqual([result.status, result.sense[2], result.sense[12]], [2, 5, 0x24]);
  });
});
