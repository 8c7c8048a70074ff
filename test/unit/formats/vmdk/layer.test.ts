import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { LunetteError } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { ChainImage } from '../../../../formats/image/chain.ts';
import { ABSENT, DATA, ExtentBuffer, ZERO } from '../../../../formats/image/extent.ts';
import { ImageHost } from '../../../../formats/open.ts';
import { raw } from '../../../../formats/raw/raw.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { Storage } from '../../../../formats/storage/storage.ts';
import { createVmdk } from '../../../../formats/vmdk/create.ts';
import { VmdkDescriptor } from '../../../../formats/vmdk/descriptor.ts';
import { vmdk } from '../../../../formats/vmdk/driver.ts';
import { HOSTED_HEADER } from '../../../../formats/vmdk/header.ts';
import { openDisk, openLayer, testContext } from '../../../support/layers.ts';
import { newFile } from '../../../support/new-file.ts';
import { PowerLog } from '../../../support/recording-storage.ts';
import { SlowResizeStorage } from '../../../support/slow-storage.ts';
import { temporaryDirectory } from '../../../support/temporary.ts';
import { type Folder, newDisk, reopenAll } from '../../../support/vmdk-files.ts';

const GRAIN = 64 * 1024;
const filled = (value: number, length = GRAIN) => IoVec.of(new Uint8Array(length).fill(value));

async function sparse(grains: number, options = {}): Promise<MemoryStorage> {
  const folder: Folder = new Map();
  const path = await newDisk(folder, 'disk.vmdk', { size: grains * GRAIN, ...options });
  return folder.get(path) as MemoryStorage;
}

function header(storage: { toBytes(): Uint8Array }) {
  return HOSTED_HEADER.read(new DataView(storage.toBytes().buffer));
}

function descriptor(storage: { toBytes(): Uint8Array }): VmdkDescriptor {
  return new VmdkDescriptor(storage.toBytes().subarray(512, 512 * 21), '/x');
}

/** Entries of the first table, in both copies. */
function entries(storage: { toBytes(): Uint8Array }, count: number): { first: number[]; second: number[] } {
  const view = new DataView(storage.toBytes().buffer);
  const read = (directory: number) => {
    const table = 512 * view.getUint32(directory, true);
    return Array.from({ length: count }, (_, i) => view.getUint32(table + 4 * i, true));
  };
  return {
    first: read(Number(view.getBigUint64(56, true)) * 512),
    second: read(Number(view.getBigUint64(48, true)) * 512),
  };
}

test('the first change of a session gives the disk a new content id, and nothing else of the descriptor changes', async () => {
  const storage = await sparse(4);
  const before = descriptor(storage);
  const disk = await openDisk(vmdk, storage);
  await disk.readv(0, filled(0, 512));
  await disk.flush();
  assert.equal(descriptor(storage).cid('CID'), before.cid('CID'));
  await disk.writev(0, filled(1));
  const after = descriptor(storage);
  assert.notEqual(after.cid('CID'), before.cid('CID'));
  assert.equal(after.get('ddb.longContentID')?.slice(-8), after.get('CID'));
  assert.notEqual(after.get('ddb.uuid.modification'), before.get('ddb.uuid.modification'));
  const keep = (d: VmdkDescriptor) =>
    Buffer.from(d.toBytes())
      .toString()
      .replace(/^(CID|ddb\.longContentID|ddb\.uuid\.modification).*$/gm, '');
  assert.equal(keep(after), keep(before));
  await disk.close();
  assert.equal(descriptor(storage).cid('CID'), after.cid('CID'));
});

