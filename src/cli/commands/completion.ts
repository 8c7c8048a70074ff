import { Argument, type Command } from 'commander';
import type { CliContext } from '../context.ts';

const SHELLS = ['bash', 'zsh', 'fish'] as const;

const EXAMPLES = `
Examples:
  lunette completion bash > /etc/bash_completion.d/lunette
  source <(lunette completion bash)                 or this, in ~/.bashrc
  lunette completion zsh > ~/.zfunc/_lunette        with ~/.zfunc in $fpath
  lunette completion fish > ~/.config/fish/completions/lunette.fish
`;

/** `completion` and `man`: both made from the definitions of the commands. */
export function registerCompletion(program: Command, context: CliContext, version: string): void {
  program
    .command('completion')
    .summary('print a script that completes commands in a shell')
    .description('Prints a script that makes a shell complete commands, options, their values and file names.')
    .addArgument(new Argument('<shell>', 'bash, zsh or fish').choices(SHELLS))
    .addHelpText('after', EXAMPLES)
    .action(async (shell: (typeof SHELLS)[number]) => {
      const { completionScript } = await import('../completion.ts');
      const { factsOf } = await import('../command-line.ts');
      context.stdout.write(completionScript(factsOf(program), shell));
    });
  program
    .command('man')
    .summary('print the manual page')
    .description('Prints the manual page, for man: all commands with their options.')
    .addHelpText('after', '\nExamples:\n  lunette man | man -l -\n')
    .action(async () => {
      const { manualPage } = await import('../manual.ts');
      const { factsOf } = await import('../command-line.ts');
      context.stdout.write(manualPage(factsOf(program), version));
    });
}
