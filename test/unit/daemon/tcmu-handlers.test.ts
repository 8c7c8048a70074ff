import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { checkConfig } from '../../../src/daemon/check-config.ts';
import { configStringOf } from '../../../src/daemon/kernel-export.ts';
import { handlerDescriptions, isOurHandler, requestOf } from '../../../src/daemon/tcmu-handlers.ts';
import { createHost } from '../../../src/open/host.ts';
import { runOk } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requirePrograms, requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

test('targetcli is shown every handler that is promised, with how its configuration is written', () => {
  assert.deepEqual(
    handlerDescriptions()
      .map(({ name }) => name)
      .sort(),
    [...['file', 'image', 'nbd', 'qcow', 'qcow2', 'qemu', 'raw', 'vdi', 'vmdk']],
  );
  for (const { description } of handlerDescriptions()) assert.match(description, /cfgstring=.+\[;OPTION/);
});

test('a device is ours by the whole first word of its configuration', () => {
  assert.ok(isOurHandler('qcow2//a') && isOurHandler('qcow//a'));
  for (const other of ['qcow22//a', 'qco//a', 'qcow2', '/qcow2/a', '']) assert.ok(!isOurHandler(other), other);
});

for (const [config, expected] of [
  ['qcow2//a', { image: '/a', format: 'qcow2' }],
  ['qcow//a', { image: '/a', format: 'qcow2' }],
  ['file//a', { image: '/a', format: 'raw' }],
  ['image//a', { image: '/a', format: undefined }],
  ['qcow2//a%3Ab%2Cc%20d%25', { image: '/a:b,c d%', format: 'qcow2' }],
  ['qcow2//a;snapshot=before%3A1', { image: '/a', snapshot: 'before:1' }],
  ['qcow2//a;readonly', { readOnly: true }],
  ['qcow2//a;overlay=/b%20c', { overlay: '/b c' }],
  ['image//cd.ISO', { optical: true, readOnly: true }],
  ['image//cd.iso;disk', { optical: false, readOnly: undefined }],
  ['nbd/localhost%3A10809/disk', { image: 'nbd://localhost:10809/disk', format: 'raw' }],
  ['nbd/nbd+unix%3A///disk?socket=/s', { image: 'nbd+unix:///disk?socket=/s' }],
  ['qemu/vhdx//images/a.vhdx', { image: 'qemu:vhdx:/images/a.vhdx', format: undefined }],
  ['qemu/vhdx/images/a%3Ab.vhdx;readonly', { image: 'qemu:vhdx:/images/a:b.vhdx', readOnly: true }],
] as const) {
  test(`${config} means ${JSON.stringify(expected)}`, () => {
    const request = requestOf(config) as unknown as Record<string, unknown>;
    for (const [key, value] of Object.entries(expected)) assert.equal(request[key], value, key);
  });
}

for (const [config, why] of [
  ['qcow3//a', /no handler qcow3/],
  ['qcow2/a', /not an absolute path/],
  ['qcow2//a;frobnicate', /no option "frobnicate"/],
  ['qcow2//a;readonly;overlay=/b', /no use for an overlay/],
  ['nbd/host/a;overlay=/b', /overlay on what another program opens/],
  ['qemu/vhdx', /not qemu\/FORMAT\/PATH/],
  ['qemu/nonsense//a', /nonsense/],
  ['qemu/json//a', /json/],
] as const) {
  test(`${config} is refused, and told why`, () => {
    assert.throws(() => requestOf(config), why);
  });
}

test('CheckConfig opens a foreign image for root, and for others only reads what is written', {
  skip: requires.qemuImg() || requirePrograms(['qemu-nbd'], 'qemu-utils'),
}, async (t) => {
  const host = createHost();
  t.after(() => host.close());
  const folder = await temporaryDirectory(t);
  const good = join(folder, 'disk.vhdx');
  await runOk('qemu-img', ['create', '-q', '-f', 'vhdx', good, '4M']);
  const bad = await qemu.create(t, { size: 1024 * 1024, path: join(folder, 'bad.qcow2') });
  const check = (file: string, trusted: boolean) => checkConfig(host, 'qemu', `qemu/vhdx/${file}`, trusted);
  assert.equal(await check(good, true), undefined);
  assert.match((await check(bad, true)) ?? '', /vhdx/i);
  assert.match((await check(join(folder, 'missing'), true)) ?? '', /missing/);
  for (const file of [good, bad, join(folder, 'missing')]) assert.equal(await check(file, false), undefined);
});

test('an export is told to a device as its configuration is read', () => {
  for (const request of [
    { image: '/a b:c,d.qcow2', format: 'qcow2', snapshot: 'x;y=z' },
    { image: '/a.raw', format: 'raw', readOnly: true },
    { image: '/a', overlay: '/b c.qcow2' },
    { image: 'qemu:vhdx:/images/a b.vhdx' },
    { image: 'nbd://localhost:1/disk' },
  ]) {
    const back = requestOf(configStringOf(request, false)) as unknown as Record<string, unknown>;
    for (const [key, value] of Object.entries(request)) assert.equal(back[key], value, key);
  }
});