test('a CID that points to the long id stays, and the long id changes', async () => {
  const storage = await sparse(1);
  const bytes = storage.toBytes();
  const text = Buffer.from(bytes.subarray(512, 512 * 21))
    .toString('latin1')
    .replace(/CID=\w{8}/, 'CID=fffffffe');
  bytes.set(Buffer.from(text, 'latin1'), 512);
  const changed = new MemoryStorage({ bytes });
  const long = descriptor(changed).get('ddb.longContentID');
  const disk = await openDisk(vmdk, changed);
  await disk.writev(0, filled(1));
  assert.equal(descriptor(changed).get('CID'), 'fffffffe');
  assert.notEqual(descriptor(changed).get('ddb.longContentID'), long);
  await disk.close();
});

test('the header says "not closed properly" while the disk is being written, durably before the first byte', async () => {
  const log = new PowerLog();
  const file = log.file('/memory/disk.vmdk', (await sparse(4)).toBytes());
  const disk = await openDisk(vmdk, file);
  assert.equal(header(file).uncleanShutdown, 0);
  await disk.writev(0, filled(1));
  assert.equal(header(file).uncleanShutdown, 1);
  const dataAt = log.entries.findIndex(
    (entry) => entry.kind === 'change' && entry.change.kind === 'write' && entry.change.bytes.length === GRAIN,
  );
  assert.ok(log.entries.slice(0, dataAt).some((entry) => entry.kind === 'synced'));
  await disk.close();
  assert.equal(header(file).uncleanShutdown, 0);
});

test('a flush is two syncs however many grains there are, one when there are none; both tables are equal after it', async () => {
  const log = new PowerLog();
  const file = log.file('/memory/disk.vmdk', (await sparse(64)).toBytes());
  const disk = await openDisk(vmdk, file);
  for (let i = 0; i < 30; i++) await disk.writev(2 * i * GRAIN, filled(i + 1));
  let syncs = file.syncs;
  await disk.flush();
  assert.equal(file.syncs - syncs, 2);
  const { first, second } = entries(file, 64);
  assert.deepEqual(first, second);
  assert.equal(first.filter((entry) => entry !== 0).length, 30);
  syncs = file.syncs;
  await disk.writev(0, filled(9));
  await disk.flush();
  assert.equal(file.syncs - syncs, 1);
  await disk.close();
});

test('zeroing a grain over a parent marks it; the header gets version 2 and the flag first', async () => {
  const storage = await sparse(4, { parent: { hint: 'base.vmdk', cid: 7 } });
  const base = await openLayer(vmdk, await baseWith(5), { readOnly: true });
  const disk = new ChainImage([await openLayer(vmdk, storage), base]);
  assert.deepEqual([header(storage).version, header(storage).flags], [1, 3]);
  await disk.writeZeroes(GRAIN, GRAIN, false);
  await disk.flush();
  assert.deepEqual([header(storage).version, header(storage).flags], [2, 7]);
  assert.deepEqual(entries(storage, 4), { first: [0, 1, 0, 0], second: [0, 1, 0, 0] });
  const bytes = new Uint8Array(3 * GRAIN);
  await disk.readv(0, IoVec.of(bytes));
  assert.deepEqual([bytes[0], bytes[GRAIN], bytes[2 * GRAIN]], [5, 0, 5]);
  await disk.close();
});

async function baseWith(value: number): Promise<MemoryStorage> {
  const storage = await sparse(4);
  const disk = await openDisk(vmdk, storage);
  await disk.writev(0, filled(value, 4 * GRAIN));
  await disk.close();
  return new MemoryStorage({ bytes: storage.toBytes() });
}

test('an entry of 1 without the flag is corrupt', async () => {
  const storage = await baseWith(5);
  const view = new DataView(storage.toBytes().buffer);
  const table = 512 * view.getUint32(512 * Number(view.getBigUint64(56, true)), true);
  await storage.writev(table, IoVec.of(Uint8Array.of(1, 0, 0, 0)));
  const disk = await openDisk(vmdk, storage, { readOnly: true });
  await assert.rejects(disk.readv(0, filled(0)), { code: 'CORRUPT', field: 'grain table' });
  await disk.close();
});

