/**
 * libiscsi's conformance suite against a LUN: one process per test, since version 1.19 carries state from one test to the
 * next in a process. A skip counts as passed in its own summary, so the output says which it was.
 */

import { run, runOk } from './process.ts';

export interface SuiteTest {
  /** FAMILY.SUITE.TEST. */
  readonly name: string;
  readonly suite: string;
  /** defect: failed for a reason of the suite's own, whatever the target does. */
  readonly result: 'pass' | 'fail' | 'skip' | 'defect';
  readonly output: string;
  readonly ms: number;
}

export interface SweepOptions {
  /** Names, all of the family ALL unless told. */
  readonly tests?: readonly string[];
  /** A second way to the same LUN, for tests with two initiators. The same URL unless told. */
  readonly secondUrl?: string;
  /** Whether a test may write to the LUN; those that have to and may not are skipped. Default: all may. */
  readonly dataLoss?: (name: string) => boolean;
}

/**
 * Tests of version 1.19 that fail on every target, with the only assertion that does.
 *
 * LUNResetSimpleAsync queues the reset and looks at once, before it reads anything, at a variable that only the answer's
 * callback sets (reconnect_succeeded, 0 in a new process). What it is about is tested in test/e2e/iscsi/reset.test.ts.
 */
const DEFECTS: ReadonlyMap<string, RegExp> = new Map([
  [
    'ALL.iSCSITMF.LUNResetSimpleAsync',
    /^\s*1\. test_async_lu_reset_simple\.c:157 {2}- CU_ASSERT_EQUAL\(reconnect_succeeded,1\)/m,
  ],
]);

/** Every test of a family: ALL.Read10.Simple and so on. */
export async function listTests(family = 'ALL'): Promise<string[]> {
  const lines = (await runOk('iscsi-test-cu', ['-l'])).split('\n');
  return lines.filter((line) => line.startsWith(`${family}.`) && line.split('.').length === 3);
}

/** Runs the tests one after another. Overwrites the LUN, unless told not to. */
export async function sweep(url: string, options: SweepOptions = {}): Promise<SuiteTest[]> {
  const results: SuiteTest[] = [];
  for (const name of options.tests ?? (await listTests())) {
    results.push(await runTest(name, url, options.secondUrl ?? url, options.dataLoss?.(name) ?? true));
  }
  return results;
}

async function runTest(name: string, url: string, secondUrl: string, dataLoss: boolean): Promise<SuiteTest> {
  const suite = name.split('.')[1] as string;
  const began = Date.now();
  try {
    const { status, signal, stdout, stderr } = await run(
      'iscsi-test-cu',
      [...(dataLoss ? ['--dataloss', '--allow-sanitize'] : []), '--normal', `--test=${name}`, url, secondUrl],
      { timeoutMs: 40_000 },
    );
    return judge(name, signal ?? `status ${status}`, stdout + stderr, Date.now() - began);
  } catch (error) {
    return { name, suite, result: 'fail', output: String(error), ms: Date.now() - began };
  }
}

/** What a test says by how its process ended (status N, or a signal) and by what it printed. */
export function judge(name: string, end: string, printed: string, ms: number): SuiteTest {
  const suite = name.split('.')[1] as string;
  const output = shorten(printed);
  const ran = /tests\s+(\d+)\s+(\d+)/.exec(output);
  if (isDefect(name, end, output)) return { name, suite, result: 'defect', output, ms };
  if (end !== 'status 0') return { name, suite, result: 'fail', output: `${end}\n${output}`, ms };
  if (ran === null || ran[2] === '0') return { name, suite, result: 'fail', output: `ran no test\n${output}`, ms };
  // What finds nothing to do says so, or ends without having asserted anything: neither is a pass.
  const skipped = output.includes('[SKIPPED]') || /asserts\s+0\s/.test(output);
  return { name, suite, result: skipped ? 'skip' : 'pass', output, ms };
}

/** The assertions that did not hold: test_read10_invalid.c:85 CU_ASSERT_EQUAL(…) and so on. */
export function failedAssertions({ output }: SuiteTest): string[] {
  const lines = output.matchAll(/^\s*\d+\. (test_\w+\.c:\d+)\s+- (CU_[A-Z_]+\(.*?\))(?=\s{2}|$)/gm);
  return Array.from(lines, ([, at, what]) => `${at} ${what}`);
}

/**
 * True when the one assertion failed that cannot hold, and no other: they are numbered. The test then frees what its session
 * still uses, and may crash before it has printed anything.
 */
function isDefect(name: string, end: string, output: string): boolean {
  const assertion = DEFECTS.get(name);
  if (assertion === undefined) return false;
  return /^SIG(ABRT|SEGV)$/.test(end) || (assertion.test(output) && !/^\s*2\. test_/m.test(output));
}

/** Some failures repeat one line thousands of times: the first and the last lines say it all. */
function shorten(output: string): string {
  const lines = output.split('\n').filter((line) => line.trim() !== '');
  return (lines.length <= 60 ? lines : [...lines.slice(0, 40), '…', ...lines.slice(-19)]).join('\n');
}

export interface Tally {
  readonly pass: number;
  readonly fail: number;
  readonly skip: number;
  readonly defect: number;
}

export function tally(results: readonly SuiteTest[]): Tally {
  const count = (result: SuiteTest['result']): number => results.filter((test) => test.result === result).length;
  return { pass: count('pass'), fail: count('fail'), skip: count('skip'), defect: count('defect') };
}

/** Lines: a table of passed, failed and skipped per suite, then each failure's output and the names of what was skipped. */
export function describe(results: readonly SuiteTest[]): string[] {
  const suites = new Map<string, SuiteTest[]>();
  for (const test of results) suites.set(test.suite, [...(suites.get(test.suite) ?? []), test]);
  const row = (name: string, { pass, fail, skip, defect }: Tally): string =>
    `${name.padEnd(24)}${[pass, fail, skip, defect].map((count) => String(count).padStart(5)).join('')}`;
  const lines = [`${'suite'.padEnd(24)} pass fail skip  defect of the suite`];
  for (const [suite, tests] of suites) lines.push(row(suite, tally(tests)));
  lines.push(row('all', tally(results)));
  const skipped = results.filter((test) => test.result === 'skip').map((test) => test.name.replace('ALL.', ''));
  if (skipped.length > 0) lines.push(`skipped: ${skipped.join(' ')}`);
  for (const test of results) {
    if (test.result === 'fail')
      lines.push(`FAILED ${test.name}`, ...test.output.split('\n').map((line) => `  ${line}`));
  }
  return lines;
}
