import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import { allowAnyOption, allowOption, formatOption, progressOption, secretFileOption } from '../options.ts';
import { warn } from '../output.ts';
import type { ProgressOptions } from '../progress.ts';

interface RebaseCommandOptions extends ProgressOptions {
  readonly format?: string;
  readonly backing: string;
  readonly backingFormat?: string;
  readonly unsafe?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette rebase -b new-base.qcow2 -F qcow2 overlay.qcow2   shows what it showed before
  lunette rebase -b '' overlay.qcow2                        needs no backing file any more
  lunette rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2
`;

/** `rebase`: an overlay on another backing file. */
export function registerRebase(program: Command, context: CliContext): void {
  program
    .command('rebase')
    .summary('put an overlay on another backing file')
    .description(
      'Puts a qcow2 overlay on another backing file. What that one shows differently is copied into the overlay first.',
    )
    .argument('<image>', 'path')
    .addOption(formatOption())
    .requiredOption('-b, --backing <path>', "the new backing file, relative to the image; '' for none")
    .option('-F, --backing-format <fmt>', 'the format of the new backing file')
    .option('-u, --unsafe', 'change the name only: for a backing file that was moved or copied')
    .addOption(progressOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: RebaseCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<RebaseCommandOptions>();
      const { runRebase } = await import('../run-rebase.ts');
      await runRebase(context, image, {
        ...options,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
