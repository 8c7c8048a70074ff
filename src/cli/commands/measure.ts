import { type Command, Option } from 'commander';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  collect,
  forceShareOption,
  formatOption,
  ignoreCidOption,
  jsonOption,
  outputOption,
  parentOption,
  secretFileOption,
  sizeArgument,
  strictOption,
} from '../options.ts';
import { type CommonOptions, type OutputOptions, wantsJson, warn } from '../output.ts';

/** Options of `measure` as commander gives them. */
export interface MeasureCommandOptions extends CommonOptions, OutputOptions {
  readonly outputFormat: string;
  readonly options?: readonly string[];
  readonly size?: number;
  readonly format?: string;
  readonly snapshot?: string;
  readonly forceShare?: boolean;
  readonly strict?: boolean;
  readonly parent?: string;
  readonly ignoreCid?: boolean;
  readonly secretFile?: readonly string[];
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette measure -O qcow2 disk.raw
  lunette measure -O qcow2 -o cluster_size=2M --size 100G
  lunette measure -O qcow2 -o encrypt.format=luks --size 100G

What is data but zeros is counted as data: converting may take less.
`;

/** `measure`: what a conversion would take. */
export function registerMeasure(program: Command, context: CliContext): void {
  program
    .command('measure')
    .summary('say how large an image would become')
    .description('Says how many bytes an image would take if the disk were converted to it. Reads metadata only.')
    .argument('[image]', 'path or URL; or --size')
    .addOption(new Option('-O, --output-format <fmt>', 'format of the image').default('raw'))
    .option('-o, --options <name=value,…>', 'options of that format (repeatable); help lists them', collect)
    .option('--size <size>', 'an empty disk of this size', sizeArgument)
    .addOption(formatOption())
    .option('-l, --snapshot <id|name>', 'an internal snapshot in place of the disk as it is now')
    .addOption(forceShareOption())
    .addOption(secretFileOption())
    .addOption(jsonOption('print JSON with qemu-img’s members'))
    .addOption(outputOption())
    .addOption(strictOption())
    .addOption(parentOption())
    .addOption(ignoreCidOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string | undefined, _own: MeasureCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<MeasureCommandOptions>();
      const json = wantsJson(options);
      const { runMeasure } = await import('../run-measure.ts');
      await runMeasure(context, image, options, json, (message, path) => warn(context, options, `${path}: ${message}`));
    });
}
