import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryPortal } from '../../support/iscsi-endpoint.ts';

async function turns(): Promise<void> {
  for (let i = 0; i < 20; i++) await Promise.resolve();
}

/** A portal whose device takes until open() to end the commands of a nexus. */
function slowPortal(): { portal: MemoryPortal; open: () => void } {
  const portal = new MemoryPortal();
  let open = (): void => undefined;
  portal.device.detaching = new Promise((resolve) => {
    open = resolve;
  });
  return { portal, open };
}

test('an initiator whose connection was lost is served again only when nothing of its old session runs', async () => {
  const { portal, open } = slowPortal();
  const first = await portal.session();
  first.drop();
  assert.equal(portal.target.sessions.size, 0);
  let served = false;
  const second = portal.session().then((connection) => {
    served = true;
    return connection;
  });
  await turns();
  assert.equal(served, false);
  open();
  const { initiator } = await second;
  assert.equal(portal.device.detached.length, 1);
  assert.equal((await initiator.command([0])).status, 0);
});

test('a login that gives up waiting for an old session does not let the next one in earlier', async () => {
  const { portal, open } = slowPortal();
  await portal.session();
  const impatient = portal.connect();
  const given = impatient.initiator.login({ target: portal.target.name }).catch(() => 'given up');
  await turns();
  impatient.drop();
  impatient.initiator.gone();
  assert.equal(await given, 'given up');
  let served = false;
  const third = portal.session().then((connection) => {
    served = true;
    return connection;
  });
  await turns();
  assert.equal(served, false);
  open();
  const { initiator } = await third;
  assert.equal((await initiator.command([0])).status, 0);
  assert.equal(portal.target.sessions.size, 1);
});

test('another initiator port does not wait', async () => {
  const { portal, open } = slowPortal();
  (await portal.session({}, '000000000001')).drop();
  const other = await portal.session({}, '000000000002');
  assert.equal((await other.initiator.command([0])).status, 0);
  open();
});
