import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ScsiDevice } from '../../src/scsi/device.ts';
import { TcmuDevice } from '../../src/tcmu/device.ts';
import { requireAddon } from '../support/addon.ts';
import { MockTcmu } from '../support/mock-tcmu.ts';
import { randomFor } from '../support/random.ts';
import { requiresCompiler } from '../support/sanitized.ts';
import { cdb, makeNexus, memoryImage } from '../support/scsi.ts';

/** What the whole of a device must bear: ring, commands, disk. */
const COMMANDS = 1_000_000;

test('a million random commands and malformed entries are all completed, none with data of others, and the ring goes on', {
  skip: requireAddon() || requiresCompiler(),
}, async (t) => {
  const { seed } = randomFor(t);
  const kernel = await MockTcmu.start(t, { regionSize: 16 * 1024 * 1024 });
  const server = new ScsiDevice({ ports: [] });
  server.addUnit(0, { image: memoryImage(), identity: 'fuzz' });
  const broken: string[] = [];
  const { memoryFd, eventFd, kickFd, regionSize } = kernel;
  const device = new TcmuDevice({
    ...{ memoryFd, eventFd, kickFd, regionSize },
    server,
    nexus: makeNexus(),
    onBroken: (reason) => broken.push(reason),
    onGone: () => broken.push('gone'),
  });
  t.after(() => device.close());
  device.start();
  const { done, good, stale } = await kernel.fuzz({ operations: COMMANDS, depth: 64, seed });
  assert.deepEqual({ done, stale, broken }, { done: COMMANDS, stale: 0, broken: [] });
  // Not all was refused, and not all that was malformed was taken.
  assert.ok(good > COMMANDS / 10 && good < COMMANDS, `${good} succeeded`);
  assert.ok(device.counters.malformed > 0 && device.counters.unknown > 0 && device.counters.taskManagement > 0);
  assert.equal(device.inFlight, 0);
  assert.equal((await kernel.in(cdb.read10(0, 8), 8 * 512)).status, 0);
});
