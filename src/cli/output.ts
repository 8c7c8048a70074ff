import { UsageError } from '../../formats/core/errors.ts';
import type { CliContext } from './context.ts';
import { oneLine } from './exit.ts';

/** Options that every command takes, as commander gives them. */
export interface CommonOptions {
  readonly quiet?: boolean;
  readonly debug?: boolean;
}

/** Options of commands that print either text or JSON. */
export interface OutputOptions {
  readonly json?: boolean;
  readonly output?: 'human' | 'json';
}

/** Whether JSON is asked for. @throws {UsageError} when --json meets --output human */
export function wantsJson(options: OutputOptions): boolean {
  if (options.json === true && options.output === 'human') {
    throw new UsageError('USAGE', '--json and --output human contradict each other');
  }
  return options.json === true || options.output === 'json';
}

/** A warning about an image or a choice: stderr, one line; silent with -q. */
export function warn(context: CliContext, options: CommonOptions, text: string): void {
  if (options.quiet !== true) context.stderr.write(`lunette: warning: ${oneLine(text)}\n`);
}
