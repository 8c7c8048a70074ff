import { type ErrorCode, errnoOf, LunetteError, StorageError } from '../../formats/core/errors.ts';

/** A failure that may be over when the same is asked again. */
export class PassingFailure extends StorageError {
  /** When the server wants to be asked again, milliseconds from now. */
  afterMs: number | undefined;
}

const CERTIFICATE = /CERT|ISSUER|ALTNAME|SELF_SIGNED|LEAF_SIGNATURE/;

/** What a request that got no answer means. */
export function connectionFailure(error: unknown, path: string): LunetteError {
  if (error instanceof LunetteError) return error;
  const errno = errnoOf(error) ?? '';
  const why = error instanceof Error && error.message !== '' ? error.message : errno;
  if (CERTIFICATE.test(errno)) {
    return new StorageError('AUTH', `the server's certificate is not to be trusted: ${why}`, {
      path,
      cause: error,
      help: 'NODE_EXTRA_CA_CERTS=FILE names the certificates of further authorities.',
    });
  }
  if (errno.startsWith('ERR_SSL') || errno === 'EPROTO') {
    return new StorageError('PROTOCOL', `no TLS connection: ${why}`, { path, cause: error });
  }
  if (errno === 'ENOTFOUND') {
    return new StorageError('NOT_FOUND', 'there is no host of that name', { path, cause: error });
  }
  const code: ErrorCode = errno === 'ETIMEDOUT' ? 'TIMEOUT' : 'DISCONNECTED';
  return new PassingFailure(code, `the server cannot be reached: ${why}`, { path, cause: error });
}

/** What a status means that is no success. */
export function statusFailure(status: number, path: string, retryAfter: string | undefined): LunetteError {
  const context = { path };
  switch (status) {
    case 401:
    case 407:
      return new StorageError('AUTH', 'the server wants to know who is asking (status 401)', {
        ...context,
        help: 'Put the login into ~/.netrc, or a file that $NETRC names: machine HOST login USER password SECRET',
      });
    case 403:
      return new StorageError('ACCESS', 'the server gives no access to it (status 403)', context);
    case 404:
    case 410:
      return new StorageError('NOT_FOUND', `there is no such file on the server (status ${status})`, context);
    case 408:
    case 429:
    case 500:
    case 502:
    case 503:
    case 504: {
      const failure = new PassingFailure('IO', `the server has trouble (status ${status})`, context);
      const seconds = Number(retryAfter);
      if (retryAfter !== undefined && Number.isFinite(seconds) && seconds >= 0) failure.afterMs = seconds * 1000;
      return failure;
    }
    default:
      return new StorageError('IO', `the server answers with status ${status}`, context);
  }
}
