import { type Command, Option } from 'commander';
import { UsageError } from '../../../formats/core/errors.ts';
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
  progressOption,
  secretFileOption,
  targetSecretFileOption,
} from '../options.ts';
import type { SnapshotOptions } from '../run-snapshot.ts';

const EXAMPLES = `
Examples:
  lunette snapshot list disk.qcow2
  lunette snapshot usage disk.qcow2                 what each of them costs
  lunette snapshot diff disk.qcow2 before-update    what has changed since
  lunette snapshot report disk.qcow2 -o disk.html   a page to look at
  lunette snapshot create disk.qcow2 before-update
  lunette snapshot apply disk.qcow2 before-update   the disk is what it was then
  lunette snapshot delete disk.qcow2 before-update
  lunette snapshot list machine.vbox                those of VirtualBox and VMware are files

As qemu-img has them, silent and by its rules for names and ids:
  lunette snapshot -l disk.qcow2
  lunette snapshot -c NAME disk.qcow2
  lunette snapshot -a ID|NAME disk.qcow2
  lunette snapshot -d NAME disk.qcow2

lunette snapshot COMMAND --help says more about each.
`;

/** The forms of qemu-img. */
interface QemuForms extends SnapshotOptions {
  readonly l?: boolean;
  readonly c?: string;
  readonly a?: string;
  readonly d?: string;
}

/** `snapshot`: a group of commands; its own options are those that all of them take. */
export function registerSnapshot(program: Command, context: CliContext): void {
  const group = program
    .command('snapshot')
    .summary('take, restore, compare and weigh snapshots')
    .description(
      'Lists, takes, restores and deletes the snapshots of an image, and says what they cost and how they differ.',
    )
    .usage('COMMAND IMAGE …')
    .argument('[image]')
    .addOption(formatOption())
    .addOption(forceShareOption())
    .addOption(jsonOption('print JSON'))
    .addOption(outputOption())
    .addOption(parentOption())
    .addOption(ignoreCidOption())
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addOption(secretFileOption())
    .addOption(new Option('-l').hideHelp())
    .addOption(new Option('-c <name>').hideHelp())
    .addOption(new Option('-a <snapshot>').hideHelp())
    .addOption(new Option('-d <snapshot>').hideHelp())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string | undefined, _own: QemuForms, command: Command) => {
      await runQemuForm(image, command, context);
    });

  group
    .command('list')
    .summary('list them')
    .description(
      'Lists the snapshots inside of a qcow2 image, as qemu-img does; for VMDK and VDI the snapshots of the machine that the disk belongs to, with the files that hold them.',
    )
    .argument('<image>', 'path, also of a .vmsd, .vmx or .vbox file')
    .addHelpText(
      'after',
      '\nExamples:\n  lunette snapshot list disk.qcow2\n  lunette snapshot list --json vm/disk.vmdk\n',
    )
    .action(async (image: string, _own: SnapshotOptions, command: Command) => {
      const { runList } = await import('../run-snapshot.ts');
      await runList(context, image, command.optsWithGlobals<SnapshotOptions>());
    });

  selectable(group.command('show'))
    .summary('say everything about one')
    .description('Says everything about one snapshot: sizes, what it shares, and what deleting it would give free.')
    .argument('<image>', 'path')
    .argument('<snapshot>', 'id or name')
    .addHelpText(
      'after',
      '\nExamples:\n  lunette snapshot show disk.qcow2 before-update\n  lunette snapshot show --id disk.qcow2 3\n',
    )
    .action(async (image: string, snapshot: string, _own: SnapshotOptions, command: Command) => {
      const { runShow } = await import('../run-usage.ts');
      await runShow(context, image, snapshot, command.optsWithGlobals<SnapshotOptions>());
    });

  group
    .command('tree')
    .summary('show the files that make a disk, and the snapshots in each')
    .description('Shows the files that a disk is made of, top first, and the snapshots inside of each, as a tree.')
    .argument('<image>', 'path')
    .addHelpText('after', '\nExamples:\n  lunette snapshot tree overlay.qcow2\n  lunette snapshot tree vm/vm.vmsd\n')
    .action(async (image: string, _own: SnapshotOptions, command: Command) => {
      const { runTree } = await import('../run-snapshot.ts');
      await runTree(context, image, command.optsWithGlobals<SnapshotOptions>());
    });

  group
    .command('usage')
    .summary('say what each of them costs')
    .description(
      'Says what each snapshot refers to, what of that is its alone, and what deleting it would give free. Reads tables only, and those of this file alone: what the image stands on is neither read nor counted, with -U or without.',
    )
    .argument('<image>', 'path')
    .addHelpText(
      'after',
      '\nExamples:\n  lunette snapshot usage disk.qcow2\n  lunette snapshot usage -U --json running-vm.qcow2\n',
    )
    .action(async (image: string, _own: SnapshotOptions, command: Command) => {
      const { runUsage } = await import('../run-usage.ts');
      await runUsage(context, image, command.optsWithGlobals<SnapshotOptions>());
    });

  selectable(group.command('diff'))
    .summary('find where two of them differ')
    .description(
      'Finds the parts of the disk that two snapshots, or a snapshot and the disk as it is now, have in different places. Compares tables and reads no data, unless --content asks for it. In place of a snapshot an image file may stand: one that the image is based on, say.',
    )
    .argument('<image>', 'path')
    .argument('<from>', 'id or name of a snapshot, or a file')
    .argument('[to]', 'the same; the disk as it is now when left out')
    .option('--content', 'read what may differ, and keep what does')
    .addOption(progressOption())
    .addHelpText(
      'after',
      '\nExamples:\n  lunette snapshot diff disk.qcow2 monday             since then\n  lunette snapshot diff disk.qcow2 monday tuesday\n  lunette snapshot diff --content --json disk.qcow2 monday\n  lunette snapshot diff overlay.qcow2 base.qcow2      what the overlay changes\n',
    )
    .action(async (image: string, from: string, to: string | undefined, _own: SnapshotOptions, command: Command) => {
      const { runDiff } = await import('../run-diff.ts');
      await runDiff(context, image, from, to, command.optsWithGlobals<SnapshotOptions>());
    });

  group
    .command('create')
    .summary('take one')
    .description('Takes a snapshot of the disk as it is now, inside of the image, and prints its id.')
    .argument('<image>', 'path')
    .argument('<name>', 'what it is called; names may repeat')
    .addHelpText('after', '\nExamples:\n  lunette snapshot create disk.qcow2 before-update\n')
    .action(async (image: string, name: string, _own: SnapshotOptions, command: Command) => {
      const { runCreate } = await import('../run-snapshot.ts');
      await runCreate(context, image, name, command.optsWithGlobals<SnapshotOptions>());
    });

  selectable(group.command('export'))
    .summary('write one into an image of its own')
    .description(
      'Writes the disk as a snapshot holds it into a new image. With --since only what it changed since another one, as an overlay over an image that holds that one.',
    )
    .argument('<image>', 'path')
    .argument('<snapshot>', 'id or name')
    .argument('<target>', 'the new image')
    .option('-O, --output-format <fmt>', 'format of the new image', 'qcow2')
    .option('-o, --options <key=value>', 'options of the format, as lunette create has them (repeatable)', collect)
    .option('--compress', 'store it compressed')
    .option('--since <snapshot>', 'write an overlay that holds what changed since this one')
    .option('-b, --backing <file>', 'with --since: the image that holds the other snapshot')
    .option('-F, --backing-format <fmt>', 'the format of -b')
    .option('--verify', 'read the new image back and compare, before it gets its name')
    .addOption(targetSecretFileOption())
    .addOption(progressOption())
    .addHelpText(
      'after',
      '\nExamples:\n  lunette snapshot export disk.qcow2 monday monday.qcow2\n  lunette snapshot export -O raw -p disk.qcow2 monday /dev/shm/monday.raw\n  lunette snapshot export disk.qcow2 tuesday --since monday -b monday.qcow2 tuesday.qcow2\n',
    )
    .action(async (image: string, snapshot: string, target: string, _own: SnapshotOptions, command: Command) => {
      const { runSnapshotExport } = await import('../run-snapshot-export.ts');
      await runSnapshotExport(context, image, snapshot, target, command.optsWithGlobals());
    });

  group
    .command('report')
    .summary('write a page about all of this')
    .description(
      'Writes one page of HTML that needs no network: the files of the disk and their snapshots, what each costs, what changed when, and what is where. Reads tables only.',
    )
    .argument('<image>', 'path')
    .requiredOption('-o, --out <file.html>', 'where to write it; - is stdout')
    .addHelpText(
      'after',
      '\nExamples:\n  lunette snapshot report disk.qcow2 -o disk.html\n  lunette snapshot report -U running-vm.qcow2 -o vm.html\n',
    )
    .action(async (image: string, _own: SnapshotOptions, command: Command) => {
      const { runReport } = await import('../run-report.ts');
      await runReport(context, image, command.optsWithGlobals<SnapshotOptions & { readonly out: string }>());
    });

  for (const [change, summary, description] of [
    [
      'apply',
      'make the disk what it was',
      'Makes the disk what it was when a snapshot was taken. What was written since is gone.',
    ],
    ['delete', 'delete one', 'Deletes a snapshot, and gives free what only it refers to.'],
  ] as const) {
    selectable(group.command(change))
      .summary(summary)
      .description(description)
      .argument('<image>', 'path')
      .argument('<snapshot>', 'id or name')
      .addHelpText(
        'after',
        `\nExamples:\n  lunette snapshot ${change} disk.qcow2 before-update\n  lunette snapshot ${change} --id disk.qcow2 3\n`,
      )
      .action(async (image: string, snapshot: string, _own: SnapshotOptions, command: Command) => {
        const { runChange } = await import('../run-snapshot.ts');
        await runChange(context, change, image, snapshot, command.optsWithGlobals<SnapshotOptions>());
      });
  }
}

