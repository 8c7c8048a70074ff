import type { CommandFacts } from './command-line.ts';
import { EXIT_STATUSES } from './exit-text.ts';

/** The manual page lunette(1), in the macros of man(7). */
export function manualPage(program: CommandFacts, version: string): string {
  const lines = [
    `.TH LUNETTE 1 "" "lunette ${plain(version)}" "User Commands"`,
    '.SH NAME',
    'lunette \\- serve virtual disk images, convert them, and take them apart',
    '.SH SYNOPSIS',
    '.B lunette',
    '.I COMMAND',
    '.RI [ OPTIONS ]',
    '.RI [ ARGUMENTS ]',
    '.SH DESCRIPTION',
    plain(program.description),
    'Images are qcow2, VMDK, VDI and raw; names and options follow',
    '.BR qemu\\-img (1)',
    'where it has them.',
    '.SH GLOBAL OPTIONS',
    ...options(program),
    '.SH COMMANDS',
    ...program.commands.flatMap(command),
    '.SH EXIT STATUS',
    ...EXIT_STATUSES.flatMap(([status, meaning]) => ['.TP', `.B ${status}`, plain(meaning)]),
    '.SH EXAMPLES',
    ...literal(program.examples).slice(1),
    '.SH SEE ALSO',
    '.BR qemu\\-img (1),',
    '.BR qemu\\-nbd (8),',
    '.BR targetcli (8),',
    '.BR iscsiadm (8)',
  ];
  return `${lines.join('\n')}\n`;
}

function command(facts: CommandFacts): string[] {
  return [
    `.SS ${plain(facts.usage)}`,
    plain(facts.description),
    ...options(facts),
    ...literal(facts.examples),
    ...facts.commands.flatMap(command),
  ];
}

function options({ options: list }: CommandFacts): string[] {
  return list.flatMap(({ flags, description, choices }) => [
    '.TP',
    `.B ${plain(flags)}`,
    plain(choices.length === 0 ? description : `${description}: ${choices.join(', ')}`),
  ]);
}

/** Text whose lines stay as they are. */
function literal(text: string): string[] {
  if (text === '') return [];
  return ['.PP', '.nf', ...text.split('\n').map((line) => (line === '' ? '.sp' : plain(line))), '.fi'];
}

/** Text that troff takes as it is: a dash is a minus, and a dot or quote at the start of a line is no request. */
function plain(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('’', '\\(cq')
    .replaceAll('…', '...')
    .replaceAll('“', '\\(lq')
    .replaceAll('”', '\\(rq')
    .replace(/^[.']/, '\\&$&');
}
