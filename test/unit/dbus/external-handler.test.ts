/** The example of docs/handlers.md: a handler in a program of its own, over D-Bus and over a ring. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { BusService } from '../../../src/dbus/bus-service.ts';
import { TCMU_SERVICE, TcmuObjects } from '../../../src/dbus/tcmu-objects.ts';
import { MockTcmu } from '../../support/mock-tcmu.ts';
import { PrivateBus, requiresBus, requiresRoot, until } from '../../support/private-bus.ts';
import { PROJECT_ROOT, run, start } from '../../support/process.ts';
import { requireCondition, requirePrograms } from '../../support/requires.ts';
import { requiresCompiler } from '../../support/sanitized.ts';
import { blockCdb, cdb } from '../../support/scsi.ts';

const EXAMPLE = join(PROJECT_ROOT, 'docs/examples/ram-handler.py');
/** Debian's own: its modules come as packages. */
const PYTHON = '/usr/bin/python3';
const ROOT = '/org/kernel/TCMUService1';

const modules = await run(PYTHON, ['-c', 'import dbus, gi']).catch(() => undefined);
const needsModules = requireCondition(modules?.status === 0, 'python3-dbus and python3-gi are not installed');

test('the example registers itself, is listed, and is asked about configurations', {
  skip: requiresBus() || requiresRoot() || needsModules,
}, async (t) => {
  const bus = await PrivateBus.start(t);
  const service = await BusService.connect({ lost: () => undefined, back: () => undefined, refused: () => undefined });
  t.after(() => service.close());
  const objects = new TcmuObjects(service, []);
  t.after(() => objects.close());
  await objects.publish();
  const handler = start(t, PYTHON, [EXAMPLE, '--no-kernel']);
  await handler.waitForLine(/^registered$/);
  assert.ok(objects.isForeign('ram'));
  const listed = await bus.call(TCMU_SERVICE, ROOT, 'org.freedesktop.DBus.ObjectManager.GetManagedObjects');
  assert.match(listed.stdout, /TCMUService1\/ram"[\s\S]*a disk in memory/);
  const check = async (config: string): Promise<string> =>
    (await bus.call(TCMU_SERVICE, `${ROOT}/ram`, `${TCMU_SERVICE}.CheckConfig`, [`string:${config}`])).stdout;
  assert.match(await check('ram/anything'), /boolean true/);
  assert.match(await check('ram/'), /boolean false[\s\S]*something has to stand behind/);
  handler.child.kill('SIGTERM');
  await until(() => !objects.isForeign('ram'), 'the handler to be forgotten');
});

test('the example serves a ring: what is written is read back, what it does not know is refused', {
  skip: requiresCompiler() || requirePrograms(['python3'], 'python3'),
}, async (t) => {
  const kernel = await MockTcmu.start(t);
  const handler = start(t, PYTHON, [EXAMPLE, '--files', ...kernel.paths, String(kernel.regionSize)]);
  await handler.waitForLine(/^ready$/);
  const inquiry = await kernel.in(cdb.inquiry(undefined, 36), 96);
  assert.match(inquiry.data.toString('latin1', 8, 36), /^LUNETTE RAM disk/);
  assert.ok(
    inquiry.data.subarray(36).every((byte) => byte === 0),
    'nobody’s old data gets out',
  );
  assert.equal((await kernel.in(cdb.readCapacity10(), 8)).data.readUInt32BE(0), 2047);
  // Far more than the ring holds at once.
  for (let round = 0; round < 600; round++) {
    const bytes = Buffer.alloc(4096, round);
    assert.equal((await kernel.out(blockCdb(0x8a, 8 * (round % 200), 8), bytes)).status, 0);
    assert.deepEqual((await kernel.in(cdb.read16(8 * (round % 200), 8), 4096)).data, bytes);
  }
  const unknown = await kernel.in([0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0);
  assert.deepEqual([unknown.status, unknown.sense[2], unknown.sense[12]], [2, 5, 0x20]);
  const beyond = await kernel.in(cdb.read10(2047, 2), 1024);
  assert.deepEqual([beyond.status, beyond.sense[12]], [2, 0x21]);
  assert.equal((await kernel.outcome(await kernel.sendUnknown(16))).flags, 1);
  assert.equal((await kernel.in(cdb.testUnitReady)).status, 0);
});
