/** TLS with programs that we did not write, both ways: pre-shared keys and certificates. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../formats/index.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { makeCertificates } from '../../support/certificates.ts';
import { runLunette } from '../../support/lunette-export.ts';
import { startNbdExport, startNbdkit, startQemuNbd } from '../../support/nbd.ts';
import { run, runOk } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { Random } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const MiB = 1024 * 1024;
const needs = requires.nbdinfo() || requires.qemuNbd() || requires.nbdkit();

/** A disk, and two files of keys for one user. QEMU wants the right one under a name of its choice. */
async function diskAndKeys(t: Cleanup) {
  const folder = await temporaryDirectory(t);
  const disk = join(folder, 'disk.raw');
  await writeFile(disk, new Random(2).bytes(MiB));
  const keys = join(folder, 'keys.psk');
  await writeFile(keys, `alice:${'ab'.repeat(32)}\n`, { mode: 0o600 });
  await runOk('cp', [keys, join(folder, 'keys.psk.copy')]);
  const other = join(folder, 'other.psk');
  await writeFile(other, `alice:${'cd'.repeat(32)}\n`, { mode: 0o600 });
  return { folder, disk, keys, other };
}

async function size(url: string): Promise<string> {
  const { status, stdout } = await run('nbdinfo', ['--size', url]);
  return status === 0 ? stdout.trim() : 'refused';
}

/** Reads all with our client. */
async function readAll(url: string): Promise<Buffer> {
  const image = await NbdImage.open(url, { readOnly: true, reconnectMs: 0 });
  try {
    const bytes = Buffer.alloc(image.size);
    await image.readv(0, IoVec.of(bytes));
    return bytes;
  } finally {
    await image.close();
  }
}

test('libnbd and QEMU with a key: served with the right one, refused with another or none', {
  skip: needs,
}, async (t) => {
  const { folder, disk, keys, other } = await diskAndKeys(t);
  const psk = await startNbdExport(t, disk, {
    args: ['--socket', '', '--read-only', '--tls-psk-file', keys, '--tls-required'],
  });
  const withUser = psk.url.replace('nbds+unix://', 'nbds+unix://alice@');
  assert.equal(await size(`${withUser}&tls-psk-file=${keys}`), String(MiB));
  assert.equal(await size(`${withUser}&tls-psk-file=${other}`), 'refused');
  assert.equal(await size(psk.url.replace('nbds', 'nbd')), 'refused');

  // QEMU looks for keys.psk in a directory.
  const socket = /socket=(.*)/.exec(psk.url)?.[1] as string;
  const object = (dir: string) => `tls-creds-psk,id=tls,endpoint=client,username=alice,dir=${dir}`;
  const node = `driver=nbd,server.type=unix,server.path=${socket},export=disk,tls-creds=tls`;
  const compare = [
    'compare',
    '--object',
    object(folder),
    '--image-opts',
    node,
    `driver=raw,file.driver=file,file.filename=${disk}`,
  ];
  await runOk('qemu-img', compare);
  const wrong = await temporaryDirectory(t);
  await runOk('cp', [other, join(wrong, 'keys.psk')]);
  assert.notEqual((await run('qemu-img', ['info', '--object', object(wrong), '--image-opts', node])).status, 0);

  // Our own client, through the command line, serves the same bytes on.
  const args = ['--socket', '', '--read-only', '-f', 'raw'];
  const copy = await startNbdExport(t, `${psk.url}&tls-psk-file=${keys}`, { args });
  assert.ok(await qemu.compare(copy.url, disk, '-f', 'raw', '-F', 'raw'));
});

