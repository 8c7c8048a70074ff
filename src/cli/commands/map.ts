import { type Command, Option } from 'commander';
import { UsageError } from '../../../formats/core/errors.ts';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  compatOption,
  forceShareOption,
  formatOption,
  ignoreCidOption,
  jsonOption,
  parentOption,
  secretFileOption,
  sizeArgument,
  strictOption,
} from '../options.ts';
import { type CommonOptions, type OutputOptions, wantsJson, warn } from '../output.ts';

interface MapCommandOptions extends CommonOptions, Pick<OutputOptions, 'json'> {
  readonly secretFile?: readonly string[];
  readonly output?: 'human' | 'json' | 'html' | 'svg';
  readonly out?: string;
  readonly format?: string;
  readonly snapshot?: string;
  readonly startOffset?: number;
  readonly maxLength?: number;
  readonly forceShare?: boolean;
  readonly strict?: boolean;
  readonly parent?: string;
  readonly ignoreCid?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
  readonly compat?: string;
}

const EXAMPLES = `
Examples:
  lunette map disk.qcow2
  lunette map --output json overlay.qcow2
  lunette map --output svg -o disk.svg disk.qcow2      a picture of what is where
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
    .addOption(
      new Option('--output <form>', 'human, json, or a picture: html, svg').choices(['human', 'json', 'html', 'svg']),
    )
    .option('-o, --out <file>', 'with html and svg: where to write it (default: stdout)')
    .addOption(strictOption())
    .addOption(parentOption())
    .addOption(ignoreCidOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addOption(compatOption('8.2'))
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: MapCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<MapCommandOptions>();
      const { output } = options;
      const picture = output === 'html' || output === 'svg' ? output : undefined;
      if (options.out !== undefined && picture === undefined) {
        throw new UsageError('USAGE', '-o is for --output html and --output svg');
      }
      if (options.json === true && picture !== undefined) {
        throw new UsageError('USAGE', `--json and --output ${picture} contradict each other`);
      }
      const { runMap } = await import('../run-map.ts');
      await runMap(context, image, {
        ...options,
        json:
          picture === undefined &&
          wantsJson({
            ...(options.json === undefined ? {} : { json: options.json }),
            ...(output === 'human' || output === 'json' ? { output } : {}),
          }),
        picture,
        withCompressed: options.compat === undefined || Number.parseFloat(options.compat) >= 8.2,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
