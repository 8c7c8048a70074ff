import { codeOf, type ErrorCode } from '../../formats/core/errors.ts';

// The errors of the protocol (doc/proto.md, "Error values"): Linux' numbers, whatever the machine.
export const EPERM = 1;
export const EIO = 5;
export const ENOMEM = 12;
export const EINVAL = 22;
export const ENOSPC = 28;
export const EOVERFLOW = 75;
export const ENOTSUP = 95;
export const ESHUTDOWN = 108;

/** The one translation of our errors to those of NBD. */
export const ERRNO_TABLE: Readonly<Record<ErrorCode, number>> = {
  BAD_MAGIC: EIO,
  BAD_HEADER: EIO,
  TRUNCATED: EIO,
  UNSUPPORTED: EINVAL, // ENOTSUP has one meaning only: zeros that are not quick
  CORRUPT: EIO,
  PARENT_MISMATCH: EIO,
  DENIED: EPERM,
  ENCRYPTED: EPERM,
  NOT_FOUND: EIO,
  EXISTS: EIO,
  ACCESS: EPERM,
  NO_SPACE: ENOSPC,
  IO: EIO,
  TOO_LARGE: ENOSPC, // a file that may not grow any further: nothing is wrong with the request
  LOCKED: EPERM,
  READ_ONLY: EPERM,
  OUT_OF_RANGE: EINVAL,
  INVALID: EINVAL,
  CLOSED: ESHUTDOWN,
  ABORTED: EIO,
  TIMEOUT: EIO,
  PROTOCOL: EIO,
  AUTH: EPERM,
  LIMIT: ENOMEM,
  DISCONNECTED: EIO,
  UNAVAILABLE: EIO,
  USAGE: EINVAL,
  INTERNAL: EIO,
};

/** What a client is told of any error. */
export function nbdErrno(error: unknown): number {
  return ERRNO_TABLE[codeOf(error)];
}

/** What a server's error means to us. Unknown ones count as EINVAL, as the protocol says. */
export function codeOfNbdErrno(errno: number): ErrorCode {
  switch (errno) {
    case EPERM:
      return 'READ_ONLY';
    case EIO:
      return 'IO';
    case ENOMEM:
      return 'LIMIT';
    case ENOSPC:
      return 'NO_SPACE';
    case EOVERFLOW:
      return 'TOO_LARGE';
    case ENOTSUP:
      return 'UNSUPPORTED';
    case ESHUTDOWN:
      return 'DISCONNECTED';
    default:
      return 'INVALID';
  }
}
