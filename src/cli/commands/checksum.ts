import { type Command, Option } from 'commander';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  forceShareOption,
  formatOption,
  ignoreCidOption,
  parentOption,
  progressOption,
  secretFileOption,
  strictOption,
} from '../options.ts';
import { type CommonOptions, warn } from '../output.ts';

/** Options of `checksum` as commander gives them. */
export interface ChecksumCommandOptions extends CommonOptions {
  readonly secretFile?: readonly string[];
  readonly algorithm: 'blk-sha256' | 'sha256';
  readonly format?: string;
  readonly snapshot?: string;
  readonly progress?: boolean;
  readonly forceShare?: boolean;
  readonly strict?: boolean;
  readonly parent?: string;
  readonly ignoreCid?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette checksum disk.qcow2
  lunette checksum --algorithm sha256 disk.qcow2     what sha256sum says of the raw disk
  lunette checksum -l before-update disk.qcow2

docs/checksum.md defines blk-sha256, for those who want to compute it themselves.
`;

/** `checksum`: a digest of what a guest sees. */
export function registerChecksum(program: Command, context: CliContext): void {
  program
    .command('checksum')
    .summary('print a checksum of the content of a disk')
    .description('Prints a checksum of what a guest sees of a disk: the same for the same content in any format.')
    .argument('<image>', 'path or URL')
    .addOption(
      new Option(
        '--algorithm <name>',
        'blk-sha256: a tree over blocks in which what is empty costs nothing; sha256: of the whole disk',
      )
        .choices(['blk-sha256', 'sha256'])
        .default('blk-sha256'),
    )
    .addOption(formatOption())
    .option('-l, --snapshot <id|name>', 'an internal snapshot in place of the disk as it is now')
    .addOption(progressOption())
    .addOption(forceShareOption())
    .addOption(strictOption())
    .addOption(parentOption())
    .addOption(ignoreCidOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: ChecksumCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<ChecksumCommandOptions>();
      const { runChecksum } = await import('../run-checksum.ts');
      await runChecksum(context, image, options, (message, path) => warn(context, options, `${path}: ${message}`));
    });
}
