import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  forceShareOption,
  formatOption,
  jsonOption,
  outputOption,
  secretFileOption,
  sizeArgument,
  strictOption,
} from '../options.ts';
import { type CommonOptions, type OutputOptions, wantsJson, warn } from '../output.ts';

interface MapCommandOptions extends CommonOptions, OutputOptions {
  readonly secretFile?: string;
  readonly format?: string;
  readonly snapshot?: string;
  readonly startOffset?: number;
  readonly maxLength?: number;
  readonly forceShare?: boolean;
  readonly strict?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
  readonly compat?: string;
}

const EXAMPLES = `
Examples:
  lunette map disk.qcow2
  lunette map --output json overlay.qcow2
`;

/** `map`: where in which file the bytes of a disk are. */
export function registerMap(program: Command, context: CliContext): void {
  program
    .command('map')
    .summary('say where the bytes of a disk are')
    .description('Lists which parts of a disk hold data, and where in which file of its chain. Reads metadata only.')
    .argument('<image>', 'path or URL')
    .addOption(formatOption())
    .option('-l, --snapshot <id|name>', 'an internal snapshot in place of the disk as it is now')
    .option('--start-offset <size>', 'where to begin', sizeArgument)
    .option('--max-length <size>', 'how much of the disk to list', sizeArgument)
    .addOption(forceShareOption())
    .addOption(jsonOption('print JSON with qemu-img’s members'))
    .addOption(outputOption())
    .addOption(strictOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .option('--compat <version>', 'leave out of the JSON what QEMU before 8.2 does not print: --compat 7.2')
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: MapCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<MapCommandOptions>();
      const json = wantsJson(options);
      const { runMap } = await import('../run-map.ts');
      await runMap(context, image, {
        ...options,
        json,
        withCompressed: options.compat === undefined || Number.parseFloat(options.compat) >= 8.2,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
