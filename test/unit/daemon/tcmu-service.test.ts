import assert from 'node:assert/strict';
import { writeSync } from 'node:fs';
import { rename } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { SILENT } from '../../../src/daemon/log.ts';
import { TcmuService } from '../../../src/daemon/tcmu-service.ts';
import type { BusService } from '../../../src/dbus/bus-service.ts';
import { createHost } from '../../../src/open/host.ts';
import { requireAddon } from '../../support/addon.ts';
import { FakeKernel } from '../../support/fake-kernel.ts';
import { until } from '../../support/private-bus.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { requiresCompiler } from '../../support/sanitized.ts';
import { cdb } from '../../support/scsi.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const skip = requireAddon() || requiresCompiler() || requires.qemuImg();
const SIZE = 4 * 1024 * 1024;
/** Nobody is on it: these tests are about the kernel. */
const NO_BUS = {
  add: () => undefined,
  remove: () => undefined,
  own: async () => undefined,
  disown: async () => undefined,
} as unknown as BusService;

async function setUp(t: Cleanup) {
  const kernel = await FakeKernel.start(t);
  const host = createHost();
  t.after(() => host.close());
  const start = async (): Promise<TcmuService> => {
    const service = await TcmuService.start({ host, log: SILENT, kernel, bus: NO_BUS });
    t.after(() => service.close());
    return service;
  };
  const image = async (name: string) =>
    qemu.create(t, { size: SIZE, path: join(await temporaryDirectory(t), `${name}.qcow2`) });
  const answer = async (ticket: number): Promise<number | undefined> => {
    await until(() => kernel.answers.has(ticket), 'an answer');
    return kernel.answers.get(ticket);
  };
  return { kernel, start, image, answer };
}

test('a device is answered when its image is open, and with an errno when it is not', { skip }, async (t) => {
  const { kernel, start, image, answer } = await setUp(t);
  const service = await start();
  const good = await kernel.make(1, 'good', `qcow2/${await image('good')}`, SIZE);
  assert.equal(await answer(kernel.tell({ kind: 'added' }, good)), 0);
  assert.equal((await good.ring.in(cdb.read10(0, 8), 4096)).status, 0);
  const bad = await kernel.make(2, 'bad', 'qcow2//nowhere.qcow2', SIZE);
  assert.equal(await answer(kernel.tell({ kind: 'added' }, bad)), -2);
  const foreign = await kernel.make(3, 'foreign', 'other/thing', SIZE);
  assert.equal(await answer(kernel.tell({ kind: 'added' }, foreign)), -2);
  assert.equal(await answer(kernel.tell({ kind: 'removed' }, foreign)), 0);
  assert.equal(service.disks.length, 1);
  assert.equal(await answer(kernel.tell({ kind: 'removed' }, good)), 0);
  assert.equal(service.disks.length, 0);
});

test('what dev_size says already is acknowledged, also when the disk is larger; it grows, and does not shrink', {
  skip,
}, async (t) => {
  const { kernel, start, image, answer } = await setUp(t);
  const service = await start();
  const device = await kernel.make(1, 'disk', `qcow2/${await image('disk')}`, SIZE / 2);
  assert.equal(await answer(kernel.tell({ kind: 'added' }, device)), 0);
  const resize = (size: number): Promise<number | undefined> =>
    answer(kernel.tell({ kind: 'reconfigured', size }, device));
  assert.equal(await resize(SIZE / 2), 0);
  assert.equal(service.disks[0]?.image.size, SIZE);
  assert.equal(await resize(SIZE / 4), -22);
  assert.equal(await resize(2 * SIZE), 0);
  assert.equal(service.disks[0]?.image.size, 2 * SIZE);
});

test('when events are lost, devices that came are served and those that went are let go', { skip }, async (t) => {
  const { kernel, start, image, answer } = await setUp(t);
  const service = await start();
  const first = await kernel.make(1, 'first', `qcow2/${await image('first')}`, SIZE);
  assert.equal(await answer(kernel.tell({ kind: 'added' }, first)), 0);
  const second = await kernel.make(2, 'second', `qcow2/${await image('second')}`, SIZE);
  kernel.devicesByMinor.delete(1);
  kernel.overflow();
  await until(() => service.disks.map(({ backstore }) => backstore.name).join() === 'second', 'the rescan');
  assert.deepEqual(second.actions, ['block 1', 'reset', 'block 0']);
  assert.equal((await second.ring.in(cdb.read10(0, 8), 4096)).status, 0);
});

test('devices are looked for one time after the other, and once more for all events that were lost meanwhile', {
  skip,
}, async (t) => {
  const { kernel, start, image } = await setUp(t);
  const service = await start();
  const devices = kernel.devices.bind(kernel);
  let [looks, atOnce, most] = [0, 0, 0];
  let go: () => void = () => undefined;
  const held = new Promise<void>((resolve) => {
    go = resolve;
  });
  kernel.devices = async () => {
    looks++;
    most = Math.max(most, ++atOnce);
    const found = await devices();
    await held;
    atOnce--;
    return found;
  };
  kernel.overflow();
  await until(() => looks === 1, 'the first look');
  // What came since is not among what the first one has found.
  await kernel.make(1, 'late', `qcow2/${await image('late')}`, SIZE);
  for (let i = 0; i < 5; i++) kernel.overflow();
  go();
  await until(() => service.disks.length === 1, 'the second look');
  await until(() => atOnce === 0, 'all looks');
  assert.deepEqual([looks, most], [2, 1]);
});

