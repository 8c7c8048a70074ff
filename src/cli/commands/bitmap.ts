import { type Command, Option } from 'commander';
import type { CliContext } from '../context.ts';
import { allowAnyOption, allowOption, formatOption, secretFileOption, sizeArgument } from '../options.ts';
import { type CommonOptions, warn } from '../output.ts';
import type { BitmapAction } from '../run-bitmap.ts';

interface BitmapCommandOptions extends CommonOptions {
  readonly format?: string;
  readonly granularity?: number;
  readonly sourceFile?: string;
  readonly sourceFormat?: string;
  readonly secretFile?: readonly string[];
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette bitmap --add disk.qcow2 monday             takes note of writes from now on
  lunette bitmap --add --disable -g 1M disk.qcow2 sum
  lunette bitmap --merge monday disk.qcow2 sum
  lunette bitmap --merge monday -b other.qcow2 -F qcow2 disk.qcow2 sum
  lunette bitmap --clear --enable disk.qcow2 monday
  lunette bitmap --remove disk.qcow2 monday
  lunette info disk.qcow2                            lists them
  lunette export --transport nbd --read-only disk.qcow2   shows them as qemu:dirty-bitmap:NAME
`;

/** `bitmap`: changes the dirty bitmaps of an image, as qemu-img does. */
export function registerBitmap(program: Command, context: CliContext): void {
  const actions: BitmapAction[] = [];
  const command = program
    .command('bitmap')
    .summary('change the dirty bitmaps of a qcow2 image')
    .description(
      'Changes a dirty bitmap of a qcow2 image: which parts of the disk were written since. Several actions happen in the order given, one after the other.',
    )
    .argument('<image>', 'path')
    .argument('<name>', 'the bitmap')
    .option('--add', 'add an empty bitmap, enabled')
    .option('--remove', 'remove it, also when it is inconsistent')
    .option('--clear', 'make it say that nothing was written')
    .option('--enable', 'take note of writes')
    .option('--disable', 'keep it as it is')
    .option('--merge <source>', 'add what another bitmap says (repeatable)')
    .addOption(new Option('-g, --granularity <size>', 'with --add: bytes of the disk per bit').argParser(sizeArgument))
    .option('-b, --source-file <file>', 'with --merge: the image that has the other bitmap')
    .option('-F, --source-format <fmt>', 'format of --source-file')
    .addOption(formatOption())
    .addOption(secretFileOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, name: string, _own: BitmapCommandOptions, invoked: Command) => {
      const options = invoked.optsWithGlobals<BitmapCommandOptions>();
      const { runBitmap } = await import('../run-bitmap.ts');
      await runBitmap(image, name, actions, {
        ...options,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
  // The order counts, which the values of options do not tell.
  for (const kind of ['add', 'remove', 'clear', 'enable', 'disable'] as const) {
    command.on(`option:${kind}`, () => actions.push({ kind }));
  }
  command.on('option:merge', (source: string) => actions.push({ kind: 'merge', source }));
}
