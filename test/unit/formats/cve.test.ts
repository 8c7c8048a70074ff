/** What made other programs vulnerable, image by image: each is refused, or does no harm. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { ImageHost } from '../../../formats/open.ts';
import { createQcow2 } from '../../../formats/qcow2/create.ts';
import { EXTENSION, encodeExtensions } from '../../../formats/qcow2/extensions.ts';
import { MemoryStorage } from '../../../formats/storage/memory.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const CLUSTER = 64 * KiB;
const SECRET = 'root:x:0:0';

interface Place {
  readonly directory: string;
  readonly image: string;
  /** A file of the host that no image may reach. */
  readonly secret: string;
  readonly host: ImageHost;
  /** Files that were opened. */
  readonly opened: string[];
}

async function place(t: Cleanup, name: string): Promise<Place> {
  const directory = await temporaryDirectory(t);
  const secret = path.join(await temporaryDirectory(t), 'passwd');
  await writeFile(secret, SECRET.padEnd(1024));
  const opened: string[] = [];
  const { openFileStorage } = await import('../../../formats/storage/file.ts');
  const host = new ImageHost({
    openStorage: (file, options) => {
      opened.push(file);
      return openFileStorage(file, options);
    },
  });
  t.after(() => host.close());
  return { directory, image: path.join(directory, name), secret, host, opened };
}

async function qcow2Bytes(options: Partial<Parameters<typeof createQcow2>[1]> = {}): Promise<Uint8Array> {
  const storage = new MemoryStorage();
  await createQcow2(storage, { size: 4 * MiB, ...options });
  return storage.toBytes();
}

/** An image with one field of its header changed. */
async function changed(at: number, bits: 32 | 64, value: bigint): Promise<Uint8Array> {
  const bytes = await qcow2Bytes();
  const view = new DataView(bytes.buffer);
  if (bits === 32) view.setUint32(at, Number(value));
  else view.setBigUint64(at, value);
  return bytes;
}

/** Bounds of tables that were missing: field by field, with what the file says of them. */
const BOUNDS: readonly (readonly [
  cve: string,
  what: string,
  at: number,
  bits: 32 | 64,
  value: bigint,
  field: string,
])[] = [
  ['CVE-2014-0143', 'an L1 table whose bytes overflow 32 bits', 36, 32, 0x20000001n, 'l1Size'],
  ['CVE-2014-0143', 'a refcount table whose bytes overflow 32 bits', 56, 32, 0x10000n, 'refcountTableClusters'],
  ['CVE-2014-0144', 'clusters of 2^63 bytes', 20, 32, 63n, 'clusterBits'],
  ['CVE-2014-0144', 'a refcount table behind any file', 48, 64, 0x7fffffffffff0000n, 'refcountTableOffset'],
  ['CVE-2014-0145', 'snapshots without end', 60, 32, 0xffffffffn, 'snapshotCount'],
  ['CVE-2014-0146', 'an L1 table smaller than the disk', 24, 64, 1n << 45n, 'l1Size'],
  ['CVE-2014-0147', 'a refcount table of no clusters', 56, 32, 0n, 'refcountTableClusters'],
  ['CVE-2014-0148', 'clusters of one byte', 20, 32, 0n, 'clusterBits'],
  ['CVE-2014-0223', 'a disk whose size overflows', 24, 64, 0xffffffffffffffffn, 'size'],
];

for (const [cve, what, at, bits, value, field] of BOUNDS) {
  test(`${cve}: ${what} is refused before memory is taken for it`, async (t) => {
    const { image, host } = await place(t, 'disk.qcow2');
    await writeFile(image, await changed(at, bits, value));
    const before = process.memoryUsage().arrayBuffers;
    for (const readOnly of [true, false]) {
      await assert.rejects(host.open(image, { readOnly }), { field, path: image });
    }
    assert.ok(process.memoryUsage().arrayBuffers - before < 16 * MiB);
  });
}

test('CVE-2014-0143: a snapshot with an L1 table of gigabytes is refused when it is opened', async (t) => {
  const { image, host } = await place(t, 'disk.qcow2');
  const bytes = new Uint8Array(CLUSTER + (await qcow2Bytes()).length);
  bytes.set(await qcow2Bytes());
  const table = bytes.length - CLUSTER;
  const view = new DataView(bytes.buffer);
  view.setUint32(60, 1);
  view.setBigUint64(64, BigInt(table));
  view.setBigUint64(table, BigInt(3 * CLUSTER));
  view.setUint32(table + 8, 0x7fffffff);
  view.setUint16(table + 12, 1);
  view.setUint32(table + 36, 16);
  bytes[table + 56] = 0x31;
  await writeFile(image, bytes);
  await assert.rejects(host.open(image, { readOnly: true, snapshot: '1' }), {
    code: 'CORRUPT',
    field: 'l1Size',
    offset: table + 8,
  });
});