test('a ring that breaks is emptied and serves again; one that goes on breaking is given up, and others go on', {
  skip,
}, async (t) => {
  const { kernel, start, image, answer } = await setUp(t);
  const service = await start();
  const device = await kernel.make(1, 'disk', `qcow2/${await image('disk')}`, SIZE);
  const other = await kernel.make(2, 'other', `qcow2/${await image('other')}`, SIZE);
  for (const each of [device, other]) assert.equal(await answer(kernel.tell({ kind: 'added' }, each)), 0);
  for (let round = 1; round <= 4; round++) {
    // The head, outside of the ring.
    writeSync(device.ring.memoryFd, new Uint32Array([0x7fff_fff0]), 0, 4, 12);
    writeSync(device.ring.eventFd, new Uint32Array([1]));
    const repaired = Array.from({ length: Math.min(round, 3) }, () => ['block 1', 'reset', 'block 0']).flat();
    const expected = round <= 3 ? repaired : [...repaired, 'block 1'];
    await until(() => device.actions.length >= expected.length, `repair ${round}`);
    assert.deepEqual(device.actions, expected);
    if (round <= 3) assert.equal((await device.ring.in(cdb.read10(0, 8), 4096)).status, 0);
  }
  assert.match(service.problems.join(), /user_0\/disk: its command ring is unusable/);
  assert.equal((await other.ring.in(cdb.read10(0, 8), 4096)).status, 0);
});

test('a device whose image is not there at the start stays blocked, and is served once it is', { skip }, async (t) => {
  const { kernel, start, image } = await setUp(t);
  const path = await image('disk');
  const away = `${path}.away`;
  await rename(path, away);
  const device = await kernel.make(1, 'disk', `qcow2/${path}`, SIZE);
  const good = await kernel.make(2, 'good', `qcow2/${await image('good')}`, SIZE);
  const service = await start();
  assert.deepEqual(device.actions, ['block 1', 'reset']);
  assert.match(service.problems.join(), /user_0\/disk: .*disk\.qcow2/);
  assert.equal((await good.ring.in(cdb.read10(0, 8), 4096)).status, 0);
  await rename(away, path);
  await until(() => service.problems.length === 0, 'the image to be opened');
  assert.deepEqual(device.actions, ['block 1', 'reset', 'block 0']);
  assert.equal((await device.ring.in(cdb.read10(0, 8), 4096)).status, 0);
});

test('a device that cannot be taken over keeps nobody from the others, at the start and when events were lost', {
  skip,
}, async (t) => {
  const { kernel, start, image, answer } = await setUp(t);
  const failure = (code: string): Error => Object.assign(new Error(`${code}: it did not work`), { code });
  await kernel.make(1, 'stuck', `qcow2/${await image('stuck')}`, SIZE);
  await kernel.make(2, 'going', `qcow2/${await image('going')}`, SIZE);
  const good = await kernel.make(3, 'good', `qcow2/${await image('good')}`, SIZE);
  kernel.unblockable.set('stuck', failure('EIO')).set('going', failure('ENOENT'));
  const service = await start();
  assert.equal((await good.ring.in(cdb.read10(0, 8), 4096)).status, 0);
  assert.match(service.problems.join('\n'), /^user_0\/stuck: EIO: it did not work$/);

  const later = await kernel.make(4, 'later', `qcow2/${await image('later')}`, SIZE);
  kernel.devicesByMinor.delete(3);
  kernel.overflow();
  await until(() => service.disks.map(({ backstore }) => backstore.name).join() === 'later', 'the rescan');
  assert.equal((await later.ring.in(cdb.read10(0, 8), 4096)).status, 0);
  kernel.unblockable.clear();
  await until(() => service.problems.length === 0, 'the device to be taken over');
  assert.deepEqual(service.disks.map(({ backstore }) => backstore.name).sort(), ['later', 'stuck']);
  assert.equal(await answer(kernel.tell({ kind: 'removed' }, later)), 0);
});

test('a netlink socket that fails is opened again, and what came and went meanwhile is found', { skip }, async (t) => {
  const { kernel, start, image, answer } = await setUp(t);
  const service = await start();
  const first = await kernel.make(1, 'first', `qcow2/${await image('first')}`, SIZE);
  assert.equal(await answer(kernel.tell({ kind: 'added' }, first)), 0);
  kernel.failSocket(-105, 2);
  assert.match(service.problems.join(), /the netlink socket failed \(errno 105\)/);
  // What is served is served on.
  assert.equal((await first.ring.in(cdb.read10(0, 8), 4096)).status, 0);
  const second = await kernel.make(2, 'second', `qcow2/${await image('second')}`, SIZE);
  kernel.devicesByMinor.delete(1);
  await until(() => service.disks.map(({ backstore }) => backstore.name).join() === 'second', 'the rescan');
  assert.equal(kernel.opened, 2);
  assert.deepEqual(service.problems, []);
  assert.equal((await second.ring.in(cdb.read10(0, 8), 4096)).status, 0);
  assert.equal(await answer(kernel.tell({ kind: 'removed' }, second)), 0);
  // At the end only to tell the kernel that nobody answers any more.
  kernel.failSocket(-105, 0);
  await service.close();
  assert.equal(kernel.opened, 3);
  assert.equal(kernel.closed, 3);
});
