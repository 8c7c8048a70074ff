import { type Command, Option } from 'commander';
import type { CliContext } from '../context.ts';
import {
  allowAnyOption,
  allowOption,
  collect,
  forceShareOption,
  formatOption,
  ignoreCidOption,
  parentOption,
  secretFileOption,
  sizeArgument,
  strictOption,
  targetSecretFileOption,
} from '../options.ts';
import { type CommonOptions, warn } from '../output.ts';

/** Options of `convert` as commander gives them. */
export interface ConvertCommandOptions extends CommonOptions {
  readonly secretFile?: readonly string[];
  readonly targetSecretFile?: string;
  readonly format?: string;
  readonly outputFormat: string;
  readonly options?: readonly string[];
  readonly compress?: boolean;
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly snapshot?: string;
  readonly sparse?: number;
  readonly existing?: boolean;
  readonly targetIsZero?: boolean;
  readonly parallel?: string;
  readonly memory?: number;
  readonly progress?: boolean;
  readonly verify?: boolean;
  readonly checksum?: boolean;
  readonly resume?: boolean;
  readonly sync: 'on' | 'off';
  readonly forceShare?: boolean;
  readonly strict?: boolean;
  readonly parent?: string;
  readonly ignoreCid?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette convert -O raw disk.qcow2 disk.raw
  lunette convert -p -c -O qcow2 -o compression_type=zstd disk.raw disk.qcow2
  lunette convert -O qcow2 -l before-update disk.qcow2 then.qcow2     a snapshot as an image of its own
  lunette convert -O qcow2 -B base.qcow2 -F qcow2 disk.qcow2 overlay.qcow2    only what differs from base.qcow2
  lunette convert -O vmdk -o subformat=streamOptimized disk.qcow2 disk.vmdk
  lunette convert -n -O raw disk.qcow2 nbd://host/disk                onto something that is there
  lunette convert --resume -O qcow2 huge.vmdk huge.qcow2              a long one that may be interrupted
  lunette convert -O raw disk.qcow2 - | ssh host 'cat > disk.raw'
  lunette convert -O vmdk -o subformat=streamOptimized disk.qcow2 - | ssh host 'cat > disk.vmdk'

Until it is complete, the target keeps its name and its content; after an error, too. What is written with -n, to a device or to
a pipe is written in place. Images on web servers are read from them directly: http_proxy and https_proxy are not looked at.

With --resume a journal beside the target says what is done. After an interrupt, a full disk or a crash the same command goes on from
there: it reads back what was written, proves it by the journal's checksums, and takes up the rest. When the source or the options are not
the same any more it starts over, and says so; so it does for streamOptimized VMDK, which can only be written in one go.
`;

/** `convert`: any disk that can be read, as an image of any format that can be written. */
export function registerConvert(program: Command, context: CliContext): void {
  program
    .command('convert')
    .summary('write a disk into a new image')
    .description('Writes a disk, or several one after the other, into a new image of another format, or of the same.')
    .argument('<image...>', 'paths or URLs to read; the last one is the path to write, - for stdout')
    .addOption(formatOption())
    .addOption(new Option('-O, --output-format <fmt>', 'format of the target: raw, qcow2, vmdk or vdi').default('raw'))
    .option('-o, --options <name=value,…>', 'options of the target’s format (repeatable); help lists them', collect)
    .option('-c, --compress', 'compress: qcow2, and VMDK streams')
    .option('-B, --backing <file>', 'let the target stand on this image, and leave what is the same there to it')
    .option('-F, --backing-format <fmt>', 'the format of the backing file')
    .option('-l, --snapshot <id|name>', 'an internal snapshot in place of the disk as it is now')
    .option('-S, --sparse <size>', 'as many zeros become a hole (default: 4k); 0: none do', sizeArgument)
    .option('-n, --existing', 'write into a target that is there, in place')
    .option('--target-is-zero', 'with -n: the target reads as zeros, they need not be written')
    .option('-m, --parallel <n>', 'reads that wait at the same time, 1 to 64 (default: 8)')
    .option('-W, --out-of-order', 'accepted for scripts, and always on: writes take whatever order is quickest')
    .option('--memory <size>', 'memory for what is being copied (default: 16M)', sizeArgument)
    .option('-p, --progress', 'show how far it is')
    .option('--verify', 'read the target back and compare, before it gets its name')
    .option('--checksum', 'print the SHA-256 of the disk, worked out on the way')
    .option('--resume', 'keep what is done when it is interrupted, and go on from what such a conversion left')
    .addOption(
      new Option('--sync <on|off>', 'make the target durable before it gets its name')
        .choices(['on', 'off'])
        .default('on'),
    )
    .addOption(forceShareOption())
    .addOption(strictOption())
    .addOption(parentOption())
    .addOption(ignoreCidOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addOption(targetSecretFileOption())
    .addHelpText('after', EXAMPLES)
    .action(async (images: string[], _own: ConvertCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<ConvertCommandOptions>();
      const { runConvert } = await import('../run-convert.ts');
      await runConvert(context, images, options, (message, path) => warn(context, options, `${path}: ${message}`));
    });
}