test('a discarded grain of a base is unallocated, its space punched and used again', async () => {
  const storage = await sparse(8);
  const disk = await openDisk(vmdk, storage);
  await disk.writev(0, filled(1, 3 * GRAIN));
  const place = entries(storage, 3);
  await disk.flush();
  const old = entries(storage, 3).first[1];
  assert.deepEqual(place.first, [0, 0, 0]);
  await disk.discard(GRAIN, GRAIN);
  await disk.flush();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(entries(storage, 3).first[1], 0);
  await disk.writev(5 * GRAIN, filled(4));
  await disk.flush();
  assert.equal(entries(storage, 6).first[5], old);
  await disk.close();
});

test('RDONLY extents are read and refuse writes; NOACCESS and ZERO extents are zeros', async () => {
  const flat = (name: string, value: number) =>
    new MemoryStorage({ path: `/memory/${name}`, bytes: new Uint8Array(8 * 512).fill(value) });
  const files = new Map<string, Storage>([
    ['/memory/a.vmdk', flat('a.vmdk', 1)],
    ['/memory/b.vmdk', flat('b.vmdk', 2)],
    ['/memory/c.vmdk', flat('c.vmdk', 3)],
  ]);
  const text = `version=1\nCID=1234abcd\ncreateType="custom"\nRW 8 FLAT "a.vmdk" 0\nRDONLY 8 FLAT "b.vmdk" 0\nNOACCESS 8 FLAT "c.vmdk" 0\nRW 8 ZERO\n`;
  const storage = new MemoryStorage({ path: '/memory/disk.vmdk', bytes: Buffer.from(text) });
  const disk = await openDisk(vmdk, storage, { context: testContext({ files }) });
  const bytes = new Uint8Array(disk.size);
  await disk.readv(0, IoVec.of(bytes));
  assert.deepEqual([bytes[0], bytes[4096], bytes[8192], bytes[12288]], [1, 2, 0, 0]);
  await disk.writev(0, filled(9, 4096));
  await assert.rejects(disk.writev(4096, filled(9, 512)), { code: 'READ_ONLY', path: '/memory/b.vmdk' });
  await assert.rejects(disk.writev(8192, filled(9, 512)), { code: 'READ_ONLY' });
  await assert.rejects(disk.writev(12288, filled(9, 512)), { code: 'READ_ONLY' });
  await disk.writeZeroes(12288, 4096, true);
  const out = new ExtentBuffer();
  const count = disk.layers[0]!.tryMap(0, disk.size, out);
  assert.deepEqual([...out.kinds.subarray(0, count)], [DATA, DATA, ZERO]);
  await disk.close();
});

test('flat disks offer discards only where all their files can', async () => {
  for (const can of [true, false]) {
    const parts = ['a.vmdk', 'b.vmdk'].map((name) => {
      const part = new MemoryStorage({ path: `/memory/${name}`, bytes: new Uint8Array(8 * 512) });
      if (name === 'b.vmdk') Object.defineProperty(part, 'discards', { value: can });
      return [part.path, part] as const;
    });
    const text = `version=1\nCID=1234abcd\ncreateType="custom"\nRW 8 FLAT "a.vmdk" 0\nRW 8 FLAT "b.vmdk" 0\nRW 8 ZERO\n`;
    const storage = new MemoryStorage({ path: '/memory/disk.vmdk', bytes: Buffer.from(text) });
    const disk = await openDisk(vmdk, storage, { context: testContext({ files: new Map<string, Storage>(parts) }) });
    assert.deepEqual(disk.limits, { allocationUnit: 1, zeroUnit: can ? 1 : 0, discardUnit: can ? 512 : 0 });
    await disk.close();
  }
});

