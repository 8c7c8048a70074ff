import type { Command } from 'commander';
import type { CliContext } from '../context.ts';
import { jsonOption, outputOption } from '../options.ts';
import { type OutputOptions, wantsJson } from '../output.ts';

/** `doctor`: what this machine can do. */
export function registerDoctor(program: Command, context: CliContext): void {
  program
    .command('doctor')
    .summary('say what this machine can do')
    .description('Says what this machine can do, and for each thing that is missing the way to get it.')
    .addOption(jsonOption('print one JSON object'))
    .addOption(outputOption())
    .addHelpText('after', '\nExamples:\n  lunette doctor\n  lunette doctor --json\n')
    .action(async (_own: OutputOptions, command: Command) => {
      const json = wantsJson(command.optsWithGlobals<OutputOptions>());
      const { examine, renderFindings } = await import('../doctor.ts');
      const findings = await examine(context.env);
      context.stdout.write(json ? `${JSON.stringify(findings, null, 2)}\n` : renderFindings(findings));
    });
}
