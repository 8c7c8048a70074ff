import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import { jsonOption } from '../options.ts';
import type { CommonOptions } from '../output.ts';

export interface StatusOptions extends CommonOptions {
  readonly json?: boolean;
}

const STATUS_EXAMPLES = `
Examples:
  lunette status
  lunette status --json
`;

const STOP_EXAMPLES = `
Examples:
  lunette stop disk0
`;

/** `status`: what the daemon on this machine serves. `stop`: ends one of its exports. */
export function registerStatus(program: Command, context: CliContext): void {
  program
    .command('status')
    .summary('what the running daemon serves: devices, sessions, rates, latencies, cache')
    .description(
      'Asks the daemon of this machine over D-Bus what it serves. Rates are those of one second; --json prints totals since it began. Needs root.',
    )
    .addOption(jsonOption('print one JSON object'))
    .addHelpText('after', STATUS_EXAMPLES)
    .action(async (_own: StatusOptions, command: Command) => {
      const { runStatus } = await import('../run-status.ts');
      await runStatus(command.optsWithGlobals<StatusOptions>(), context);
    });
  program
    .command('stop')
    .summary('end an export of the running daemon')
    .description(
      'Ends one export of the daemon: who uses it is sent away, the image is flushed and closed. It comes back when the daemon is started again, or when its configuration changes. Needs root.',
    )
    .argument('<name>', 'name of the export, as in the configuration')
    .addHelpText('after', STOP_EXAMPLES)
    .action(async (name: string) => {
      const { runStop } = await import('../run-status.ts');
      await runStop(name);
    });
}