test('a discard of sparse and flat extents is never an error; what a flat one cannot give back stays, and is said', async () => {
  const size = 2 * GRAIN;
  const thin = await sparse(2);
  const flat = new MemoryStorage({ path: '/memory/flat.vmdk', bytes: new Uint8Array(size).fill(2) });
  Object.defineProperty(flat, 'discards', { value: false });
  flat.writeZeroes = async () => false;
  const files = new Map<string, Storage>([
    ['/memory/thin.vmdk', thin],
    ['/memory/flat.vmdk', flat],
  ]);
  const text = `version=1\nCID=1234abcd\ncreateType="custom"\nRW ${size / 512} SPARSE "thin.vmdk"\nRW ${size / 512} FLAT "flat.vmdk" 0\n`;
  const storage = new MemoryStorage({ path: '/memory/disk.vmdk', bytes: Buffer.from(text) });
  const disk = await openDisk(vmdk, storage, { context: testContext({ files }) });
  await disk.writev(0, filled(1, size));
  assert.equal(disk.limits.discardUnit, GRAIN);
  const seen = async (): Promise<number[]> => {
    const bytes = new Uint8Array(disk.size);
    await disk.readv(0, IoVec.of(bytes));
    return Array.from({ length: 4 }, (_, i) => {
      const grain = bytes.subarray(i * GRAIN, (i + 1) * GRAIN);
      assert.ok(grain.every((byte) => byte === grain[0]));
      return grain[0] as number;
    });
  };
  // Over the border between them.
  assert.equal(await disk.discard(GRAIN, 2 * GRAIN), false);
  assert.deepEqual(await seen(), [1, 0, 2, 2]);
  assert.equal(await disk.discard(3 * GRAIN, GRAIN), false);
  assert.equal(await disk.discard(0, GRAIN), true);
  assert.deepEqual(await seen(), [0, 0, 2, 2]);
  await disk.writeZeroes(GRAIN, 2 * GRAIN, true);
  assert.deepEqual(await seen(), [0, 0, 0, 2]);
  await disk.close();
});

test('flat extents may be parts of one file, which is open once; sparse ones may not', async () => {
  const bytes = new Uint8Array(16 * 512).fill(1, 0, 4096).fill(2, 4096);
  const file = new MemoryStorage({ path: '/memory/a.vmdk', bytes });
  let opens = 0;
  const context = {
    ...testContext(),
    openReferenced: async () => {
      opens++;
      return file;
    },
  };
  const text = (type: string) =>
    Buffer.from(`version=1\nCID=1\ncreateType="custom"\nRDONLY 8 ${type} "a.vmdk" 8\nRW 8 ${type} "a.vmdk" 0\n`);
  const disk = await openDisk(vmdk, new MemoryStorage({ bytes: text('FLAT') }), { context });
  const read = new Uint8Array(disk.size);
  await disk.readv(0, IoVec.of(read));
  assert.deepEqual([opens, read[0], read[4096]], [1, 2, 1]);
  await disk.writev(4096, filled(7, 512));
  await assert.rejects(disk.writev(0, filled(7, 512)), { code: 'READ_ONLY' });
  await disk.close();
  await assert.rejects(openLayer(vmdk, new MemoryStorage({ bytes: text('SPARSE') }), { context }), {
    code: 'BAD_HEADER',
    message: /line 4/,
  });
});

test('an embedded extent is read whatever name the descriptor gives it', async () => {
  const bytes = (await baseWith(6)).toBytes();
  const disk = await openDisk(vmdk, new MemoryStorage({ path: '/elsewhere/renamed.vmdk', bytes }));
  const read = new Uint8Array(1);
  await disk.readv(0, IoVec.of(read));
  assert.equal(read[0], 6);
  await disk.close();
});

test('an extent without its descriptor is read only', async () => {
  const folder: Folder = new Map();
  await newDisk(folder, 'disk.vmdk', { size: 4 * GRAIN, type: 'twoGbMaxExtentSparse' });
  const part = folder.get('/memory/disk-s001.vmdk') as MemoryStorage;
  const layer = await openLayer(vmdk, part, { readOnly: true });
  assert.equal(layer.size, 4 * GRAIN);
  const out = new ExtentBuffer();
  await layer.map(0, layer.size, out);
  assert.equal(out.kinds[0], ABSENT);
  await layer.close();
  reopenAll(folder);
  await assert.rejects(openLayer(vmdk, folder.get('/memory/disk-s001.vmdk') as Storage), { code: 'UNSUPPORTED' });
});

