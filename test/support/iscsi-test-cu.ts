/**
 * libiscsi's conformance suite against a LUN: one process per test, since version 1.19 carries state from one test to the
 * next in a process. A skip counts as passed in its own summary, so the output says which it was.
 */

import { run, runOk } from './process.ts';

export interface SuiteTest {
  /** FAMILY.SUITE.TEST. */
  readonly name: string;
  readonly suite: string;
  readonly result: 'pass' | 'fail' | 'skip';
  readonly output: string;
  readonly ms: number;
}

export interface SweepOptions {
  /** Names, all of the family ALL unless told. */
  readonly tests?: readonly string[];
  /** A second way to the same LUN, for tests with two initiators. The same URL unless told. */
  readonly secondUrl?: string;
}

/** Every test of a family: ALL.Read10.Simple and so on. */
export async function listTests(family = 'ALL'): Promise<string[]> {
  const lines = (await runOk('iscsi-test-cu', ['-l'])).split('\n');
  return lines.filter((line) => line.startsWith(`${family}.`) && line.split('.').length === 3);
}

/** Runs the tests one after another. Overwrites the LUN. */
export async function sweep(url: string, options: SweepOptions = {}): Promise<SuiteTest[]> {
  const results: SuiteTest[] = [];
  for (const name of options.tests ?? (await listTests())) {
    results.push(await runTest(name, url, options.secondUrl ?? url));
  }
  return results;
}

async function runTest(name: string, url: string, secondUrl: string): Promise<SuiteTest> {
  const suite = name.split('.')[1] as string;
  const began = Date.now();
  try {
    const { status, signal, stdout, stderr } = await run(
      'iscsi-test-cu',
      ['--dataloss', '--allow-sanitize', '--normal', `--test=${name}`, url, secondUrl],
      { timeoutMs: 40_000 },
    );
    const output = shorten(stdout + stderr);
    const ran = /tests\s+(\d+)\s+(\d+)/.exec(output);
    const end = signal ?? `status ${status}`;
    const ms = Date.now() - began;
    if (status !== 0) return { name, suite, result: 'fail', output: `${end}\n${output}`, ms };
    if (ran === null || ran[2] === '0') return { name, suite, result: 'fail', output: `ran no test\n${output}`, ms };
    // What finds nothing to do says so, or ends without having asserted anything: neither is a pass.
    const skipped = output.includes('[SKIPPED]') || /asserts\s+0\s/.test(output);
    return { name, suite, result: skipped ? 'skip' : 'pass', output, ms };
  } catch (error) {
    return { name, suite, result: 'fail', output: String(error), ms: Date.now() - began };
  }
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
}

export function tally(results: readonly SuiteTest[]): Tally {
  const count = (result: SuiteTest['result']): number => results.filter((test) => test.result === result).length;
  return { pass: count('pass'), fail: count('fail'), skip: count('skip') };
}

/** Lines: a table of passed, failed and skipped per suite, then each failure's output and the names of what was skipped. */
export function describe(results: readonly SuiteTest[]): string[] {
  const suites = new Map<string, SuiteTest[]>();
  for (const test of results) suites.set(test.suite, [...(suites.get(test.suite) ?? []), test]);
  const row = (name: string, { pass, fail, skip }: Tally): string =>
    `${name.padEnd(24)}${String(pass).padStart(5)}${String(fail).padStart(5)}${String(skip).padStart(5)}`;
  const lines = [`${'suite'.padEnd(24)} pass fail skip`];
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
