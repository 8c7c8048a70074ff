import type { Command } from 'commander';
import { Option } from 'commander';
import type { CliContext } from '../context.ts';
import { allowAnyOption, allowOption, collect, secretFileOption, sizeArgument } from '../options.ts';
import { type CommonOptions, warn } from '../output.ts';

interface CreateCommandOptions extends CommonOptions {
  readonly format: string;
  readonly options?: readonly string[];
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly unsafe?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette create -f qcow2 disk.qcow2 20G
  lunette create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2    what is written stays in the overlay
  lunette create -f vmdk -o subformat=monolithicFlat disk.vmdk 8G
  lunette create -f qcow2 -o help                                 which options there are
`;

/** `create`: a new, empty image. */
export function registerCreate(program: Command, context: CliContext): void {
  program
    .command('create')
    .summary('make a new image')
    .description('Makes a new image. A file that is there is overwritten, unless another program uses it.')
    .argument('[file]', 'path')
    .argument('[size]', 'bytes, or with k, M, G, T; may be left out with -b', sizeArgument)
    .addOption(new Option('-f, --format <fmt>', 'qcow2, vmdk, vdi or raw').default('raw'))
    .option('-o, --options <name=value,…>', 'options of the format (repeatable); help lists them', collect)
    .option('-b, --backing <file>', 'the image that the new one stands on; relative to the new image')
    .option('-F, --backing-format <fmt>', 'the format of the backing file')
    .option('-u, --unsafe', 'do not look at the backing file: it may not be there yet')
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addHelpText('after', EXAMPLES)
    .action(
      async (file: string | undefined, size: number | undefined, _own: CreateCommandOptions, command: Command) => {
        const options = command.optsWithGlobals<CreateCommandOptions>();
        const { runCreate } = await import('../run-create.ts');
        await runCreate(context, file, size, {
          ...options,
          optionTexts: options.options,
          backing: options.backing,
          backingFormat: options.backingFormat,
          unchecked: options.unsafe === true,
          quiet: options.quiet === true,
          warn: (message, path) => warn(context, options, `${path}: ${message}`),
        });
      },
    );
}