test('CVE-2014-0222: version 1 of the format is not taken for version 2', async (t) => {
  const { image, host } = await place(t, 'disk.qcow2');
  await writeFile(image, await changed(4, 32, 1n));
  await assert.rejects(host.open(image, { readOnly: true }), { code: 'UNSUPPORTED', field: 'version', offset: 4 });
});

test('CVE-2014-0144: a VDI with blocks without end is refused', async (t) => {
  const { createVdi } = await import('../../../formats/vdi/create.ts');
  const { image, host } = await place(t, 'disk.vdi');
  const storage = new MemoryStorage();
  await createVdi(storage, { size: 4 * MiB });
  const bytes = storage.toBytes();
  new DataView(bytes.buffer).setUint32(384, 0xffffffff, true);
  await writeFile(image, bytes);
  await assert.rejects(host.open(image, { readOnly: true }), {
    code: 'UNSUPPORTED',
    message: /blocks are more than/,
    path: image,
  });
});

test('CVE-2015-5163: a backing file elsewhere on the host is not opened', async (t) => {
  const { image, secret, host, opened } = await place(t, 'disk.qcow2');
  for (const backingFile of [secret, path.relative(path.dirname(image), secret), `file:${secret}`]) {
    await writeFile(image, await qcow2Bytes({ backingFile, backingFormat: 'raw' }));
    await assert.rejects(host.open(image, { readOnly: true }), { code: 'DENIED' });
  }
  assert.ok(!opened.includes(secret));
});

test('CVE-2022-47951, CVE-2024-40767: a VMDK extent elsewhere on the host is not opened', async (t) => {
  const { image, secret, host, opened } = await place(t, 'disk.vmdk');
  await writeFile(
    image,
    `# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n\nRW 2 FLAT "${secret}" 0\n\nddb.adapterType = "ide"\n`,
  );
  await assert.rejects(host.open(image, { readOnly: true }), { code: 'DENIED' });
  assert.ok(!opened.includes(secret));
  const layer = await host.openLayer(image).catch(() => undefined); // to describe it
  await layer?.close();
  assert.ok(!opened.includes(secret));
});

/** An image that names any text as its external data file. */
async function withDataFile(name: string): Promise<Uint8Array> {
  const bytes = await qcow2Bytes();
  const view = new DataView(bytes.buffer);
  view.setUint32(76, view.getUint32(76) | 4);
  bytes.fill(0, view.getUint32(100), 4096);
  bytes.set(encodeExtensions([{ type: EXTENSION.DATA_FILE, data: Buffer.from(name) }]), view.getUint32(100));
  return bytes;
}

test('CVE-2024-32498: an external data file elsewhere on the host is not opened', async (t) => {
  const { image, secret, host, opened } = await place(t, 'disk.qcow2');
  await writeFile(image, await withDataFile(secret));
  for (const readOnly of [true, false]) {
    await assert.rejects(host.open(image, { readOnly }), { code: 'DENIED' });
  }
  assert.ok(!opened.includes(secret));
});

test('CVE-2024-4467: info opens no data file, and one that is a block device description is no file at all', async (t) => {
  const { image, host, opened } = await place(t, 'disk.qcow2');
  const name = 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}';
  await writeFile(image, await withDataFile(name));
  const layer = await host.openLayer(image);
  assert.equal((await layer.describe()).specific?.['data-file'], name);
  await layer.close();
  assert.deepEqual([...new Set(opened)], [image]);
  await assert.rejects(host.open(image, { readOnly: true }), { code: 'UNSUPPORTED', message: /is no file/ });
});

test('CVE-2026-24708: a raw disk that looks like qcow2 stays raw where its format was said', async (t) => {
  const { directory, image, secret, host, opened } = await place(t, 'disk.raw');
  const bytes = await qcow2Bytes({ backingFile: secret, backingFormat: 'raw' });
  await writeFile(image, bytes);
  const raw = await host.open(image, { format: 'raw', readOnly: true });
  assert.equal(raw.size, bytes.length);
  const head = new Uint8Array(512);
  await raw.readv(0, IoVec.of(head));
  assert.deepEqual(head, bytes.slice(0, 512));
  await raw.close();
  const overlay = path.join(directory, 'overlay.qcow2');
  await writeFile(overlay, await qcow2Bytes({ backingFile: 'disk.raw', backingFormat: 'raw' }));
  const over = await host.open(overlay, { readOnly: true });
  assert.deepEqual(
    over.layers.map(({ format }) => format),
    ['qcow2', 'raw'],
  );
  await over.close();
  assert.ok(!opened.includes(secret));
  assert.equal((await readFile(image)).length, bytes.length);
});
