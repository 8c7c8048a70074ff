import type { CommandFacts, OptionFacts } from './command-line.ts';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/** A script that completes commands, options, their values and file names in a shell. */
export function completionScript(program: CommandFacts, shell: Shell): string {
  return { bash, zsh, fish }[shell](program);
}

/** A command with the commands above it, whose options it takes as well. */
interface Placed {
  readonly command: CommandFacts;
  readonly options: readonly OptionFacts[];
}

/** All commands, groups before what is in them. */
function placed(command: CommandFacts, above: readonly OptionFacts[] = []): Placed[] {
  const seen = new Set(command.options.map(({ flags }) => flags));
  const options = [...command.options, ...above.filter(({ flags }) => !seen.has(flags))];
  return [{ command, options }, ...command.commands.flatMap((each) => placed(each, options))];
}

function flagsOf(option: OptionFacts): string[] {
  return [option.short, option.long].filter((flag) => flag !== undefined);
}

/** In single quotes: nothing in it means anything to a shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function bash(program: CommandFacts): string {
  const all = placed(program);
  const path = ({ words }: CommandFacts): string => words.join(' ');
  const known = all.slice(1).map(({ command }) => {
    const parent = command.words.slice(0, -1).join(' ');
    return `      ${quoted(`${parent}:${command.words.at(-1)}`)}) path=${quoted(path(command))} ;;`;
  });
  const values = all.flatMap(({ command, options }) => {
    const rows = options.filter(({ value }) => value !== undefined);
    const listed = rows.filter(({ choices }) => choices.length > 0);
    const free = rows.filter(({ choices }) => choices.length === 0).flatMap(flagsOf);
    const patterns = (flags: readonly string[]): string =>
      flags.map((flag) => quoted(`${path(command)}:${flag}`)).join('|');
    return [
      ...listed.map(
        (option) => `    ${patterns(flagsOf(option))}) words=${quoted(option.choices.join(' '))}; takes=1 ;;`,
      ),
      ...(free.length === 0 ? [] : [`    ${patterns(free)}) takes=1 ;;`]),
    ];
  });
  const options = all.map(({ command, options: list }) => {
    const subcommands = command.commands.map((each) => each.words.at(-1)).join(' ');
    return `    ${quoted(path(command))}) flags=${quoted(list.flatMap(flagsOf).join(' '))}; commands=${quoted(subcommands)} ;;`;
  });
  return `# bash completion for lunette: source this file, or put it into /etc/bash_completion.d.
_lunette() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]}
  local path='' words='' takes='' flags='' commands='' i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$path:\${COMP_WORDS[i]}" in
${known.join('\n')}
    esac
  done
  case "$path:$previous" in
${values.join('\n')}
  esac
  if [[ -n $takes ]]; then
    [[ -n $words ]] && COMPREPLY=($(compgen -W "$words" -- "$current"))
    return
  fi
  case "$path" in
${options.join('\n')}
  esac
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$current"))
  elif [[ -n $commands ]]; then
    COMPREPLY=($(compgen -W "$commands" -- "$current"))
  fi
}
complete -o default -F _lunette lunette
`;
}

function zsh(program: CommandFacts): string {
  const name = ({ words }: CommandFacts): string => ['_lunette', ...words].join('_').replaceAll('-', '_');
  // In a specification brackets and colons have a meaning.
  const plain = (text: string): string => text.replaceAll(/[[\]:\\]/g, '\\$&');
  const specification = (option: OptionFacts): string[] => {
    const flags = flagsOf(option);
    const repeats = option.description.includes('(repeatable)') ? '*' : '';
    const action =
      option.value === undefined
        ? ''
        : `:${plain(option.value)}:${option.choices.length > 0 ? `(${option.choices.join(' ')})` : '_files'}`;
    return flags.map((flag) => {
      const others = repeats === '' ? `(${flags.join(' ')})` : '*';
      return quoted(`${others}${flag}[${plain(option.description)}]${action}`);
    });
  };
  const functions = placed(program).map(({ command, options }) => {
    const own = options.flatMap(specification).map((text) => `    ${text} \\`);
    if (command.commands.length === 0) {
      return `${name(command)}() {\n  _arguments -S \\\n${own.join('\n')}\n    '*:file:_files'\n}`;
    }
    const list = command.commands.map((each) => `    ${quoted(`${each.words.at(-1)}:${plain(each.summary)}`)}`);
    const cases = command.commands.map((each) => `        ${each.words.at(-1)}) ${name(each)} ;;`);
    return `${name(command)}() {
  local context state state_descr line
  typeset -A opt_args
  local -a commands=(
${list.join('\n')}
  )
  _arguments -C -S \\
${own.join('\n')}
    '1: :->command' '*:: :->rest'
  case $state in
    command) _describe -t commands command commands ;;
    rest)
      case $words[1] in
${cases.join('\n')}
        *) _files ;;
      esac ;;
  esac
}`;
  });
  return `#compdef lunette
# zsh completion for lunette: put this file as _lunette into a directory of $fpath.
${functions.reverse().join('\n')}
if [ "$funcstack[1]" = "_lunette" ]; then
  _lunette "$@"
else
  compdef _lunette lunette
fi
`;
}

function fish(program: CommandFacts): string {
  const lines = ['# fish completion for lunette: put this file into ~/.config/fish/completions.'];
  const conditionOf = (command: CommandFacts): string => {
    const seen = command.words.map((word) => `__fish_seen_subcommand_from ${word}`);
    const below = command.commands.map((each) => each.words.at(-1)).join(' ');
    const parts = [...seen, ...(below === '' ? [] : [`not __fish_seen_subcommand_from ${below}`])];
    return parts.join('; and ');
  };
  for (const { command, options } of placed(program)) {
    const condition = conditionOf(command);
    for (const each of command.commands) {
      lines.push(`complete -c lunette -n ${quoted(condition)} -a ${each.words.at(-1)} -d ${quoted(each.summary)}`);
    }
    for (const option of options) {
      const short = option.short === undefined ? '' : ` -s ${option.short.slice(1)}`;
      const long = option.long === undefined ? '' : ` -l ${option.long.slice(2)}`;
      const value = option.value === undefined ? '' : ' -r';
      const choices = option.choices.length === 0 ? '' : ` -f -a ${quoted(option.choices.join(' '))}`;
      lines.push(
        `complete -c lunette -n ${quoted(condition)}${short}${long}${value}${choices} -d ${quoted(option.description)}`,
      );
    }
  }
  return `${lines.join('\n')}\n`;
}
