import { pino } from 'pino';
import type { CliContext } from './context.ts';
import { oneLine } from './exit.ts';
import type { CommonOptions } from './output.ts';

/** pino's numbers. */
const WARN = 40;
const ERROR = 50;

/** Log of a long-running command on stderr: JSON lines, or one line of text each. */
export type Log = pino.Logger;

/** @param json JSON lines instead of text */
export function createLog(context: CliContext, options: CommonOptions & { readonly json: boolean }): Log {
  const level = options.debug === true ? 'debug' : options.quiet === true ? 'error' : 'info';
  const write = options.json
    ? (line: string) => context.stderr.write(line)
    : (line: string) => context.stderr.write(textOf(line));
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, { write });
}

/** A JSON line of pino's for people: the text alone, with a word in front of what deserves attention. */
function textOf(line: string): string {
  const { level, msg } = JSON.parse(line) as { level: number; msg: string };
  const word = level >= ERROR ? 'error: ' : level >= WARN ? 'warning: ' : '';
  return `lunette: ${word}${oneLine(msg)}\n`;
}