/** For commands about one snapshot. */
function selectable(command: Command): Command {
  return command
    .option('--id', 'SNAPSHOT is an id, whatever names there are')
    .option('--name', 'SNAPSHOT is a name, whatever ids there are');
}

async function runQemuForm(image: string | undefined, command: Command, context: CliContext): Promise<void> {
  const { l, c, a, d, ...options } = command.optsWithGlobals<QemuForms>();
  const given = [l, c, a, d].filter((each) => each !== undefined).length;
  if (image === undefined || given === 0) {
    const help = 'lunette snapshot --help says what is possible.';
    if (image === undefined && given > 0) throw new UsageError('USAGE', "missing required argument 'image'", { help });
    if (image === undefined) command.help({ error: true });
    throw new UsageError('USAGE', `unknown command '${image}'`, {
      help: `To list: lunette snapshot list ${image}. ${help}`,
    });
  }
  if (given > 1) throw new UsageError('USAGE', '-l, -c, -a and -d cannot be used together');
  const run = await import('../run-snapshot.ts');
  if (c !== undefined) await run.runCreate(context, image, c, { ...options, silent: true });
  else if (a !== undefined) await run.runQemuChange(context, 'apply', image, a, options);
  else if (d !== undefined) await run.runQemuChange(context, 'delete', image, d, options);
  else await run.runList(context, image, options);
}
