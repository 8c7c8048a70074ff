import { type ErrorCode, LunetteError } from '../../formats/core/errors.ts';

/** What qemu-nbd's complaints mean to us. The first that matches counts. */
const MEANINGS: readonly (readonly [RegExp, ErrorCode, string?])[] = [
  [
    /Failed to get .* lock|using the image/i,
    'LOCKED',
    'Stop the program that has it open, or read it with --read-only or -U.',
  ],
  [
    /not closed correctly|needs? (to be )?repair|log that needs to be replayed|check -r|is dirty/i,
    'CORRUPT',
    'Let QEMU repair it: qemu-img check -r all.',
  ],
  [
    /Unknown (driver|protocol|block driver)|not whitelisted|does not support|Could not find .*module|Failed to (initialize|open) module/i,
    'UNSUPPORTED',
    'lunette doctor shows what this qemu-nbd has; drivers for networks are in the package qemu-block-extra.',
  ],
  [
    /Invalid password|key-secret|secret|passphrase/i,
    'AUTH',
    'Name the file that holds the passphrase, and nothing else: --secret-file FILE.',
  ],
  [/Image is read-only|Read-only file system|read-?only/i, 'READ_ONLY', 'Add --read-only.'],
  [/No such file or directory|not found|does not exist/i, 'NOT_FOUND'],
  [/Permission denied|Operation not permitted/i, 'ACCESS'],
  [/No space left/i, 'NO_SPACE'],
  [/does not get ready/, 'TIMEOUT'],
  [/snapshot/i, 'NOT_FOUND'],
  [
    /invalid .* image|not (a |an |in )?.*(image|format|file)|magic|Invalid argument|signature|corrupt/i,
    'BAD_MAGIC',
    'It is not of the format that was named, or damaged.',
  ],
];

/** Turns what qemu-nbd says before it ends into an error. */
export function errorOfOutput(output: string, path: string): LunetteError {
  const lines = output.split('\n').map((line) => line.trim());
  const said = lines.filter((line) => line !== '');
  // Libraries of drivers talk, too; the program's own last word is what it failed for.
  const own = said.filter((line) => line.startsWith('qemu-nbd:'));
  const line = (own.at(-1) ?? said.at(-1) ?? 'it ended without a word')
    .replace(/^qemu-nbd: /, '')
    .replace(/^Failed to blk_new_open '.*': (?=[^'])/s, '');
  const all = said.join(' ');
  const [, code = 'IO', help] =
    MEANINGS.find(([pattern]) => pattern.test(line) || (own.length === 0 && pattern.test(all))) ?? [];
  return new LunetteError(code, `qemu-nbd: ${line}`, { path, help });
}
