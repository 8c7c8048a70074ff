import { open } from 'node:fs/promises';
import { fromSystemError, LunetteError } from '../../formats/core/errors.ts';

/** RFC 7143 section 9.2.1: a CHAP secret without IPsec has 96 bits of randomness or more. */
const MIN_SECRET_BYTES = 12;
/** What Windows' initiator takes at most. */
const WINDOWS_SECRET_BYTES = 16;
const MAX_SECRET_BYTES = 255;

/**
 * Reads a CHAP secret from a file: its first line, without the line's end.
 *
 * @param warn is told about what is allowed but unwise
 * @throws {LunetteError} INVALID for a secret that is too short or too long; NOT_FOUND, ACCESS
 */
export async function readSecret(path: string, warn: (text: string) => void): Promise<string> {
  const { text, mode } = await readFirst(path);
  const secret = text.replace(/\r?\n[\s\S]*$/, '');
  const length = Buffer.byteLength(secret);
  if (length < MIN_SECRET_BYTES || length > MAX_SECRET_BYTES) {
    throw new LunetteError(
      'INVALID',
      `a CHAP secret has ${MIN_SECRET_BYTES} to ${MAX_SECRET_BYTES} bytes, this one has ${length}`,
      {
        path,
        help: `Shorter ones are guessed from one recorded login. Windows takes ${MIN_SECRET_BYTES} to ${WINDOWS_SECRET_BYTES}: openssl rand -hex 8 > ${path}`,
      },
    );
  }
  if (length > WINDOWS_SECRET_BYTES) {
    warn(`${path}: the secret has ${length} bytes; Windows initiators take at most ${WINDOWS_SECRET_BYTES}`);
  }
  if ((mode & 0o077) !== 0) {
    const shown = (mode & 0o777).toString(8);
    warn(`${path}: other users can get at the secret (mode ${shown}); chmod 600 ${path}`);
  }
  return secret;
}

async function readFirst(path: string): Promise<{ text: string; mode: number }> {
  try {
    const file = await open(path, 'r');
    try {
      const { mode } = await file.stat();
      // More than the longest secret is as good as a file that is no secret at all.
      const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(MAX_SECRET_BYTES + 2), position: null });
      return { text: buffer.toString('utf8', 0, bytesRead), mode };
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fromSystemError(error, 'cannot read the secret', { path });
  }
}
