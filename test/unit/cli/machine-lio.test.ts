import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { copyFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { busPolicyFact, tcmuDaemonFact } from '../../../src/cli/machine-lio.ts';
import { PROJECT_ROOT } from '../../support/process.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

test('without a policy the bus lets nobody be found, and the command installs a file that is there', async (t) => {
  const directory = await temporaryDirectory(t);
  const none = busPolicyFact([directory, join(directory, 'missing')]);
  assert.equal(none.state, 'no');
  const [, file = ''] = /install -m 644 (\S+) /.exec(none.help ?? '') ?? [];
  await copyFile(file, join(directory, 'ours.conf'));
  assert.deepEqual([busPolicyFact([directory]).state, busPolicyFact([directory]).help], ['yes', undefined]);

  await rm(join(directory, 'ours.conf'));
  writeFileSync(
    join(directory, 'tcmu-runner.conf'),
    '<policy user="root"><allow own="org.kernel.TCMUService1"/></policy>',
  );
  const others = busPolicyFact([directory]);
  assert.deepEqual([others.state, /tcmu-runner\.conf/.test(others.detail)], ['partly', true]);
  assert.ok(file.startsWith(PROJECT_ROOT));
});

test('another daemon in the way is named with the command that ends it', async (t) => {
  const proc = await temporaryDirectory(t);
  const runs = (pid: number, ...words: string[]): void => {
    mkdirSync(join(proc, String(pid)), { recursive: true });
    writeFileSync(join(proc, String(pid), 'cmdline'), `${words.join('\0')}\0`);
  };
  runs(7, 'vi', 'tcmu-runner', 'daemon');
  assert.match(tcmuDaemonFact(proc).help ?? '', /systemctl enable --now lunette/);
  runs(8, '/usr/bin/node', '/usr/bin/lunette', 'daemon', '--config', '/etc/lunette/lunette.toml');
  assert.deepEqual(tcmuDaemonFact(proc), {
    id: 'tcmu-daemon',
    title: 'TCMU daemon',
    state: 'yes',
    detail: 'lunette daemon (process 8)',
  });
  runs(9, '/usr/bin/tcmu-runner', '-d');
  const other = tcmuDaemonFact(proc);
  assert.deepEqual([other.state, other.detail], ['no', 'tcmu-runner runs (process 9)']);
  assert.match(other.help ?? '', /systemctl disable --now tcmu-runner/);
});
