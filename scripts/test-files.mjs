/**
 * Runs test files, each in a process of its own, with the reporter beside this: node scripts/test-files.mjs CONCURRENCY TIMEOUT FILE…
 * They begin in the order given, where `node --test` would sort them: what takes longest is not to begin last. TIMEOUT is in milliseconds, for
 * each file. What this process was started with (--import) those of the files are.
 */

import { run } from 'node:test';
import report from './test-reporter.mjs';

const [concurrency, timeout, ...files] = process.argv.slice(2);
const events = run({ files, concurrency: Number(concurrency), timeout: Number(timeout) });
events.on('test:fail', () => {
  process.exitCode = 1;
});
events.compose(report).pipe(process.stdout);
