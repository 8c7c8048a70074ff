import { type Command, Option } from 'commander';
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

/** Options of `bench` as commander gives them. */
export interface BenchCommandOptions extends CommonOptions, OutputOptions {
  readonly count: string;
  readonly depth: string;
  readonly bufferSize: number;
  readonly stepSize?: number;
  readonly offset: number;
  readonly write?: boolean;
  readonly pattern: string;
  readonly flushInterval?: string;
  readonly drain: boolean;
  readonly format?: string;
  readonly snapshot?: string;
  readonly forceShare?: boolean;
  readonly strict?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
  readonly secretFile?: readonly string[];
}

const EXAMPLES = `
Examples:
  lunette bench -c 100000 -d 32 disk.qcow2
  lunette bench -w -c 10000 -d 16 -s 64k --pattern 7 scratch.qcow2     overwrites what is in it
  lunette bench -c 5000 -s 1M --json nbd://host/disk

With -w what the image holds is overwritten.
`;

/** `bench`: how many requests of an image are answered in what time. */
export function registerBench(program: Command, context: CliContext): void {
  program
    .command('bench')
    .summary('measure how quickly an image answers')
    .description(
      'Sends requests of one size to an image, one offset after the other, several at a time, and says how long that took. Options are those of qemu-img bench.',
    )
    .argument('<image>', 'path or URL')
    .option('-c, --count <n>', 'requests in all', '75000')
    .option('-d, --depth <n>', 'requests at the same time', '64')
    .addOption(new Option('-s, --buffer-size <size>', 'bytes of each').argParser(sizeArgument).default(4096, '4k'))
    .option(
      '-S, --step-size <size>',
      'from the start of one to the start of the next (default: their size)',
      sizeArgument,
    )
    .addOption(new Option('-o, --offset <size>', 'where to begin').argParser(sizeArgument).default(0, '0'))
    .option('-w, --write', 'write; else requests read')
    .option('--pattern <byte>', 'with -w: what is written, 0 to 255', '0')
    .option('--flush-interval <n>', 'with -w: a flush after so many requests')
    .option('--no-drain', 'with --flush-interval: do not wait for the requests in flight before a flush')
    .addOption(formatOption())
    .option('-l, --snapshot <id|name>', 'an internal snapshot in place of the disk as it is now')
    .addOption(new Option('-n, --native', 'accepted for scripts: how files are read is found out'))
    .addOption(forceShareOption())
    .addOption(jsonOption('print JSON'))
    .addOption(outputOption())
    .addOption(strictOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: BenchCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<BenchCommandOptions>();
      const json = wantsJson(options);
      const { runBench } = await import('../run-bench.ts');
      await runBench(context, image, options, json, (message, path) => warn(context, options, `${path}: ${message}`));
    });
}
