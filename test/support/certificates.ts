/** Certificates for tests, made by openssl. */

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runOk } from './process.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

const CURVE = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];

/**
 * A directory with what libnbd, nbdkit and QEMU look for in one: ca-cert.pem, and for localhost server-cert.pem, server-key.pem,
 * client-cert.pem and client-key.pem; and `ca-only`, a directory that holds the first alone.
 */
export async function makeCertificates(t: Cleanup): Promise<{ folder: string; caOnly: string }> {
  const folder = await temporaryDirectory(t);
  const openssl = (...args: string[]) => runOk('openssl', args, { cwd: folder });
  const ca = ['-days', '2', '-subj', '/CN=CA', '-keyout', 'ca-key.pem', '-out', 'ca-cert.pem'];
  await openssl('req', '-x509', ...CURVE, ...ca);
  await writeFile(join(folder, 'san'), 'subjectAltName=DNS:localhost,IP:127.0.0.1\n');
  for (const name of ['server', 'client']) {
    const [key, csr, cert] = [`${name}-key.pem`, `${name}.csr`, `${name}-cert.pem`];
    await openssl('req', ...CURVE, '-subj', '/CN=localhost', '-keyout', key, '-out', csr);
    const by = ['-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial'];
    await openssl('x509', '-req', '-in', csr, ...by, '-days', '2', '-extfile', 'san', '-out', cert);
  }
  const caOnly = await temporaryDirectory(t);
  await runOk('cp', [join(folder, 'ca-cert.pem'), caOnly]);
  return { folder, caOnly };
}
