import type { EventEmitter } from 'node:events';
import type { Command, Option } from 'commander';

/** What the command line has, read from the same definitions that parse it: for the manual and for completion. */
export interface CommandFacts {
  /** Words after the program's name: `snapshot list`. */
  readonly words: readonly string[];
  readonly summary: string;
  readonly description: string;
  readonly usage: string;
  readonly options: readonly OptionFacts[];
  readonly examples: string;
  readonly commands: readonly CommandFacts[];
}

export interface OptionFacts {
  readonly short: string | undefined;
  readonly long: string | undefined;
  readonly flags: string;
  readonly description: string;
  /** The name of its value; undefined when it takes none. */
  readonly value: string | undefined;
  readonly choices: readonly string[];
}

/** The facts of a program and all its commands. */
export function factsOf(program: Command): CommandFacts {
  return commandFacts(program, []);
}

function commandFacts(command: Command, words: readonly string[]): CommandFacts {
  const help = command.createHelp();
  return {
    words,
    summary: command.summary() || command.description(),
    description: command.description(),
    usage: help.commandUsage(command),
    options: help.visibleOptions(command).map(optionFacts),
    examples: examplesOf(command),
    commands: help
      .visibleCommands(command)
      .filter((each) => each.name() !== 'help')
      .map((each) => commandFacts(each, [...words, each.name()])),
  };
}

function optionFacts(option: Option): OptionFacts {
  return {
    short: option.short ?? undefined,
    long: option.long ?? undefined,
    flags: option.flags,
    description: option.description,
    value: /[<[]([^>\]]+)[>\]]/.exec(option.flags)?.[1],
    choices: option.argChoices ?? [],
  };
}

/** What follows the list of options in the help of a command, which commander keeps to itself. */
function examplesOf(command: Command): string {
  const parts: string[] = [];
  // Commands are emitters, which their types do not say.
  (command as unknown as EventEmitter).emit('afterHelp', {
    error: false,
    command,
    write: (text: string) => parts.push(text),
  });
  return parts.join('').trim();
}
