import { open } from 'node:fs/promises';
import { fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import type { Secrets } from '../../formats/driver.ts';

/** Longer than any passphrase: it is not the file that was meant. */
const MAX_SECRET_BYTES = 64 * 1024;
const NEWLINE = 10;

/** The passphrases of an open, one in each file: read when they are needed, once. */
export function secretsOf(paths: readonly string[] | undefined): Secrets {
  let secrets: Promise<readonly Uint8Array[]> | undefined;
  return () => {
    secrets ??= Promise.all((paths ?? []).map(readSecrets)).then((each) => each.flat());
    return secrets;
  };
}

/** Where the passphrase of a target is: a new image gets the first. */
export function targetSecretFiles(options: {
  readonly secretFile?: readonly string[] | undefined;
  readonly targetSecretFile?: string | undefined;
}): readonly string[] | undefined {
  return options.targetSecretFile === undefined ? options.secretFile : [options.targetSecretFile];
}

/**
 * What the passphrase in a file may be: its bytes as they are, as QEMU's secret objects take them. One that ends with a newline may
 * have got that from an editor: it is tried without as well.
 *
 * @throws {LunetteError} NOT_FOUND, ACCESS, INVALID with the file's path
 */
export async function readSecrets(path: string): Promise<Uint8Array[]> {
  const secret = await readSecretFile(path);
  return secret[secret.length - 1] === NEWLINE ? [secret, secret.subarray(0, -1)] : [secret];
}

/** One passphrase: the bytes of a file as they are. */
export async function readSecretFile(path: string): Promise<Uint8Array> {
  try {
    const file = await open(path, 'r');
    try {
      const bytes = new Uint8Array(MAX_SECRET_BYTES + 1);
      let length = 0;
      for (;;) {
        const { bytesRead } = await file.read(bytes, length, bytes.length - length, null);
        length += bytesRead;
        if (bytesRead === 0 || length === bytes.length) break;
      }
      if (length > MAX_SECRET_BYTES) {
        throw new LunetteError('INVALID', `is no passphrase: it has more than ${MAX_SECRET_BYTES} bytes`, { path });
      }
      if (length === 0) throw new LunetteError('INVALID', 'the file with the passphrase is empty', { path });
      return bytes.slice(0, length);
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fromSystemError(error, 'cannot read the passphrase', { path });
  }
}
