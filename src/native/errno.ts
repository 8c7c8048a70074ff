/** Error numbers as native calls give them, and as Node's errors carry them. */

import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';

const { errno } = constants;

/** Negative, as results of native calls are. */
export const EAGAIN = -errno.EAGAIN;
export const EBADMSG = -errno.EBADMSG;
export const EINTR = -errno.EINTR;
export const EINVAL = -errno.EINVAL;
export const ENOTTY = -errno.ENOTTY;
export const ENXIO = -errno.ENXIO;
export const EOPNOTSUPP = -errno.EOPNOTSUPP;
export const ENOSYS = -errno.ENOSYS;
export const EXDEV = -errno.EXDEV;
export const EPERM = -errno.EPERM;

/** True for the results that mean "not on this kernel, file system or device", not "failed". */
export function isUnsupported(result: number): boolean {
  return result === EOPNOTSUPP || result === ENOSYS || result === ENOTTY;
}

/** Numbers that Node has a name for and no message. */
const UNNAMED = new Map(Object.entries(errno).map(([name, number]) => [-number, name]));
const MESSAGES: Readonly<Record<string, string>> = { EDQUOT: 'disk quota exceeded', ESTALE: 'stale file handle' };

function describe(result: number): readonly [code: string, message: string] {
  const known = getSystemErrorMap().get(result);
  if (known !== undefined) return known;
  const name = UNNAMED.get(result);
  return name === undefined ? [`errno ${-result}`, 'unknown error'] : [name, MESSAGES[name] ?? `error ${-result}`];
}

/** The error that Node would throw for this result of a system call: with `code`, `errno` and `syscall`. */
export function systemError(result: number, syscall: string): NodeJS.ErrnoException {
  const [code, message] = describe(result);
  const error: NodeJS.ErrnoException = new Error(`${code}: ${message}, ${syscall}`);
  error.code = code;
  error.errno = result;
  error.syscall = syscall;
  return error;
}
