import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  forceShareOption,
  formatOption,
  ignoreCidOption,
  jsonOption,
  outputOption,
  progressOption,
  secretFileOption,
  strictOption,
} from '../options.ts';
import { type CommonOptions, type OutputOptions, wantsJson, warn } from '../output.ts';

/** Options of `compare` as commander gives them. */
export interface CompareCommandOptions extends CommonOptions, OutputOptions {
  readonly secretFile?: readonly string[];
  readonly format?: string;
  readonly secondFormat?: string;
  readonly exact?: boolean;
  readonly progress?: boolean;
  readonly forceShare?: boolean;
  readonly strict?: boolean;
  readonly ignoreCid?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette compare disk.qcow2 disk.raw
  lunette compare -f raw -F qcow2 /dev/vg/disk backup.qcow2

Exit status: 0 the same, 1 different, 2 an image cannot be opened, 4 reading failed.
`;

/** `compare`: whether two disks hold the same. */
export function registerCompare(program: Command, context: CliContext): void {
  program
    .command('compare')
    .summary('compare the content of two disks')
    .description('Compares two disks byte by byte, whatever their formats. What both call a hole is not read.')
    .argument('<first>', 'path or URL')
    .argument('<second>', 'path or URL')
    .addOption(formatOption())
    .option('-F, --second-format <fmt>', 'the format of the second image')
    .option(
      '-s, --exact',
      'sizes, and which parts have space of their own, must be the same, too (qemu-img’s strict mode)',
    )
    .addOption(progressOption())
    .addOption(forceShareOption())
    .addOption(jsonOption('print one JSON object'))
    .addOption(outputOption())
    .addOption(strictOption())
    .addOption(ignoreCidOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addHelpText('after', EXAMPLES)
    .action(async (first: string, second: string, _own: CompareCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<CompareCommandOptions>();
      const json = wantsJson(options);
      const { runCompare } = await import('../run-compare.ts');
      await runCompare(context, [first, second], {
        ...options,
        json,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
