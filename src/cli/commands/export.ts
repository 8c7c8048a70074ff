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
  parentOption,
  secretFileOption,
  sizeArgument,
  strictOption,
} from '../options.ts';
import type { CommonOptions } from '../output.ts';

/** Options of `export` as commander gives them. */
export interface ExportOptions extends CommonOptions {
  readonly transport: 'iscsi' | 'nbd' | 'lio';
  readonly listen?: string;
  readonly fabric?: 'iscsi' | 'loopback';
  readonly socket?: string;
  readonly name?: string;
  readonly oneTarget?: boolean;
  readonly format?: string;
  readonly readOnly?: boolean;
  readonly snapshot?: string;
  readonly bitmap?: readonly string[];
  readonly ephemeral?: boolean;
  readonly overlay?: string;
  readonly forceShare?: boolean;
  readonly chap?: string;
  readonly chapSecretFile?: string;
  readonly mutualChap?: string;
  readonly mutualChapSecretFile?: string;
  readonly allowInitiator?: readonly string[];
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsCa?: string;
  readonly tlsPskFile?: string;
  readonly tlsRequired?: boolean;
  readonly blockSize?: '512' | '4096';
  readonly removable?: boolean;
  readonly optical?: boolean;
  readonly cache?: number;
  readonly metrics?: string;
  readonly stateDir?: string;
  readonly json?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
  readonly strict?: boolean;
  readonly parent?: string;
  readonly ignoreCid?: boolean;
  readonly force?: boolean;
  readonly discardNoUnref?: boolean;
  readonly secretFile?: readonly string[];
}

const EXAMPLES = `
Examples:
  lunette export disk.qcow2                     on 127.0.0.1:3260, written to in place
  lunette export --ephemeral disk.qcow2         writes are thrown away at the end
  lunette export --overlay today.qcow2 base.qcow2   writes go to today.qcow2
  lunette export --snapshot before-update --read-only disk.qcow2
  lunette export --one-target system.qcow2 data.qcow2   LUN 0 and LUN 1 of one target
  lunette export --listen 0.0.0.0:3260 --chap alice --chap-secret-file secret.txt disk.qcow2
  lunette export --transport nbd disk.qcow2     nbd://127.0.0.1:10809/disk
  lunette export --transport nbd --socket /run/disk.sock disk.qcow2   its snapshots too: disk@NAME
  lunette export --transport lio disk.qcow2     the kernel's target (root; module target_core_user)
  lunette export --transport lio --fabric loopback disk.qcow2   a disk of this machine: /dev/sdX
  lunette export qemu:vhdx:disk.vhdx            a format that QEMU opens for us (package qemu-utils)

For each image it prints one line that begins with "ready" and the URL, and serves until SIGINT or SIGTERM.
`;

/** `export`: serves images until interrupted. */
export function registerExport(program: Command, context: CliContext): void {
  program
    .command('export')
    .summary('serve images over iSCSI, NBD or the kernel’s target')
    .description('Serves images until interrupted: as SCSI disks over iSCSI or the kernel’s target (LIO), or over NBD.')
    .argument('<image...>', 'paths, nbd: URLs or qemu:FORMAT:PATH; each gets a target, or an export, of its own')
    .addOption(
      new Option('--transport <name>', 'how initiators reach it').choices(['iscsi', 'nbd', 'lio']).default('iscsi'),
    )
    .addOption(
      new Option('--fabric <name>', 'LIO: over the network, or as a disk of this machine (default: iscsi)').choices([
        'iscsi',
        'loopback',
      ]),
    )
    .option(
      '--listen <host:port>',
      'where to listen (default: 127.0.0.1:3260, NBD 127.0.0.1:10809); port 0 picks a free one',
    )
    .option('--socket <path>', 'NBD: listen on a unix socket, made and at the end removed')
    .option('--name <name>', 'name of the target or export (default: from the file’s name)')
    .option('--one-target', 'several images are LUN 0, 1, 2… of one target')
    .addOption(formatOption())
    .option('--read-only', 'writes are refused')
    .option(
      '-B, --bitmap <name>',
      'NBD: clients may ask for this dirty bitmap (repeatable; default: all that cannot change)',
      collect,
    )
    .option('--snapshot <id|name>', 'serve an internal snapshot, read-only')
    .option('--ephemeral', 'writes go to a temporary overlay, thrown away at the end')
    .option('--overlay <file.qcow2>', 'writes go to this overlay, made if missing')
    .addOption(forceShareOption())
    .addOption(secretFileOption())
    .addOption(parentOption())
    .addOption(ignoreCidOption())
    .option(
      '--discard-no-unref',
      'qcow2: what is discarded keeps its place in the file, which then is not scattered by use; its space goes back',
    )
    .option('--force', 'VMDK: write to an image although another one stands on it')
    .option('--chap <user>', 'initiators must log in as this user')
    .option('--chap-secret-file <file>', 'the secret of --chap: the first line of a file, 12 bytes or more')
    .option('--mutual-chap <user>', 'we prove to initiators that ask that we are this user')
    .option('--mutual-chap-secret-file <file>', 'the secret of --mutual-chap')
    .option('--allow-initiator <iqn>', 'only initiators of this name may log in (repeatable)', collect)
    .option('--tls-cert <file>', 'NBD: speak TLS to clients that ask for it, with this certificate (PEM)')
    .option('--tls-key <file>', 'the key of --tls-cert')
    .option('--tls-ca <file>', 'TLS clients must show a certificate that one of these signed')
    .option('--tls-psk-file <file>', 'NBD: TLS with pre-shared keys, a line of USER:HEX for each')
    .option('--tls-required', 'clients without TLS are refused')
    .addOption(new Option('--block-size <bytes>', 'size of a logical block').choices(['512', '4096']))
    .option('--removable', 'a medium that can be ejected')
    .option('--optical', 'a CD or DVD drive with the image as its disc, read-only (.iso files)')
    .option('--cache <size>', 'memory for decompressed clusters and tables (default: 64M)', sizeArgument)
    .option('--metrics <host:port>', 'serve Prometheus metrics over HTTP at /metrics')
    .option('--state-dir <dir>', 'where persistent reservations are kept over restarts')
    .addOption(jsonOption('events on stdout and the log on stderr as JSON lines'))
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(strictOption())
    .addHelpText('after', EXAMPLES)
    .action(async (images: string[], _own: ExportOptions, command: Command) => {
      const { runExport } = await import('../run-export.ts');
      await runExport(images, command.optsWithGlobals<ExportOptions>(), context);
    });
}
