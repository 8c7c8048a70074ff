#!/usr/bin/env node
/** The `lunette` program. Nothing here but the process: commands live in commands/, and run in tests without this file. */
import { processContext } from './context.ts';
import { DONE, FAILED } from './exit.ts';
import { runCli } from './program.ts';

process.title = 'lunette';
// When nothing is left to do: taking the heap apart piece by piece is for nobody.
process.once('beforeExit', (status) => process.exit(statusOf(status)));
const context = processContext();
/** What a command says that could not say all of it is no success. */
const statusOf = (status: number): number => (status === DONE && context.lost ? FAILED : status);
/** Settles when the command has ended. */
export const ended = runCli(process.argv.slice(2), context).then((status) => {
  process.exitCode = status;
  // The process ends by itself when nothing is left to do. What might still hold it (log lines that nobody reads, a peer's half-closed
  // connection) gets a second; output that somebody is still reading, as long as it takes, unless it was interrupted.
  setInterval(() => {
    if (process.stdout.writableLength === 0 || context.interrupts.seen === true) process.exit(statusOf(status));
  }, 1000).unref();
});
