import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ImageHost } from '../../../formats/index.ts';
import { busHandlers } from '../../../src/daemon/tcmu-bus.ts';
import { handlerDescriptions } from '../../../src/daemon/tcmu-handlers.ts';
import { type BusOptions, BusService } from '../../../src/dbus/bus-service.ts';
import { TCMU_SERVICE, TcmuObjects } from '../../../src/dbus/tcmu-objects.ts';
import { openStorage } from '../../../src/io/open-storage.ts';
import { PrivateBus, requiresBus, requiresRoot, until } from '../../support/private-bus.ts';
import { PROJECT_ROOT } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryFile } from '../../support/temporary.ts';

const skip = requiresBus();
const ROOT = '/org/kernel/TCMUService1';
const REGISTRY = `${ROOT}/HandlerManager1`;
const CHECK = `${TCMU_SERVICE}.CheckConfig`;
const REGISTER = `${TCMU_SERVICE}.HandlerManager1.RegisterHandler`;
const LISTENER = { lost: () => undefined, back: () => undefined, refused: () => undefined };

/** The service as the daemon publishes it, without devices. */
async function publish(t: Cleanup, policies = '', options: BusOptions = {}) {
  const bus = await PrivateBus.start(t, { policies });
  const service = await BusService.connect(LISTENER, options);
  t.after(() => service.close());
  const host = new ImageHost({ openStorage });
  t.after(() => host.close());
  const objects = new TcmuObjects(
    service,
    busHandlers(host, () => undefined),
  );
  t.after(() => objects.close());
  await objects.publish();
  return { bus, objects };
}

const managed = async (bus: PrivateBus): Promise<string> =>
  (await bus.call(TCMU_SERVICE, ROOT, 'org.freedesktop.DBus.ObjectManager.GetManagedObjects')).stdout;

/** Another process' handler: it owns a name of its own, and checks configurations. */
async function externalHandler(t: Cleanup, subtype: string) {
  const external = await BusService.connect(LISTENER);
  t.after(() => external.close());
  external.add(`${REGISTRY}/${subtype}`, TCMU_SERVICE, {
    methods: {
      CheckConfig: {
        in: 's',
        out: 'bs',
        names: [],
        call: ([config]) =>
          config === `${subtype}/silent`
            ? new Promise(() => undefined)
            : config === `${subtype}/good`
              ? [true, '']
              : [false, `${config} is not good`],
      },
    },
  });
  await external.own(`${TCMU_SERVICE}.HandlerManager1.${subtype}`);
  return external;
}

test('every handler is an object with help for targetcli', { skip }, async (t) => {
  const { bus } = await publish(t);
  const objects = await managed(bus);
  for (const { name } of handlerDescriptions()) assert.ok(objects.includes(`object path "${ROOT}/${name}"`), name);
  // targetcli takes every object for a handler.
  assert.equal(objects.match(/object path/g)?.length, handlerDescriptions().length);
  assert.match(objects, /ConfigDesc/);
  assert.match(objects, /cfgstring=\/ABSOLUTE\/PATH/);
});

