import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { UsageError } from '../../formats/core/errors.ts';
import { registerAmend } from './commands/amend.ts';
import { registerBench } from './commands/bench.ts';
import { registerBitmap } from './commands/bitmap.ts';
import { registerCheck } from './commands/check.ts';
import { registerChecksum } from './commands/checksum.ts';
import { registerCommit } from './commands/commit.ts';
import { registerCompare } from './commands/compare.ts';
import { registerCompletion } from './commands/completion.ts';
import { registerConvert } from './commands/convert.ts';
import { registerCreate } from './commands/create.ts';
import { registerDaemon } from './commands/daemon.ts';
import { registerDoctor } from './commands/doctor.ts';
import { registerExport } from './commands/export.ts';
import { registerInfo } from './commands/info.ts';
import { registerMap } from './commands/map.ts';
import { registerMeasure } from './commands/measure.ts';
import { registerRebase } from './commands/rebase.ts';
import { registerResize } from './commands/resize.ts';
import { registerSnapshot } from './commands/snapshot.ts';
import { registerStatus } from './commands/status.ts';
import type { CliContext } from './context.ts';
import { CommandStatus, DONE, reportError, USAGE } from './exit.ts';

const EXAMPLES = `
Examples:
  lunette export disk.qcow2                 serve an image over iSCSI on this machine
  lunette export --ephemeral disk.qcow2     the same, writes are thrown away at the end
  lunette info disk.qcow2                   what it is
  lunette check disk.qcow2                  whether it is consistent
  lunette snapshot usage disk.qcow2         what its snapshots cost
  lunette doctor                            what this machine can do

lunette COMMAND --help says more about each.
`;

/** What makes a command, by its name, in the order of the help. */
const COMMANDS: ReadonlyMap<string, (program: Command, context: CliContext) => void> = new Map([
  ['export', registerExport],
  ['info', registerInfo],
  ['check', registerCheck],
  ['convert', registerConvert],
  ['compare', registerCompare],
  ['checksum', registerChecksum],
  ['map', registerMap],
  ['measure', registerMeasure],
  ['create', registerCreate],
  ['resize', registerResize],
  ['rebase', registerRebase],
  ['commit', registerCommit],
  ['snapshot', registerSnapshot],
  ['bitmap', registerBitmap],
  ['amend', registerAmend],
  ['bench', registerBench],
  ['daemon', registerDaemon],
  ['status', registerStatus],
  ['stop', registerStatus],
  ['doctor', registerDoctor],
]);

/**
 * The command line, ready to parse. Commands load what they need when they run, so that none pays for another.
 *
 * @param first the first word of what is to be parsed: where that is a command, there is no other. All of them are made in the time that a
 *   small image takes to be looked at
 */
export function createProgram(context: CliContext, first = ''): Command {
  const program = new Command('lunette')
    .description('Serves virtual disk images as SCSI disks, and takes them apart.')
    .option('-q, --quiet', 'no warnings, hints and progress')
    .option('--debug', 'more log, and stack traces with errors')
    .version(version(), '-V, --version', 'print the version')
    .addHelpText('after', EXAMPLES)
    .helpOption('-h, --help', 'print this help')
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({
      writeOut: (text) => context.stdout.write(text),
      writeErr: (text) => context.stderr.write(text),
      outputError: () => undefined, // runCli prints errors, all in one form
    })
    .exitOverride();
  const only = COMMANDS.get(first);
  for (const register of only === undefined ? new Set(COMMANDS.values()) : [only]) register(program, context);
  // What the command line is like as a whole, these tell.
  if (only === undefined) registerCompletion(program, context, version());
  for (const command of program.commands) {
    command.copyInheritedSettings(program).configureHelp({ showGlobalOptions: true });
  }
  return program;
}

/**
 * Runs one command line. Never throws.
 *
 * @param args without the program's name
 * @returns the exit status
 */
export async function runCli(args: readonly string[], context: CliContext): Promise<number> {
  const program = createProgram(context, args[0]);
  try {
    await program.parseAsync(args, { from: 'user' });
    return DONE;
  } catch (error) {
    return showError(error, args, context);
  }
}

function showError(error: unknown, args: readonly string[], context: CliContext): number {
  if (error instanceof CommandStatus) return error.status;
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return DONE; // --help, --version
    if (error.code === 'commander.help') return USAGE; // no command given: the help was printed
    return showError(usageError(error, args), args, context);
  }
  const { status, text, help } = reportError(error);
  context.stderr.write(`lunette: ${text}\n`);
  if (help !== undefined) context.stderr.write(`${help}\n`);
  if (args.includes('--debug') && error instanceof Error) context.stderr.write(`${trace(error)}\n`);
  return status;
}

/** commander's text ("error: unknown option '--foo'\n(Did you mean --fob?)") as an error of ours. */
function usageError(error: CommanderError, args: readonly string[]): UsageError {
  const [first = '', ...more] = error.message.split('\n');
  const suggestion = more.find((line) => line.startsWith('(Did you mean'));
  const command = args.find((arg) => !arg.startsWith('-'));
  const known = error.code !== 'commander.unknownCommand' && command !== undefined;
  return new UsageError('USAGE', first.replace(/^error: /, ''), {
    help: suggestion?.slice(1, -1) ?? `lunette ${known ? `${command} ` : ''}--help says what is possible.`,
  });
}

function trace(error: Error): string {
  const own = error.stack ?? String(error);
  return error.cause instanceof Error ? `${own}\ncaused by: ${trace(error.cause)}` : own;
}

function version(): string {
  // From src/cli as from dist/src/cli: the first package.json upwards is ours.
  for (const up of ['../../package.json', '../../../package.json']) {
    try {
      const { version } = JSON.parse(readFileSync(new URL(up, import.meta.url), 'utf8')) as { version: string };
      return version;
    } catch {
      // Not that far up.
    }
  }
  return 'unknown';
}
