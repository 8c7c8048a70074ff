import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  compatOption,
  forceShareOption,
  formatOption,
  jsonOption,
  outputOption,
  secretFileOption,
  strictOption,
} from '../options.ts';
import { type CommonOptions, type OutputOptions, wantsJson, warn } from '../output.ts';

interface InfoOptions extends CommonOptions, OutputOptions {
  readonly format?: string;
  readonly forceShare?: boolean;
  readonly backingChain?: boolean;
  readonly strict?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
  readonly secretFile?: readonly string[];
  readonly compat?: string;
}

const EXAMPLES = `
Examples:
  lunette info disk.qcow2
  lunette info --backing-chain overlay.qcow2
  lunette info -U --json running-vm.qcow2     while a virtual machine uses it
  lunette info qemu:vhdx:disk.vhdx            a format that QEMU opens for us
`;

/** `info`: shows what an image is, without changing it. */
export function registerInfo(program: Command, context: CliContext): void {
  program
    .command('info')
    .summary('show what an image is, without changing it')
    .description(
      'Shows what an image is: format, sizes, snapshots, backing files. Changes nothing, and reads metadata only.',
    )
    .argument('<image>', 'path, nbd: or http: URL, or qemu:FORMAT:PATH')
    .addOption(formatOption())
    .addOption(forceShareOption())
    .addOption(secretFileOption())
    .option('--backing-chain', 'the same for its backing file, and that one’s, in turn')
    .addOption(jsonOption('print JSON with qemu-img’s members'))
    .addOption(outputOption())
    .addOption(strictOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(compatOption('8.0'))
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: InfoOptions, command: Command) => {
      const options = command.optsWithGlobals<InfoOptions>();
      const json = wantsJson(options);
      const { describeChain } = await import('../describe-chain.ts');
      const chain = await describeChain(image, {
        ...options,
        // Scripts that count "virtual-size" want it once.
        children: options.compat === undefined || Number.parseFloat(options.compat) >= 8,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
      if (json) {
        const { formatJson } = await import('../qemu-json.ts');
        context.stdout.write(`${formatJson(options.backingChain === true ? chain : chain[0])}\n`);
      } else {
        const { renderInfo } = await import('../info-text.ts');
        context.stdout.write(`${chain.map(renderInfo).join('\n\n')}\n`);
      }
    });
}
