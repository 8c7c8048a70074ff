/** The daemon killed, ended and dead for long under load over the kernel’s target. */

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { randomFor } from '../../support/random.ts';
import { requiresVm, runVm, seedWith } from '../../support/vm.ts';

test('a daemon killed ten times under load, ended under load, or dead for long: what was flushed is there, errors come only from the long death', {
  skip: requiresVm(),
}, async (t) => {
  const { seed } = await seedWith(t, { 'disk.qcow2': '512M', 'dead.qcow2': '64M', 'new.vmdk': '16M' });
  await writeFile(join(seed, 'pattern'), randomFor(t).bytes(4_096_000));
  await runVm(t, 'survival', { seed, seconds: 1200 });
});
