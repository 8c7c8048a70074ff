/**
 * Reporter for node:test: what failed, with its error and diagnostics; what was skipped, and why; which files took longest. The last line is
 * `counts PASSED FAILED SKIPPED`, for scripts/test.ts. Suites are not tests and are not counted.
 */

import { relative, resolve } from 'node:path';
import { inspect } from 'node:util';

const named = (data) => `${data.file === undefined ? '' : `${relative(process.cwd(), data.file)}: `}${data.name}`;

/** An error as a person wants it: node:test wraps what the test threw. */
function describe(error) {
  if (error?.exitCode !== undefined || error?.signal) return `exit status ${error.exitCode}, signal ${error.signal}`;
  const cause = error?.code === 'ERR_TEST_FAILURE' && error.cause !== undefined ? error.cause : error;
  // The message of an assertion has the difference already.
  if (cause?.code === 'ERR_ASSERTION') return cause.stack;
  return cause instanceof Error || typeof cause === 'object' ? inspect(cause, { depth: 4 }) : String(cause);
}

const indent = (text) => text.replace(/^(?=.)/gm, '    ');

/** `a/one.test.ts 12 s, b/two.test.ts 3 s`: the files that took longest. */
function slowest(fileMs) {
  const longest = [...fileMs].sort((a, b) => b[1] - a[1]).slice(0, 5);
  return longest.map(([file, ms]) => `${relative(process.cwd(), file)} ${Math.round(ms / 1000)} s`).join(', ');
}

export default async function* report(events) {
  const count = { passed: 0, failed: 0, skipped: 0 };
  const fileMs = new Map();
  let output = '';
  let justFailed = false;
  for await (const { type, data } of events) {
    if (type === 'test:stderr' || type === 'test:stdout') {
      // Kept for the failure that may follow: the output of tests that pass is noise.
      output = (output + data.message).slice(-20_000);
    } else if (type === 'test:complete' && data.file !== undefined && resolve(data.name) === data.file) {
      fileMs.set(data.file, data.details.duration_ms);
    } else if (type === 'test:summary' && data.file !== undefined) {
      // Later versions of node:test tell it so.
      fileMs.set(data.file, data.duration_ms);
    } else if (type === 'test:diagnostic') {
      // A test's diagnostics come after its result. The seed of one that failed is what repeats it.
      if (justFailed && data.message.includes('LUNETTE_SEED=')) yield `    ${data.message}\n`;
    } else if (type === 'test:pass') {
      justFailed = false;
      if (data.details?.type === 'suite') continue;
      if (data.file !== undefined && data.nesting === 0 && resolve(data.name) === data.file) {
        // node:test reports a file in the place of its tests when it has none.
        count.failed++;
        yield `  FAILED   ${relative(process.cwd(), data.file)}: holds no test\n`;
      } else if (data.skip !== undefined && data.skip !== false) {
        count.skipped++;
        yield `  skipped  ${named(data)}${typeof data.skip === 'string' && data.skip !== '' ? ` (${data.skip})` : ''}\n`;
      } else if (data.todo !== undefined && data.todo !== false) {
        count.failed++;
        yield `  todo     ${named(data)}\n`;
      } else {
        count.passed++;
      }
    } else if (type === 'test:fail') {
      // A test or suite that failed by its subtests alone: they have told why.
      const error = data.details?.error;
      justFailed = true;
      if (data.details?.type !== 'suite') count.failed++;
      if (error?.failureType === 'subtestsFailed') continue;
      yield `  FAILED   ${named(data)}\n${indent(describe(error))}\n`;
      if (output !== '') yield `${indent(`printed before that:\n${output.trimEnd()}`)}\n`;
      output = '';
    }
  }
  if (fileMs.size > 1) yield `  slowest  ${slowest(fileMs)}\n`;
  yield `counts ${count.passed} ${count.failed} ${count.skipped}\n`;
}
