import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import type { CommonOptions } from '../output.ts';

export interface DaemonOptions extends CommonOptions {
  readonly config?: string;
  readonly printDropIn?: boolean;
}

const EXAMPLES = `
Examples:
  lunette daemon
  lunette daemon --config /etc/lunette/lunette.toml
  targetcli /backstores/user:qcow2 create name=disk0 size=20G cfgstring=/images/disk0.qcow2
`;

/** `daemon`: serves the kernel's TCMU devices. */
export function registerDaemon(program: Command, context: CliContext): void {
  program
    .command('daemon')
    .summary("serve the kernel target's user backstores, in tcmu-runner's place")
    .description(
      'Serves the TCMU devices of the Linux kernel target (LIO) until it is told to stop: those that targetcli makes, and those that are there already. Needs root.',
    )
    .option('--config <file>', 'configuration (TOML); SIGHUP reads it anew')
    .option('--print-drop-in', 'print a drop-in for the systemd unit, with the directories of the configuration')
    .addHelpText('after', EXAMPLES)
    .action(async (_own: DaemonOptions, command: Command) => {
      const { runDaemon } = await import('../run-daemon.ts');
      await runDaemon(command.optsWithGlobals<DaemonOptions>(), context);
    });
}
