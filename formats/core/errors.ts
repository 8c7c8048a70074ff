/**
 * The errors of the whole program: one base class with a stable `code`, few children.
 *
 * A fact is decided where it is known (the parser knows that a field is out of range) and translated once at
 * each border: to SCSI sense, to an NBD errno, to an exit status. Each of those is one table over ErrorCode.
 */

import { constants } from 'node:os';

/** Every code there is, with what it means. The tables of sense, errno and exit status have a row for each. */
export const ERROR_CODES = {
  // What an image or another input holds.
  BAD_MAGIC: 'the file is not of this format',
  BAD_HEADER: 'a header field has a value that the format does not allow',
  TRUNCATED: 'the file ends before what it says it holds',
  UNSUPPORTED: 'a valid feature that this program does not have',
  CORRUPT: 'the metadata of the image contradicts itself',
  PARENT_MISMATCH: 'a parent image is not the one that the child was made on',
  DENIED: 'the image names a file that it may not reach',
  ENCRYPTED: 'the image is encrypted, and the passphrase is missing or wrong',
  // What the host does.
  NOT_FOUND: 'no such file, export or snapshot',
  EXISTS: 'something of that name is there already',
  ACCESS: 'the operating system refuses access',
  NO_SPACE: 'the storage below is full',
  IO: 'reading or writing failed',
  TOO_LARGE: 'larger than what this file system, format or program takes',
  LOCKED: 'another process or export holds the image',
  // How it was called.
  READ_ONLY: 'a write to something that is read-only',
  OUT_OF_RANGE: 'past the end of the image',
  INVALID: 'an argument that makes no sense',
  CLOSED: 'used after close',
  ABORTED: 'given up because somebody asked for it',
  TIMEOUT: 'no answer in time',
  // What a peer sends.
  PROTOCOL: 'the peer breaks the protocol',
  AUTH: 'the peer did not prove who it is',
  LIMIT: 'a limit on connections, sessions or memory is reached',
  DISCONNECTED: 'the peer went away',
  // What the program cannot do here.
  UNAVAILABLE: 'something this needs is not on this machine',
  USAGE: 'the command line is wrong',
  INTERNAL: 'a bug in this program',
} as const;

export type ErrorCode = keyof typeof ERROR_CODES;

/** Where an error is: any of these may be known. */
export interface ErrorContext {
  /** File, URL or device, as the user named it where possible. */
  path?: string | undefined;
  /** Field of a structure, named as in its struct table. */
  field?: string | undefined;
  /** Byte offset in `path`. */
  offset?: number | undefined;
  /** What to do about it: one sentence, shown on a line of its own. */
  help?: string | undefined;
  cause?: unknown;
}

export class LunetteError extends Error {
  readonly code: ErrorCode;
  /** Set by whoever knows it; a caller further up may fill in a path that was not known below. */
  path: string | undefined;
  readonly field: string | undefined;
  readonly offset: number | undefined;
  help: string | undefined;

  constructor(code: ErrorCode, message: string, context: ErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.name = new.target.name;
    this.code = code;
    this.path = context.path;
    this.field = context.field;
    this.offset = context.offset;
    this.help = context.help;
  }
}

/** What an image file holds is wrong or not supported. */
export class ImageError extends LunetteError {}

/** A file, device or network storage fails. */
export class StorageError extends LunetteError {
  /** The operating system's name for it (ENOSPC, EIO), where there is one. */
  errno: string | undefined;
}

/** A peer breaks a protocol, or a limit on peers is reached. */
export class ProtocolError extends LunetteError {}

/** Something of the addon or of the machine is missing. */
export class NativeError extends LunetteError {}

/** The command line or a configuration file is wrong. */
export class UsageError extends LunetteError {}

const ERRNO_CODES: Readonly<Record<string, ErrorCode>> = {
  ENOENT: 'NOT_FOUND',
  ENOTDIR: 'NOT_FOUND',
  ENXIO: 'NOT_FOUND',
  ENODEV: 'NOT_FOUND',
  EEXIST: 'EXISTS',
  EACCES: 'ACCESS',
  EPERM: 'ACCESS',
  ENOSPC: 'NO_SPACE',
  EDQUOT: 'NO_SPACE',
  EIO: 'IO',
  EFBIG: 'TOO_LARGE',
  EROFS: 'READ_ONLY',
  ETXTBSY: 'LOCKED',
  EBUSY: 'LOCKED',
  EINVAL: 'INVALID',
  ETIMEDOUT: 'TIMEOUT',
  ECONNRESET: 'DISCONNECTED',
  EPIPE: 'DISCONNECTED',
};

/** Turns an operating system's error (Node's or the addon's: `.code` is the errno's name) into a StorageError. */
export function fromSystemError(error: unknown, doing: string, context: ErrorContext = {}): LunetteError {
  if (error instanceof LunetteError) {
    error.path ??= context.path;
    return error;
  }
  const errno = errnoOf(error);
  const code = (errno !== undefined ? ERRNO_CODES[errno] : undefined) ?? 'IO';
  const why = error instanceof Error ? error.message : String(error);
  const result = new StorageError(code, `${doing}: ${why}`, { ...context, cause: error });
  result.errno = errno;
  return result;
}

/** The errno's name on an operating system's error; undefined on others. */
export function errnoOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null) return undefined;
  const { code, errno } = error as { code?: unknown; errno?: unknown };
  // Node has no name for a quota that is used up: a full disk to whoever writes.
  if (errno === -constants.errno.EDQUOT) return 'EDQUOT';
  return typeof code === 'string' ? code : undefined;
}

/** The code of any error: INTERNAL for what is not one of ours. */
export function codeOf(error: unknown): ErrorCode {
  if (error instanceof LunetteError) return error.code;
  const errno = errnoOf(error);
  return (errno !== undefined ? ERRNO_CODES[errno] : undefined) ?? 'INTERNAL';
}
