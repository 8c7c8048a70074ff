import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { lunetteArgs } from '../../support/built.ts';
import { run, runOk } from '../../support/process.ts';
import { requirePrograms } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const skip = requirePrograms(['openssl'], 'openssl');

test('a certificate is judged: one of an unknown authority is refused, one that is named is taken; never from TLS to plain', {
  skip,
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const [key, certificate] = [join(folder, 'key.pem'), join(folder, 'cert.pem')];
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
  const kind = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  await runOk('openssl', ['req', ...kind, ...subject, '-keyout', key, '-out', certificate]);
  const bytes = Buffer.alloc(4096, 7);
  const server = createServer({ key: await readFile(key), cert: await readFile(certificate) }, (request, response) => {
    if (request.url === '/away') response.writeHead(302, { location: 'http://localhost:1/disk.raw' }).end();
    else response.writeHead(206, { 'content-range': `bytes 0-4095/4096`, etag: '"a"' }).end(bytes);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `https://localhost:${(server.address() as AddressInfo).port}`;
  const checksum = (address: string, trusted?: string) =>
    run(process.execPath, lunetteArgs('checksum', '-f', 'raw', address), {
      env: { ...process.env, ...(trusted === undefined ? {} : { NODE_EXTRA_CA_CERTS: trusted }) },
    });
  const refused = await checksum(`${url}/disk.raw`);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /certificate is not to be trusted.*\(AUTH\)\nNODE_EXTRA_CA_CERTS=FILE/);
  const wrongName = await checksum(`${url.replace('localhost', '127.0.0.1')}/disk.raw`, certificate);
  assert.match(wrongName.stderr, /certificate is not to be trusted/);
  const local = join(folder, 'disk.raw');
  await writeFile(local, bytes);
  const taken = await checksum(`${url}/disk.raw`, certificate);
  assert.equal(taken.stdout.split(' ')[0], (await checksum(local)).stdout.split(' ')[0], taken.stderr);
  const away = await checksum(`${url}/away`, certificate);
  assert.match(away.stderr, /redirects to http:\/\/localhost:1, which is not encrypted \(DENIED\)/);
});
