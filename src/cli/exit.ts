import { codeOf, type ErrorCode, LunetteError } from '../../formats/core/errors.ts';

/** Exit statuses that do not depend on a command. `compare` and `check` have tables of their own, after qemu-img. */
export const DONE = 0;
export const FAILED = 1;
export const USAGE = 2;

/** Ends a command that has printed its result with a status that is part of the result: nothing more is printed. */
export class CommandStatus extends Error {
  readonly status: number;

  constructor(status: number) {
    super(`status ${status}`);
    this.status = status;
  }
}

interface Row {
  readonly status: number;
  /** What to do when the error itself does not say: one sentence. */
  readonly help?: string;
}

/** The one translation from error codes to exit statuses. */
export const EXIT_TABLE: Readonly<Record<ErrorCode, Row>> = {
  BAD_MAGIC: { status: FAILED, help: 'Leave -f out to let lunette find out the format.' },
  BAD_HEADER: { status: FAILED },
  TRUNCATED: { status: FAILED, help: 'Was the file copied completely?' },
  UNSUPPORTED: { status: FAILED },
  CORRUPT: { status: FAILED, help: 'Make a copy, then see what a consistency check finds: lunette check IMAGE.' },
  PARENT_MISMATCH: { status: FAILED },
  ENCRYPTED: {
    status: FAILED,
    help: 'Put the passphrase into a file, without an end of line, and name it: --secret-file FILE.',
  },
  DENIED: { status: FAILED, help: 'If you trust this image, allow the directory of that file: --allow DIR.' },
  NOT_FOUND: { status: FAILED },
  EXISTS: { status: FAILED },
  ACCESS: { status: FAILED },
  NO_SPACE: { status: FAILED },
  IO: { status: FAILED },
  TOO_LARGE: { status: FAILED },
  LOCKED: { status: FAILED, help: 'Stop the program that has it open, or read it as it is with --force-share (-U).' },
  READ_ONLY: { status: FAILED },
  OUT_OF_RANGE: { status: FAILED },
  INVALID: { status: FAILED },
  CLOSED: { status: FAILED },
  ABORTED: { status: FAILED },
  TIMEOUT: { status: FAILED },
  PROTOCOL: { status: FAILED },
  AUTH: { status: FAILED },
  LIMIT: { status: FAILED },
  DISCONNECTED: { status: FAILED },
  UNAVAILABLE: { status: FAILED, help: 'lunette doctor says what this machine has and how to get the rest.' },
  USAGE: { status: USAGE },
  INTERNAL: { status: FAILED, help: 'This is a bug in lunette: --debug prints where it happened.' },
};

/** An error as the command line shows it. */
export interface ErrorReport {
  readonly status: number;
  /** `PATH: what is wrong (CODE)`, one line. */
  readonly text: string;
  readonly help: string | undefined;
}

/** Turns any error into its text, its line of help and its exit status. */
export function reportError(error: unknown): ErrorReport {
  const code = codeOf(error);
  const row = EXIT_TABLE[code];
  const path = error instanceof LunetteError ? error.path : pathOf(error);
  const message = plainMessage(error, path);
  const where = path === undefined ? '' : `${path}: `;
  const help = (error instanceof LunetteError ? error.help : undefined) ?? row.help;
  return { status: row.status, text: oneLine(`${where}${message} (${code})`), help: help && oneLine(help) };
}

/**
 * The message without the path, which stands before it already, and without what Node adds around an errno:
 * `ENOENT: no such file or directory, open 'x'` is `no such file or directory`.
 */
function plainMessage(error: unknown, path: string | undefined): string {
  let text = error instanceof Error ? error.message : String(error);
  text = text.replace(/\bE[A-Z0-9]+: ([^,]+), \w+(?: '[^']*')?(?: -> '[^']*')?$/, '$1');
  if (path !== undefined && path !== '') {
    for (const end of [': ', ' ']) if (text.startsWith(path + end)) text = text.slice(path.length + end.length);
    text = text.replace(` ${path}: `, ': ');
  }
  return text === '' ? 'failed without saying why' : text;
}

function pathOf(error: unknown): string | undefined {
  const path = (error as { path?: unknown } | null)?.path;
  return typeof path === 'string' ? path : undefined;
}

/** Names inside images can hold anything: control characters must not reach a terminal or break the line. */
export function oneLine(text: string): string {
  return text
    .replace(/\s*\n\s*/g, ' ')
    .replace(/[\x00-\x1f\x7f-\x9f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}