for (const type of ['fullDevice', 'partitionedDevice', 'vmfsRaw', 'vmfsRDM', 'vmfsPassthroughRawDeviceMap']) {
  test(`a disk of type ${type} is described and not opened`, async () => {
    const bytes = Buffer.from(`version=1\nCID=1\ncreateType="${type}"\nRW 8 FLAT "/dev/sda" 0\n`);
    await assert.rejects(openLayer(vmdk, new MemoryStorage({ bytes }), { readOnly: true }), {
      code: 'UNSUPPORTED',
      field: 'createType',
    });
    const layer = await openLayer(vmdk, new MemoryStorage({ bytes }), { readOnly: true, metadataOnly: true });
    const info = await layer.describe();
    assert.equal(info.specific?.['create-type'], type);
    assert.equal(info.virtualSize, 4096);
    await layer.close();
  });
}

test('a disk whose changes are tracked is not written behind the back of the tracker', async () => {
  const text = 'version=3\nCID=1\ncreateType="vmfs"\nRW 8 VMFS "a.vmdk"\nchangeTrackPath="a-ctk.vmdk"\n';
  const files = () =>
    new Map([['/memory/a.vmdk', new MemoryStorage({ path: '/memory/a.vmdk', bytes: new Uint8Array(4096) })]]);
  const open = (options: object) =>
    openLayer(vmdk, new MemoryStorage({ bytes: Buffer.from(text) }), {
      context: testContext({ files: files() }),
      ...options,
    });
  await assert.rejects(open({}), { code: 'UNSUPPORTED', field: 'changeTrackPath' });
  await (await open({ readOnly: true })).close();
  await (await open({ force: true })).close();
});

test('a flat file that is shorter than its extent is refused', async () => {
  const files = new Map([
    ['/memory/a.vmdk', new MemoryStorage({ path: '/memory/a.vmdk', bytes: new Uint8Array(4095) })],
  ]);
  const bytes = Buffer.from('version=1\nCID=1\ncreateType="vmfs"\nRW 8 VMFS "a.vmdk"\n');
  await assert.rejects(openLayer(vmdk, new MemoryStorage({ bytes }), { context: testContext({ files }) }), {
    code: 'TRUNCATED',
    message: /line 4/,
  });
});

test('extents and parents outside the image’s folder are refused before anything is opened', async (t) => {
  const folder = await temporaryDirectory(t);
  const own = join(folder, 'vm');
  await mkdir(own);
  await writeFile(join(folder, 'secret'), new Uint8Array(4096));
  await symlink(join(folder, 'secret'), join(own, 'link.vmdk'));
  const host = new ImageHost({ drivers: [vmdk, raw] });
  t.after(() => host.close());
  const path = join(own, 'disk.vmdk');
  for (const name of ['../secret', join(folder, 'secret'), 'link.vmdk', '/dev/zero', '/etc/hostname']) {
    await writeFile(path, `version=1\nCID=1\ncreateType="monolithicFlat"\nRW 1 FLAT "${name}" 0\n`);
    await assert.rejects(host.open(path, { readOnly: true }), { code: 'DENIED', path });
    await writeFile(
      path,
      `version=1\nCID=1\nparentCID=00000001\nparentFileNameHint="${name}"\ncreateType="custom"\nRW 1 ZERO\n`,
    );
    await assert.rejects(host.open(path, { readOnly: true }), { code: 'DENIED', path });
  }
  await writeFile(
    path,
    `version=1\nCID=00000001\nparentCID=00000001\nparentFileNameHint="disk.vmdk"\ncreateType="custom"\nRW 1 ZERO\n`,
  );
  await assert.rejects(host.open(path, { readOnly: true }), { code: 'CORRUPT', message: /comes back/ });
});