test('libnbd and QEMU with a certificate: served, refused without', { skip: needs }, async (t) => {
  const { disk } = await diskAndKeys(t);
  const { folder, caOnly } = await makeCertificates(t);
  const file = (name: string) => join(folder, name);
  const tls = [
    '--tls-cert',
    file('server-cert.pem'),
    '--tls-key',
    file('server-key.pem'),
    '--tls-ca',
    file('ca-cert.pem'),
  ];
  const x509 = await startNbdExport(t, disk, {
    args: ['--listen', '127.0.0.1:0', '--read-only', ...tls, '--tls-required'],
  });
  const url = x509.url.replace('127.0.0.1', 'localhost');
  assert.equal(await size(`${url}?tls-certificates=${folder}`), String(MiB));
  assert.equal(await size(`${url}?tls-certificates=${caOnly}`), 'refused');
  const { port } = new URL(x509.url.replace('nbds:', 'http:'));
  const node = `driver=nbd,server.type=inet,server.host=localhost,server.port=${port},export=disk,tls-creds=tls`;
  const object = (dir: string) => `tls-creds-x509,id=tls,endpoint=client,dir=${dir},verify-peer=on`;
  await runOk('qemu-img', [
    'compare',
    '--object',
    object(folder),
    '--image-opts',
    node,
    `driver=raw,file.driver=file,file.filename=${disk}`,
  ]);
  assert.notEqual((await run('qemu-img', ['info', '--object', object(caOnly), '--image-opts', node])).status, 0);
  const args = ['--socket', '', '--read-only', '-f', 'raw'];
  const again = await startNbdExport(t, `${url}?tls-certificates=${folder}`, { args });
  assert.ok(await qemu.compare(again.url, disk, '-f', 'raw', '-F', 'raw'));
});

test('nbdkit and qemu-nbd with a key: read by our client with the right one, refused with another, in the clear or on a server without TLS', {
  skip: needs,
}, async (t) => {
  const { folder, disk, keys, other } = await diskAndKeys(t);
  const bytes = new Random(2).bytes(MiB);
  const nbdkit = await startNbdkit(t, '--tls=require', `--tls-psk=${keys}`, 'file', disk);
  const object = `tls-creds-psk,id=tls,endpoint=server,dir=${folder}`;
  const qemuNbd = await startQemuNbd(t, disk, 'raw', '-r', '--object', object, '--tls-creds', 'tls');
  for (const { url } of [nbdkit, qemuNbd]) {
    const secure = url.replace('nbd+unix://', 'nbds+unix://alice@');
    assert.ok((await readAll(`${secure}&tls-psk-file=${keys}`)).equals(bytes));
    await assert.rejects(readAll(`${secure}&tls-psk-file=${other}`), { code: 'AUTH' });
    await assert.rejects(readAll(url), { code: 'AUTH', message: /use nbds:/ });
    const info = await runLunette(['info', `${secure}&tls-psk-file=${other}`]);
    assert.equal(info.status, 1);
    assert.match(info.stderr, /TLS.*\(AUTH\)/);
  }
  const clear = await startNbdkit(t, 'file', disk);
  const secure = clear.url.replace('nbd+unix://', 'nbds+unix://alice@');
  await assert.rejects(readAll(`${secure}&tls-psk-file=${keys}`), { code: 'AUTH', message: /does not speak TLS/ });
});

test('nbdkit and qemu-nbd with certificates: their name and their signer must be right, ours is asked for', {
  skip: needs,
}, async (t) => {
  const { disk } = await diskAndKeys(t);
  const bytes = new Random(2).bytes(MiB);
  const { folder, caOnly } = await makeCertificates(t);
  const { folder: stranger } = await makeCertificates(t);
  const nbdkit = await startNbdkit(
    t,
    '--tls=require',
    `--tls-certificates=${folder}`,
    '--tls-verify-peer',
    'file',
    disk,
  );
  const object = `tls-creds-x509,id=tls,endpoint=server,dir=${folder},verify-peer=on`;
  const qemuNbd = await startQemuNbd(t, disk, 'raw', '-r', '--object', object, '--tls-creds', 'tls');
  for (const { url } of [nbdkit, qemuNbd]) {
    const secure = url.replace('nbd+unix://', 'nbds+unix://');
    assert.ok((await readAll(`${secure}&tls-certificates=${folder}`)).equals(bytes));
    await assert.rejects(readAll(`${secure}&tls-certificates=${folder}&tls-hostname=example.org`), { code: 'AUTH' });
    await assert.rejects(readAll(`${secure}&tls-certificates=${stranger}`), { code: 'AUTH' });
    await assert.rejects(readAll(`${secure}&tls-certificates=${caOnly}`), { code: 'AUTH' });
  }
});
