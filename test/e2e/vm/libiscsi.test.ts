/** libiscsi's conformance suite through the kernel's iSCSI target, on a disk that our daemon serves. */

import assert from 'node:assert/strict';
import { readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import * as suite from '../../support/iscsi-test-cu.ts';
import { requires } from '../../support/requires.ts';
import { requiresVm, runVm, seedWith } from '../../support/vm.ts';

const SIZE = 64 * MiB;

interface KernelsOwn {
  readonly tests: RegExp;
  /** Each assertion of them that does not hold is of this kind: everything else about the answer is right. */
  readonly assertion: RegExp;
  /** Whether it fails on a disk of the kernel's own, fileio, in the same way. */
  readonly onFileioToo: boolean;
}

/** What fails for a reason of the kernel's, whoever serves the disk. */
const KERNELS_OWN: readonly KernelsOwn[] = [
  {
    // A server behind TCMU gives a status, sense data and how much of a read it had. What an initiator asked for too much or too little of
    // the kernel compares for its own disks alone (target_cmd_size_check), so that no residual of a write and no overflow is ever reported.
    tests: /^ALL\.iSCSIResiduals\./,
    assertion: /CU_ASSERT_EQUAL\(task->residual(_status)?,/,
    onFileioToo: false,
  },
  {
    // Data-Out with a wrong number, which the kernel's iSCSI target sees and we do not: one of the four wrong numbers gets through, which one
    // differs from run to run.
    tests: /^ALL\.iSCSIdatasn\.iSCSIDataSnInvalid$/,
    assertion: /^test_iscsi_datasn_invalid\.c:\d+ CU_ASSERT_NOT_EQUAL\(ret,0\)$/,
    onFileioToo: true,
  },
];

/**
 * Tests that send hundreds of commands, of which a test beside them sends the like: half of the suite's time under emulation.
 * LUNETTE_WHOLE_SUITE=1 takes them along. The suite against the embedded target, the same engine, always does.
 */
const SLOW = new RegExp(
  `^ALL\\.(${[
    'GetLBAStatus\\.UnmapSingle',
    'OrWrite\\.Verify',
    'WriteSame1[06]\\.Unmap',
    'CompareAndWrite\\.Miscompare',
    'MultipathIO\\.CompareAndWrite',
    'Verify1[26]\\.(Simple|Mismatch|MismatchNoCmp|BeyondEol)',
    'WriteVerify1[026]\\.(Simple|BeyondEol)',
  ].join('|')})$`,
);

/**
 * Tests in which one initiator reserves the disk as soon as the other one's session is over. The kernel's iSCSI target answers a logout, or sees
 * a connection end, before it takes the session and with it the reservation down: on a busy machine the reservation may still be there.
 * Each has three tries.
 */
const RACES = /^ALL\.Reserve6\.(Logout|ITNexusLoss)$/;

test('what libiscsi’s suite finds on a disk behind the kernel’s target is the kernel’s own', {
  skip: requiresVm() || requires.libiscsi(),
}, async (t) => {
  const whole = process.env.LUNETTE_WHOLE_SUITE !== undefined;
  const tests = (await suite.listTests()).filter((name) => whole || !SLOW.test(name));
  const { seed, images } = await seedWith(t, { 'disk.qcow2': String(SIZE) });
  await writeFile(join(images, 'disk.raw'), '');
  await truncate(join(images, 'disk.raw'), SIZE);
  await writeFile(join(seed, 'tests'), tests.map((name) => `${name} ${RACES.test(name) ? 3 : 1}\n`).join(''));
  const { out } = await runVm(t, 'libiscsi', { seed, seconds: whole ? 1800 : 900, cpus: 1 });

  const ours = await results(join(out, 'ours'));
  const fileio = new Map((await results(join(out, 'kernel'))).map((result) => [result.name, result]));
  for (const line of suite.describe(ours)) t.diagnostic(line);
  assert.equal(ours.length, tests.length);
  for (const failed of ours.filter(({ result }) => result === 'fail')) {
    const assertions = suite.failedAssertions(failed);
    const own = KERNELS_OWN.find((kind) => kind.tests.test(failed.name));
    assert.ok(own !== undefined && assertions.length > 0, `${failed.name}\n${failed.output}`);
    if (own.onFileioToo) {
      assert.equal(fileio.get(failed.name)?.result, 'fail', `${failed.name} passes on fileio`);
      assertions.push(...suite.failedAssertions(fileio.get(failed.name) as suite.SuiteTest));
    }
    for (const assertion of assertions) assert.match(assertion, own.assertion, failed.name);
  }
  const { pass, fail } = suite.tally(ours);
  assert.ok(fail <= 11, `${fail} failed`);
  assert.ok(pass >= (whole ? 178 : 160), `${pass} passed`);
});

/** What the job found, of one of the disks. */
async function results(directory: string): Promise<suite.SuiteTest[]> {
  const files = (await readdir(directory)).sort();
  return Promise.all(
    files.map(async (file) => {
      const text = await readFile(join(directory, file), 'utf8');
      const [line = '', status = '', ms = ''] = /^ended with (\d+) after (\d+) ms\n$/m.exec(text) ?? [];
      // As a shell gives it.
      const end = { '124': 'out of time', '134': 'SIGABRT', '139': 'SIGSEGV' }[status] ?? `status ${status}`;
      return suite.judge(file.replace(/\.txt$/, ''), end, text.replace(line, ''), Number(ms));
    }),
  );
}
