import { InvalidArgumentError, Option } from 'commander';
import { parseSize, sizeProblem } from '../../formats/core/units.ts';

/** Parsers and options that several commands share. Names follow qemu-img where it has them. */

export function formatOption(): Option {
  return new Option('-f, --format <fmt>', 'do not probe: the image is of this format, as qcow2 or raw');
}

export function forceShareOption(): Option {
  return new Option('-U, --force-share', 'open without taking locks, also while another program writes');
}

/** Every command that opens images takes it. */
export function secretFileOption(): Option {
  return new Option(
    '--secret-file <file>',
    'encrypted images: the file that holds the passphrase, and nothing else (repeatable: each is tried)',
  ).argParser(collect);
}

/** For commands that make images of others. */
export function targetSecretFileOption(): Option {
  return new Option(
    '--target-secret-file <file>',
    'the passphrase of the new image, where it is another than the first --secret-file',
  );
}

export function jsonOption(what: string): Option {
  return new Option('--json', `${what} (short for --output json)`);
}

export function outputOption(): Option {
  return new Option('--output <form>', 'human or json').choices(['human', 'json']);
}

export function progressOption(): Option {
  return new Option('-p, --progress', 'show how far it is: a bar on a terminal, else a line a second');
}

export function strictOption(): Option {
  return new Option('--strict', 'warnings about an image are failures');
}

export function parentOption(): Option {
  return new Option('--parent <file>', 'VDI, VMDK: the image that this one stands on');
}

export function ignoreCidOption(): Option {
  return new Option('--ignore-cid', 'VDI, VMDK: go on when the parent was changed since');
}

export function allowOption(): Option {
  return new Option('--allow <dir>', 'a directory that files named inside an image may be in (repeatable)').argParser(
    collect,
  );
}

export function allowAnyOption(): Option {
  return new Option('--allow-any', 'files named inside an image may be anywhere');
}

/** For options that may be given several times. */
export function collect(value: string, previous: readonly string[] | undefined): readonly string[] {
  return [...(previous ?? []), value];
}

/** SIZE: bytes, or with k, M, G, T, P or E. */
export function sizeArgument(text: string): number {
  const size = parseSize(text);
  if (size === undefined) throw new InvalidArgumentError(sizeProblem(text));
  return size;
}

/** `--compat`: what the JSON of an older QEMU does not have is left out. */
export function compatOption(since: string): Option {
  return new Option(
    '--compat <version>',
    `leave out of the JSON what QEMU before ${since} does not print: --compat 7.2`,
  ).argParser((text) => {
    if (!/^\d+(\.\d+)*$/.test(text)) throw new InvalidArgumentError('A version of QEMU is something like 7.2.');
    return text;
  });
}