test('CheckConfig tells root all about an image, and others nothing about files', {
  skip: skip || requires.qemuImg() || requiresRoot(),
}, async (t) => {
  const { bus } = await publish(t);
  const good = await qemu.create(t, { format: 'qcow2', size: 1024 * 1024 });
  const bad = await temporaryFile(t, 'bad.qcow2', 'no image at all');
  const check = async (config: string, asNobody: boolean): Promise<string> =>
    (await bus.call(TCMU_SERVICE, `${ROOT}/qcow2`, CHECK, [`string:${config}`], { asNobody })).stdout;
  assert.match(await check(`qcow2/${good}`, false), /boolean true/);
  assert.match(await check(`qcow2/${bad}`, false), /boolean false[\s\S]*bad\.qcow2/);
  assert.match(await check('qcow2//nowhere.qcow2', false), /boolean false[\s\S]*nowhere/);
  // The same answer for all three.
  const answers = await Promise.all([good, bad, '/nowhere.qcow2'].map((file) => check(`qcow2/${file}`, true)));
  for (const answer of answers) assert.match(answer, /boolean true\s+string "success"/);
  // What is wrong with the words is said to all.
  for (const asNobody of [true, false]) {
    assert.match(await check('qcow2//a b', asNobody), /boolean false[\s\S]*%20/);
    assert.match(await check('qcow2//a;nonsense', asNobody), /boolean false[\s\S]*nonsense/);
    assert.match(await check('vmdk//a', asNobody), /boolean false[\s\S]*must begin with qcow2\//);
  }
});

test('a handler of another process is registered, shown, asked, and forgotten when its process goes', {
  skip,
}, async (t) => {
  const { bus, objects } = await publish(t);
  const register = async (subtype: string): Promise<string> =>
    (await bus.call(TCMU_SERVICE, REGISTRY, REGISTER, [`string:${subtype}`, 'string:some words'])).stdout;
  const external = await externalHandler(t, 'foo');
  assert.match(await register('foo'), /boolean true\s+string "succeeded"/);
  assert.match(await managed(bus), new RegExp(`object path "${ROOT}/foo"[\\s\\S]*some words`));
  assert.ok(objects.isForeign('foo'));
  const check = async (config: string): Promise<string> =>
    (await bus.call(TCMU_SERVICE, `${ROOT}/foo`, CHECK, [`string:${config}`])).stdout;
  assert.match(await check('foo/good'), /boolean true/);
  assert.match(await check('foo/else'), /boolean false[\s\S]*foo\/else is not good/);
  assert.match(await register('foo'), /boolean false[\s\S]*already/);
  assert.match(await register('qcow2'), /boolean false[\s\S]*already/);
  assert.match(await register('a-b'), /boolean false[\s\S]*characters/);
  assert.match(await register('a/b'), /boolean false[\s\S]*characters/);
  external.close();
  await until(() => !objects.isForeign('foo'), 'the handler to be forgotten');
  assert.doesNotMatch(await managed(bus), /TCMUService1\/foo/);
});

test('handlers of other processes are asked for root only', { skip: skip || requiresRoot() }, async (t) => {
  const { bus } = await publish(t);
  await externalHandler(t, 'foo');
  await bus.call(TCMU_SERVICE, REGISTRY, REGISTER, ['string:foo', 'string:some words']);
  const check = async (asNobody: boolean): Promise<string> =>
    (await bus.call(TCMU_SERVICE, `${ROOT}/foo`, CHECK, ['string:foo/good'], { asNobody })).stdout;
  assert.match(await check(false), /boolean true/);
  assert.match(await check(true), /boolean false[\s\S]*only root/);
});

test('a handler of another process that does not answer is given up, and whoever asked hears so', {
  skip,
}, async (t) => {
  const { bus } = await publish(t, '', { answerMs: 2000 });
  await externalHandler(t, 'foo');
  await bus.call(TCMU_SERVICE, REGISTRY, REGISTER, ['string:foo', 'string:some words']);
  const check = async (config: string): Promise<string> =>
    (await bus.call(TCMU_SERVICE, `${ROOT}/foo`, CHECK, [`string:${config}`])).stdout;
  assert.match(await check('foo/silent'), /boolean false\s+string "\S+\.foo: CheckConfig: no answer within 2 s/);
  assert.match(await check('foo/good'), /boolean true/);
});

test('only root registers handlers', { skip: skip || requiresRoot() }, async (t) => {
  const { bus, objects } = await publish(t);
  await externalHandler(t, 'foo');
  const args = ['string:foo', 'string:some words'];
  const { stdout } = await bus.call(TCMU_SERVICE, REGISTRY, REGISTER, args, { asNobody: true });
  assert.match(stdout, /boolean false[\s\S]*only root/);
  assert.ok(!objects.isForeign('foo'));
});

test('under the policy of the package only root calls, and only root takes names', {
  skip: skip || requiresRoot(),
}, async (t) => {
  const policy = readFileSync(join(PROJECT_ROOT, 'scripts/packaging/org.kernel.TCMUService1.conf'), 'utf8');
  const [, inner = ''] = /<busconfig>([\s\S]*)<\/busconfig>/.exec(policy) ?? [];
  const { bus } = await publish(t, inner);
  const get = 'org.freedesktop.DBus.ObjectManager.GetManagedObjects';
  assert.equal((await bus.call(TCMU_SERVICE, ROOT, get)).status, 0);
  const refused = await bus.call(TCMU_SERVICE, ROOT, get, [], { asNobody: true });
  assert.match(refused.stderr, /AccessDenied/);
  const own = ['string:org.kernel.TCMUService1.HandlerManager1.foo', 'uint32:4'];
  const taken = await bus.call(
    'org.freedesktop.DBus',
    '/org/freedesktop/DBus',
    'org.freedesktop.DBus.RequestName',
    own,
    { asNobody: true },
  );
  assert.match(taken.stderr, /AccessDenied/);
});

test('a second service is refused the name, and says who to stop', { skip }, async (t) => {
  await publish(t);
  const second = await BusService.connect(LISTENER);
  t.after(() => second.close());
  await assert.rejects(new TcmuObjects(second, []).publish(), { code: 'EXISTS', help: /tcmu-runner/ });
});
