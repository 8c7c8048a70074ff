/** Administrators’ own tool with the daemon in tcmu-runner’s place. */

import { test } from 'node:test';
import { requiresVm, runVm, seedWith } from '../../support/vm.ts';

test('stock targetcli makes, saves, restores, grows and deletes backstores; daemons come and go meanwhile', {
  skip: requiresVm(),
}, async (t) => {
  const { seed } = await seedWith(t, { 'q.qcow2': '64M', 'm.vmdk': '64M', 'v.vdi': '64M', 'old.qcow': '16M' });
  await runVm(t, 'targetcli', { seed, seconds: 400, cpus: 1 });
});
