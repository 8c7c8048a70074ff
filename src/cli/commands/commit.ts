import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  formatOption,
  ignoreCidOption,
  parentOption,
  progressOption,
  secretFileOption,
} from '../options.ts';
import { warn } from '../output.ts';
import type { ProgressOptions } from '../progress.ts';

interface CommitCommandOptions extends ProgressOptions {
  readonly format?: string;
  readonly base?: string;
  readonly keep?: boolean;
  readonly parent?: string;
  readonly ignoreCid?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette commit overlay.qcow2               into its backing file; the overlay is empty then
  lunette commit -b base.qcow2 top.qcow2     what stands between them as well; top.qcow2 stays as it is
`;

/** `commit`: what an overlay holds goes into what it stands on. */
export function registerCommit(program: Command, context: CliContext): void {
  program
    .command('commit')
    .summary('write what an overlay holds into its backing file')
    .description(
      'Writes what an overlay holds into its backing file, and empties it (VMDK and VDI overlays keep what they hold). Other images over that backing file show something else afterwards.',
    )
    .argument('<image>', 'path')
    .addOption(formatOption())
    .option('-b, --base <path>', 'the file of the chain that takes everything above it; implies -d')
    .option('-d, --keep', 'do not empty the overlay afterwards')
    .addOption(parentOption())
    .addOption(ignoreCidOption())
    .addOption(progressOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: CommitCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<CommitCommandOptions>();
      const { runCommit } = await import('../run-rebase.ts');
      await runCommit(context, image, {
        ...options,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
