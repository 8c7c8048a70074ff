import { type Command, Option } from 'commander';
import type { CliContext } from '../context.ts';
import { allowAnyOption, allowOption, formatOption, secretFileOption } from '../options.ts';
import { type CommonOptions, warn } from '../output.ts';

interface ResizeCommandOptions extends CommonOptions {
  readonly format?: string;
  readonly shrink?: boolean;
  readonly preallocation?: 'off' | 'metadata' | 'falloc' | 'full';
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette resize disk.qcow2 40G
  lunette resize disk.qcow2 +10G
  lunette resize --shrink disk.qcow2 -- -5G    what is behind the new end is lost
`;

/** `resize`: another size of the disk. */
export function registerResize(program: Command, context: CliContext): void {
  program
    .command('resize')
    .summary('change the size of a disk')
    .description('Changes the size of a disk. Partitions and file systems inside it are not touched.')
    .argument('<image>', 'path')
    .argument('<size>', 'the new size, or by how much: +SIZE, -SIZE')
    .addOption(formatOption())
    .option('--shrink', 'the disk may become smaller: what is behind its new end is lost')
    .addOption(
      new Option('--preallocation <mode>', 'what the new space is').choices(['off', 'metadata', 'falloc', 'full']),
    )
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addHelpText('after', EXAMPLES)
    .allowUnknownOption()
    .action(async (image: string, size: string, _own: ResizeCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<ResizeCommandOptions>();
      const { runResize } = await import('../run-resize.ts');
      await runResize(context, image, size, {
        ...options,
        quiet: options.quiet === true,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
