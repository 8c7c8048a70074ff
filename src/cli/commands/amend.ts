import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import { allowAnyOption, allowOption, collect, formatOption, secretFileOption } from '../options.ts';
import { type CommonOptions, warn } from '../output.ts';

interface AmendCommandOptions extends CommonOptions {
  readonly format?: string;
  readonly options?: readonly string[];
  readonly secretFile?: readonly string[];
  readonly force?: boolean;
  readonly allow?: readonly string[];
  readonly allowAny?: boolean;
}

const EXAMPLES = `
Examples:
  lunette amend -o compat=1.1 old.qcow2
  lunette amend -o compat=0.10,lazy_refcounts=off disk.qcow2
  lunette amend -o refcount_bits=64 disk.qcow2
  lunette amend --secret-file old.txt -o encrypt.state=active,encrypt.new-secret-file=new.txt disk.qcow2
  lunette amend -o encrypt.state=inactive,encrypt.old-secret-file=old.txt disk.qcow2
  lunette amend -o help disk.qcow2               what can be amended
  lunette info disk.qcow2                        its key slots, among other things
`;

/** `amend`: changes options of an image that exists. */
export function registerAmend(program: Command, context: CliContext): void {
  program
    .command('amend')
    .summary('change options and passphrases of a qcow2 image')
    .description('Changes options that a qcow2 image was made with, in place; what the disk holds stays.')
    .argument('<image>', 'path')
    .requiredOption('-o, --options <name=value,…>', 'what to change (repeatable); -o help lists it', collect)
    .addOption(formatOption())
    .addOption(secretFileOption())
    .option('--force', 'take away the last passphrase, too: nobody can read the image after that')
    .addOption(allowOption())
    .addOption(allowAnyOption())
    .addHelpText('after', EXAMPLES)
    .action(async (image: string, _own: AmendCommandOptions, command: Command) => {
      const options = command.optsWithGlobals<AmendCommandOptions>();
      const { runAmend } = await import('../run-amend.ts');
      await runAmend(context, image, options.options ?? [], {
        ...options,
        warn: (message, path) => warn(context, options, `${path}: ${message}`),
      });
    });
}
