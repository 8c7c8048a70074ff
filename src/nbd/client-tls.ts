import { access, readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import path from 'node:path';
import type { ConnectionOptions } from 'node:tls';
import { fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import { PSK_CIPHERS, parsePskFile } from './tls.ts';
import type { NbdUri } from './uri.ts';

/** Who a client of a pre-shared key is when the URI does not say. */
const DEFAULT_USER = 'qemu';

/**
 * What a URI says about TLS: a pre-shared key, or a directory with the certificates. With neither, the system's certificates judge the server.
 *
 * @throws {LunetteError} NOT_FOUND, ACCESS, INVALID
 */
export async function clientTlsOptions(uri: NbdUri): Promise<ConnectionOptions> {
  const { address, pskFile, certificates } = uri;
  const host = uri.hostname ?? ('host' in address ? address.host : 'localhost');
  if (pskFile !== undefined) {
    const keys = parsePskFile((await read(pskFile)).toString('utf8'), pskFile);
    const identity = uri.user ?? (keys.size === 1 ? ([...keys.keys()][0] as string) : DEFAULT_USER);
    const psk = keys.get(identity);
    if (psk === undefined) throw new LunetteError('NOT_FOUND', `it has no key of ${identity}`, { path: pskFile });
    return {
      minVersion: 'TLSv1.2',
      ciphers: PSK_CIPHERS,
      pskCallback: () => ({ psk, identity }),
      // Who has the key is who we want; there is no certificate to look at.
      checkServerIdentity: () => undefined,
    };
  }
  const base: ConnectionOptions = {
    minVersion: 'TLSv1.2',
    host, // the name that the certificate must have
    ...(isIP(host) === 0 ? { servername: host } : {}),
  };
  if (certificates === undefined) return base;
  const ca = await read(path.join(certificates, 'ca-cert.pem'));
  const cert = path.join(certificates, 'client-cert.pem');
  const own = await access(cert).then(
    () => true,
    () => false,
  );
  if (!own) return { ...base, ca };
  return { ...base, ca, cert: await read(cert), key: await read(path.join(certificates, 'client-key.pem')) };
}

async function read(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw fromSystemError(error, 'cannot read it', { path: file });
  }
}
