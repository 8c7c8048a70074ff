/** Commands that make no sense, from an initiator that is not ours: test/support/programs/hostile-commands.py, over libiscsi. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { startExport } from '../../support/lunette-export.ts';
import { PROJECT_ROOT, run } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { randomFor } from '../../support/random.ts';
import { requirePrograms, requires } from '../../support/requires.ts';

const COMMANDS = 20_000;
/** FORMAT UNIT and SANITIZE. */
const ERASING = 200;

test('20,000 random commands of every opcode each get a status in time, and nothing of the disk that they did not read', {
  skip: requires.libiscsi() || requires.qemuImg() || requirePrograms(['python3'], 'python3'),
  timeout: 300_000,
}, async (t) => {
  const image = await qemu.create(t, { size: 16 * MiB });
  const target = await startExport(t, image);
  const program = join(PROJECT_ROOT, 'test/support/programs/hostile-commands.py');
  const seed = randomFor(t).below(2 ** 31);
  const args = [program, String(COMMANDS), String(seed), target.url, String(ERASING)];
  const { status, stdout, stderr } = await run('python3', args, { timeoutMs: 280_000 });
  t.diagnostic(stdout.trim());
  assert.equal(status, 0, `seed ${seed}\n${stdout}${stderr}`);
  await target.stop();
  await qemu.assertClean(image);
});
