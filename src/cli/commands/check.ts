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
} from '../options.ts';
import { type CommonOptions, type OutputOptions, wantsJson, warn } from '../output.ts';

interface CheckCommandOptions extends CommonOptions, OutputOptions {
  readonly repair?: 'leaks' | 'all';
  readonly deep?: boolean;
  readonly format?: string;
  readonly forceShare?: boolean;
  readonly secretFile?: readonly string[];
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette check disk.qcow2
  lunette check -r leaks disk.qcow2         give back space that nothing uses
  lunette check -r all disk.qcow2           mend what can be mended: make a copy first
  lunette check --deep --json disk.qcow2    also read every compressed cluster

Encrypted images are checked without a passphrase; with --secret-file also that it opens them.

Exit status: 0 no errors, 1 the check could not be done, 2 errors, 3 leaks only, 63 the format has nothing to check.
`;

/** `check`: whether an image's metadata agrees with itself, and mending it. */
export function registerCheck(program: Command, context: CliContext): void {
  program
    .command('check')
    .summary('check the consistency of an image, and repair it')
    .description(
      'Checks the metadata of a qcow2, VMDK or VDI image, and repairs it if asked to. Nobody else may use the image meanwhile.',
    )
    .argument('<image>', 'path')
    .addOption(
      new Option('-r, --repair <what>', 'leaks: space that nothing uses; all: errors too').choices(['leaks', 'all']),
    )
    .option('--deep', 'also decompress every cluster, and look for what qemu-img does not')
    .addOption(formatOption())
    .addOption(forceShareOption())
    .addOption(secretFileOption())
    .addOption(jsonOption('print JSON with qemu-img’s members'))
    .addOption(outputOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: CheckCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<CheckCommandOptions>();
      const json = wantsJson(options);
      const { runCheck } = await import('../run-check.ts');
      await runCheck(context, image, {
        ...options,
        json,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
