import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backstoreSteps } from '../../../src/lio/backstore.ts';
import { iscsiSteps } from '../../../src/lio/iscsi.ts';
import { loopbackSteps } from '../../../src/lio/loopback.ts';
import {
  type BackstoreRequest,
  checkRequest,
  type IscsiRequest,
  type LoopbackRequest,
} from '../../../src/lio/request.ts';
import type { Step } from '../../../src/lio/step.ts';

const backstore: BackstoreRequest = {
  name: 'disk',
  config: 'image//images/disk.qcow2',
  size: 1024 * 1024,
  blockSize: 512,
  serial: '0f1e2d3c-0000-5000-8000-000000000000',
};
const iscsi: IscsiRequest = {
  fabric: 'iscsi',
  iqn: 'iqn.2026-11.lunette.host:disk',
  host: '127.0.0.1',
  port: 3260,
  backstores: [backstore],
  initiators: [],
  readOnly: false,
};
const loopback: LoopbackRequest = {
  fabric: 'loopback',
  wwn: 'naa.5001405000000001',
  nexus: 'naa.6001405000000001',
  backstores: [backstore],
};
const TPG = 'iscsi/iqn.2026-11.lunette.host:disk/tpgt_1';

/** The last value that the steps write to an attribute. */
function written(steps: readonly Step[], path: string): string | undefined {
  const values = steps.flatMap((step) => (step.act === 'write' && step.path === path ? [step.value] : []));
  return values.at(-1);
}

test('a backstore is enabled after it is described, and gets its serial number afterwards', () => {
  const steps = backstoreSteps('core/user_3', backstore);
  const order = steps.map((step) => `${step.act} ${step.path}${step.act === 'write' ? ` ${step.value}` : ''}`);
  assert.deepEqual(order, [
    'mkdir core/user_3/disk',
    'write core/user_3/disk/control dev_config=image//images/disk.qcow2',
    'write core/user_3/disk/control dev_size=1048576',
    'write core/user_3/disk/control hw_block_size=512',
    'write core/user_3/disk/control hw_max_sectors=2048',
    'write core/user_3/disk/enable 1',
    'write core/user_3/disk/wwn/vpd_unit_serial 0f1e2d3c-0000-5000-8000-000000000000',
    'write core/user_3/disk/attrib/tmr_notification 1',
  ]);
});

test('a target is opened last and closed first', () => {
  const last = iscsiSteps(iscsi, ['core/user_0/disk']).at(-1);
  assert.deepEqual(last, { act: 'write', path: `${TPG}/enable`, value: '1', undo: '0' });
});

test('without named initiators anybody may write, unless the export is read-only', () => {
  const steps = iscsiSteps(iscsi, ['core/user_0/disk']);
  assert.equal(written(steps, `${TPG}/attrib/generate_node_acls`), '1');
  assert.equal(written(steps, `${TPG}/attrib/demo_mode_write_protect`), '0');
  assert.equal(written(steps, `${TPG}/attrib/authentication`), '0');
  const readOnly = iscsiSteps({ ...iscsi, readOnly: true }, ['core/user_0/disk']);
  assert.equal(written(readOnly, `${TPG}/attrib/demo_mode_write_protect`), '1');
});

test('named initiators get every LUN and the secret; nobody else gets in', () => {
  const chap = { user: 'me', secret: 'a secret of mine', mutualUser: 'you', mutualSecret: 'a secret of yours' };
  const initiators = ['iqn.2026-11.example:a', 'iqn.2026-11.example:b'];
  const steps = iscsiSteps({ ...iscsi, initiators, chap, readOnly: true }, ['core/user_0/a', 'core/user_1/b']);
  assert.equal(written(steps, `${TPG}/attrib/generate_node_acls`), '0');
  assert.equal(written(steps, `${TPG}/attrib/authentication`), '1');
  assert.equal(written(steps, `${TPG}/auth/password`), undefined);
  for (const initiator of initiators) {
    const acl = `${TPG}/acls/${initiator}`;
    assert.equal(written(steps, `${acl}/auth/userid`), 'me');
    assert.equal(written(steps, `${acl}/auth/password_mutual`), 'a secret of yours');
    for (const lun of [0, 1]) {
      assert.ok(
        steps.some(
          (step) => step.act === 'link' && step.target === `${TPG}/lun/lun_${lun}` && step.path.startsWith(acl),
        ),
      );
      assert.equal(written(steps, `${acl}/lun_${lun}/write_protect`), '1');
    }
  }
});

test('CHAP for anybody stands at the portal group', () => {
  const steps = iscsiSteps({ ...iscsi, chap: { user: 'me', secret: 'a secret of mine' } }, ['core/user_0/disk']);
  assert.equal(written(steps, `${TPG}/auth/password`), 'a secret of mine');
});

test('an IPv6 portal stands in brackets', () => {
  const steps = iscsiSteps({ ...iscsi, host: '::1' }, ['core/user_0/disk']);
  assert.ok(steps.some((step) => step.act === 'mkdir' && step.path === `${TPG}/np/[::1]:3260`));
});

test('a loopback target has its nexus before its units', () => {
  const steps = loopbackSteps(loopback, ['core/user_0/disk']);
  const nexus = steps.findIndex((step) => step.path.endsWith('/nexus'));
  assert.ok(nexus > 0 && nexus < steps.findIndex((step) => step.act === 'link'));
});

test('what configfs would take for something else is refused, and secrets are not shown', () => {
  const refused: (IscsiRequest | LoopbackRequest)[] = [
    { ...iscsi, iqn: '../../core' },
    { ...iscsi, iqn: 'iqn.2026-11.a:b/c' },
    { ...iscsi, host: 'localhost' },
    { ...iscsi, host: '0.0.0.0/x' },
    { ...iscsi, port: 0 },
    { ...iscsi, initiators: ['..'] },
    { ...iscsi, chap: { user: 'me', secret: 'line\nend' } },
    { ...loopback, wwn: 'naa.500' },
    { ...iscsi, backstores: [{ ...backstore, name: '../x' }] },
    { ...iscsi, backstores: [{ ...backstore, config: 'image//a,dev_size=1' }] },
    { ...iscsi, backstores: [{ ...backstore, config: 'image//a b' }] },
    { ...iscsi, backstores: [{ ...backstore, config: `image/${'x'.repeat(250)}` }] },
    { ...iscsi, backstores: [{ ...backstore, size: 1000 }] },
    { ...iscsi, backstores: [{ ...backstore, serial: 'a\nb' }] },
  ];
  for (const request of refused)
    assert.throws(() => checkRequest(request), { code: 'INVALID' }, JSON.stringify(request));
  assert.throws(
    () => checkRequest(refused[6] as IscsiRequest),
    (error: Error) => !error.message.includes('line'),
  );
  checkRequest(iscsi);
  checkRequest(loopback);
});