test('a pipe or a folder in the place of an extent or a parent is refused, and never waited for', async (t) => {
  const folder = await temporaryDirectory(t);
  execFileSync('mkfifo', [join(folder, 'pipe')]);
  await mkdir(join(folder, 'folder'));
  const host = new ImageHost({ drivers: [vmdk, raw] });
  t.after(() => host.close());
  const path = join(folder, 'disk.vmdk');
  for (const name of ['pipe', 'folder']) {
    for (const text of [
      `createType="monolithicFlat"\nRW 1 FLAT "${name}" 0\n`,
      `createType="twoGbMaxExtentSparse"\nRW 1 SPARSE "${name}"\n`,
      `parentCID=00000001\nparentFileNameHint="${name}"\ncreateType="custom"\nRW 1 ZERO\n`,
    ]) {
      await writeFile(path, `version=1\nCID=1\n${text}`);
      for (const readOnly of text.startsWith('parent') ? [true] : [true, false]) {
        await assert.rejects(host.open(path, { readOnly }), (error: LunetteError) => {
          assert.equal(error instanceof LunetteError && error.code !== 'INTERNAL', true, String(error));
          assert.match(`${error.path} ${error.message}`, new RegExp(name));
          return true;
        });
      }
    }
  }
});

test('no sparse extent goes past 2 TiB: not when it is made, and not when it is written', async (t) => {
  for (const type of ['monolithicSparse', 'vmfsSparse'] as const) {
    const storage = new MemoryStorage();
    await assert.rejects(createVmdk(storage, { size: 2 ** 41, type, createFile: async () => storage }), {
      code: 'TOO_LARGE',
      path: storage.path,
      help: /twoGbMaxExtentSparse/,
    });
  }
  const path = join(await temporaryDirectory(t), 'long.vmdk');
  const file = await newFile(path);
  await createVmdk(file, { size: 2 ** 30 });
  await file.close();
  await truncate(path, 2 ** 41 - GRAIN); // a hole: what is written comes behind it, where there is room for one grain
  const image = await new ImageHost({ drivers: [vmdk, raw] }).open(path);
  await image.writev(0, filled(1));
  await assert.rejects(image.writev(GRAIN, filled(2)), { code: 'NO_SPACE', path, message: /2 TiB/ });
  await image.close();
});

test('a full disk fails the write, and writing goes on when there is room again', async () => {
  const storage = await sparse(8);
  const disk = await openDisk(vmdk, storage);
  await disk.writev(0, IoVec.of(new Uint8Array(65536).fill(1)));
  storage.maxSize = storage.size;
  await assert.rejects(disk.writev(65536, IoVec.of(new Uint8Array(65536).fill(2))), { code: 'NO_SPACE' });
  storage.maxSize = Number.MAX_SAFE_INTEGER;
  await disk.writev(2 * 65536, IoVec.of(new Uint8Array(65536).fill(3)));
  await disk.flush();
  const bytes = new Uint8Array(3 * 65536);
  await disk.readv(0, IoVec.of(bytes));
  assert.deepEqual([bytes[0], bytes[65536], bytes[131072]], [1, 0, 3]);
  await disk.close();
});

test('what is written while a flush makes the file longer is not cut off by that', async () => {
  const storage = new SlowResizeStorage({ bytes: (await sparse(64)).toBytes() });
  const disk = await openDisk(vmdk, storage);
  await disk.writev(0, filled(1, 512));
  const flushing = disk.flush();
  const writing: Promise<void>[] = [];
  for (let i = 1; i < 20; i++) {
    await new Promise((resolve) => setImmediate(resolve));
    writing.push(disk.writev(i * GRAIN, filled(i + 1)));
  }
  await Promise.all([flushing, ...writing]);
  const bytes = new Uint8Array(20 * GRAIN);
  await disk.readv(0, IoVec.of(bytes));
  for (let i = 1; i < 20; i++) assert.equal(bytes[i * GRAIN], i + 1);
  await disk.close();
});
