import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MemoryPortal } from '../../support/iscsi-endpoint.ts';
import { BLOCK, lastR2T, pattern, R2T_ONLY, startWrite } from '../../support/iscsi-steps.ts';

describe('task management', () => {
  test('an aborted command gives no answer, the answer to the abort comes after its end', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session();
    portal.device.async = () => true;
    let answered = false;
    void initiator.command([0]).then(
      () => (answered = true),
      () => {},
    );
    assert.equal(await initiator.manage(1, { tag: 1 }), 0);
    assert.equal(portal.device.running.length, 0);
    assert.equal(await initiator.manage(1, { tag: 1 }), 1);
    await initiator.ping();
    assert.equal(answered, false);
  });

  test('a write that waits for data is aborted without the device server', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session(R2T_ONLY);
    startWrite(initiator, 0x55).catch(() => {});
    const { transferTag } = lastR2T(initiator);
    assert.equal(await initiator.manage(1, { tag: 0x55 }), 0);
    assert.equal(portal.device.managed.length, 0);
    initiator.send({ opcode: 5, itt: 0x55, word20: transferTag, data: pattern(BLOCK) });
    assert.equal((await initiator.command([0])).status, 0);
    assert.equal(portal.device.executed.length, 1);
  });

  test('a command that has not come is aborted before it comes, by its number', async () => {
    const portal = new MemoryPortal();
    const { initiator } = await portal.session();
    const missing = initiator.cmdSN++;
    const waits = initiator.command([0]);
    assert.equal(await initiator.manage(1, { tag: 0x999, refCmdSN: missing }), 0);
    assert.equal((await waits).status, 0);
    assert.equal(await initiator.manage(1, { tag: 0x999, refCmdSN: missing }), 1);
  });

  test('a reset takes commands of all sessions that the device server does not know yet', async () => {
    const portal = new MemoryPortal();
    const one = (await portal.session(R2T_ONLY, '000000000001')).initiator;
    const two = (await portal.session({}, '000000000002')).initiator;
    startWrite(one, 0x55).catch(() => {});
    assert.equal(await two.manage(5), 0);
    assert.deepEqual(portal.device.managed, [{ action: 5, lun: 0, tag: undefined }]);
    one.send({ opcode: 5, itt: 0x55, word20: lastR2T(one).transferTag, data: pattern(BLOCK) });
    await one.ping();
    assert.equal(portal.device.executed.length, 0);
  });

  test('reassignment and unknown functions are not supported', async () => {
    const { initiator } = await new MemoryPortal().session();
    assert.equal(await initiator.manage(8), 4);
    assert.equal(await initiator.manage(77), 5);
  });

  test('a cold reset ends all sessions of the target after its answer', async () => {
    const portal = new MemoryPortal();
    const one = await portal.session({}, '000000000001');
    const two = await portal.session({}, '000000000002');
    assert.equal(await one.initiator.manage(7), 0);
    await one.initiator.until(() => one.initiator.closed).catch(() => {});
    assert.equal(one.closeReason, 'target cold reset');
    assert.equal(two.closeReason, 'target cold reset');
    assert.equal(portal.target.sessions.size, 0);
  });
});
