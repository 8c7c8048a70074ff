import { readFile } from 'node:fs/promises';
import { createSecureContext, type SecureContext, type TLSSocket, type TLSSocketOptions } from 'node:tls';
import { fromSystemError, LunetteError } from '../../formats/core/errors.ts';

/** Files that TLS needs, as the user names them. */
export interface TlsFiles {
  /** Certificate (chain) in PEM, and its key. */
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
  /** Certificates of those who may vouch for the other side. On a server: clients must show a certificate that one of them signed. */
  readonly ca?: string | undefined;
  /** Pre-shared keys, one `USER:HEX` a line, as psktool writes them. */
  readonly psk?: string | undefined;
}

/** What was in the files. */
export interface TlsCredentials {
  readonly context: SecureContext;
  readonly verifyPeer: boolean;
  readonly keys: ReadonlyMap<string, Buffer> | undefined;
}

const MAX_KEY_FILE = 1024 * 1024;
/** Pre-shared keys need suites that are made for them; ECDHE keeps old recordings safe when a key gets out. */
export const PSK_CIPHERS =
  'TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256';

/**
 * Reads what TLS needs of a server.
 *
 * @throws {LunetteError} INVALID for files that do not fit together or hold something else; NOT_FOUND, ACCESS
 */
export async function readTls(files: TlsFiles): Promise<TlsCredentials> {
  const { cert, key, ca, psk } = files;
  if ((cert === undefined) !== (key === undefined)) {
    throw new LunetteError('INVALID', 'a certificate and its key go together');
  }
  if (cert === undefined && ca !== undefined) {
    throw new LunetteError('INVALID', 'certificates of clients are checked by a server that has one itself');
  }
  if (cert === undefined && psk === undefined) {
    throw new LunetteError('INVALID', 'TLS needs a certificate with its key, or a file of pre-shared keys');
  }
  const keys = psk === undefined ? undefined : parsePskFile((await read(psk)).toString('utf8'), psk);
  const [certBytes, keyBytes, caBytes] = await Promise.all(
    [cert, key, ca].map((path) => (path === undefined ? undefined : read(path))),
  );
  try {
    const context = createSecureContext({
      minVersion: 'TLSv1.2',
      ...(certBytes === undefined ? {} : { cert: certBytes }),
      ...(keyBytes === undefined ? {} : { key: keyBytes }),
      ...(caBytes === undefined ? {} : { ca: caBytes }),
      ...(keys === undefined ? {} : { ciphers: certBytes === undefined ? PSK_CIPHERS : `${PSK_CIPHERS}:HIGH:!aNULL` }),
    });
    return { context, verifyPeer: ca !== undefined, keys };
  } catch (error) {
    throw new LunetteError('INVALID', `certificate or key cannot be used: ${(error as Error).message}`, {
      path: cert,
      cause: error,
    });
  }
}

/** Options of a TLSSocket on the server's side. */
export function serverTlsOptions({ context, verifyPeer, keys }: TlsCredentials): TLSSocketOptions {
  return {
    isServer: true,
    secureContext: context,
    // With keys of its own kind a client has proved who it is: the certificate is for those who have none.
    requestCert: verifyPeer,
    rejectUnauthorized: verifyPeer,
    ...(keys === undefined
      ? {}
      : { pskCallback: (_socket: TLSSocket, identity: string) => keys.get(identity) ?? null }),
  };
}

/** Why a client that has come through the handshake is refused; undefined when it is not. */
export function refusalOfClient(secure: TLSSocket, { verifyPeer, keys }: TlsCredentials): string | undefined {
  // TLSSocket leaves the judgement of a client's certificate to whoever made it; a pre-shared key needs none.
  if (!verifyPeer || (keys !== undefined && secure.getCipher().name.includes('PSK'))) return undefined;
  const shown = secure.getPeerCertificate();
  const error = (secure as unknown as { ssl: { verifyError(): Error | null } }).ssl.verifyError();
  if (error === null && shown !== undefined && Object.keys(shown).length > 0) return undefined;
  return `the client's certificate is not accepted: ${error?.message ?? 'it shows none'}`;
}

/**
 * Keys by user from the lines of a file of psktool: `USER:HEX`; empty lines and lines with # are passed over.
 *
 * @throws {LunetteError} INVALID with the line's number
 */
export function parsePskFile(text: string, path: string): Map<string, Buffer> {
  const keys = new Map<string, Buffer>();
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const match = /^([^:]+):((?:[0-9a-fA-F]{2}){16,})$/.exec(line.trim());
    if (match === null) {
      throw new LunetteError('INVALID', `line ${i + 1} is no USER:HEX with a key of 16 bytes or more`, {
        path,
        help: `Make one: echo "alice:$(openssl rand -hex 32)" > ${path}`,
      });
    }
    keys.set(match[1] as string, Buffer.from(match[2] as string, 'hex'));
  }
  if (keys.size === 0) throw new LunetteError('INVALID', 'the file holds no key', { path });
  return keys;
}

async function read(path: string): Promise<Buffer> {
  try {
    const bytes = await readFile(path);
    if (bytes.length > MAX_KEY_FILE)
      throw new LunetteError('INVALID', 'this is too long for a key or certificate', { path });
    return bytes;
  } catch (error) {
    throw fromSystemError(error, 'cannot read it', { path });
  }
}
