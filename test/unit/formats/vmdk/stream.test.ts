import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inflateSync } from 'node:zlib';
import { IoVec } from '../../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../../formats/core/units.ts';
import { ChainImage } from '../../../../formats/image/chain.ts';
import { RawLayer } from '../../../../formats/raw/raw.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { checkVmdk } from '../../../../formats/vmdk/check.ts';
import { vmdk } from '../../../../formats/vmdk/driver.ts';
import { HOSTED_HEADER } from '../../../../formats/vmdk/header.ts';
import { type StreamOptions, writeStreamOptimized } from '../../../../formats/vmdk/stream-writer.ts';
import { openDisk, openLayer, testContext } from '../../../support/layers.ts';
import { type Random, randomFor } from '../../../support/random.ts';

const GRAIN = 64 * KiB;

/** A disk with data, zeros and holes. */
function content(random: Random, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  for (let i = 0; i < 6; i++) {
    const at = random.below(size);
    const length = Math.min(size - at, random.pick([1, 5000, 200_000, 2 * MiB]));
    if (random.chance(0.5)) random.fill(bytes.subarray(at, at + length));
    else bytes.fill(i + 1, at, at + length);
  }
  return bytes;
}

async function stream(bytes: Uint8Array, options: StreamOptions = {}): Promise<Uint8Array> {
  const target = new MemoryStorage({ path: '/memory/disk.vmdk' });
  const source = new ChainImage([new RawLayer(new MemoryStorage({ bytes }), true)]);
  await writeStreamOptimized(source, target, options);
  await source.close();
  return target.toBytes();
}

async function readBack(bytes: Uint8Array): Promise<Uint8Array> {
  const disk = await openDisk(vmdk, new MemoryStorage({ bytes }), { readOnly: true });
  const all = new Uint8Array(disk.size);
  await disk.readv(0, IoVec.of(all));
  await disk.close();
  return all;
}

interface Item {
  readonly at: number;
  readonly kind: 'grain' | 'table' | 'directory' | 'footer' | 'end';
  readonly lba: number;
  readonly data: Uint8Array;
}

/** Reads a stream from front to back, as an importer does that cannot seek. */
function walk(bytes: Uint8Array): Item[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const items: Item[] = [];
  for (let at = 128 * 512; ; ) {
    const value = Number(view.getBigUint64(at, true));
    const size = view.getUint32(at + 8, true);
    if (size > 0) {
      items.push({ at, kind: 'grain', lba: value, data: inflateSync(bytes.subarray(at + 12, at + 12 + size)) });
      at += Math.ceil((12 + size) / 512) * 512;
      continue;
    }
    const type = view.getUint32(at + 12, true);
    const data = bytes.subarray(at + 512, at + 512 + 512 * value);
    items.push({ at, kind: (['end', 'table', 'directory', 'footer'] as const)[type] ?? 'end', lba: -1, data });
    at += 512 + 512 * value;
    if (type === 0) {
      assert.equal(at, bytes.length, 'something follows the end marker');
      return items;
    }
  }
}

test('a stream reads back, by directory and from front to back, whatever is in the disk', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 6; round++) {
    const size = random.pick([512, GRAIN, 3 * MiB + 512 * 7, 40 * MiB, 70 * MiB + 512]);
    const model = content(random, size);
    const bytes = await stream(model);
    assert.equal(Buffer.compare(await readBack(bytes), model), 0);
    const disk = new Uint8Array(size);
    const items = walk(bytes);
    const grains = items.filter((item) => item.kind === 'grain');
    for (const { lba, data } of grains) {
      assert.equal(data.length, GRAIN);
      disk.set(data.subarray(0, Math.min(GRAIN, size - lba * 512)), lba * 512);
    }
    assert.equal(Buffer.compare(disk, model), 0);
    const lbas = grains.map(({ lba }) => lba);
    assert.deepEqual(
      lbas,
      [...lbas].sort((a, b) => a - b),
      'grains ascend',
    );
    assert.deepEqual(
      items.slice(-3).map(({ kind }) => kind),
      ['directory', 'footer', 'end'],
    );
    const found = await checkVmdk(new MemoryStorage({ bytes }), { context: testContext() });
    assert.deepEqual([found.corruptions, found.leaks, found.compressedClusters], [0, 0, grains.length]);
  }
});

test('header and footer are as VMware writes them', async () => {
  const bytes = await stream(new Uint8Array(MiB).fill(1));
  const header = HOSTED_HEADER.read(new DataView(bytes.buffer));
  assert.deepEqual([header.version, header.flags, header.compressAlgorithm, header.overHead], [3, 0x30001, 1, 128]);
  assert.equal(header.gdOffset, Number.POSITIVE_INFINITY);
  const footer = HOSTED_HEADER.read(new DataView(bytes.buffer), bytes.length - 1024);
  const directory = walk(bytes).find(({ kind }) => kind === 'directory');
  assert.equal(footer.gdOffset * 512, (directory?.at ?? 0) + 512);
  const text = Buffer.from(bytes.subarray(512, 512 * 21)).toString();
  assert.match(text, /createType="streamOptimized"/);
  const id = /ddb\.longContentID = "([0-9a-f]{32})"/.exec(text)?.[1] ?? '';
  assert.match(text, new RegExp(`^CID=${id.slice(-8)}$`, 'm'));
  assert.match(text, /ddb\.adapterType = "lsilogic"/);
  assert.match(text, /ddb\.toolsVersion = "2147483647"/);
});

test('the same disk gives the same bytes, another disk another content id', async (t) => {
  const model = content(randomFor(t), 5 * MiB);
  const first = await stream(model);
  assert.deepEqual(await stream(model), first);
  model[4 * MiB] = (model[4 * MiB] as number) ^ 1;
  const cid = (bytes: Uint8Array) => /CID=(\w+)/.exec(Buffer.from(bytes.subarray(512, 2048)).toString())?.[1];
  assert.notEqual(cid(await stream(model)), cid(first));
});

test('a footer is found behind padding, and a stream that was cut has none', async (t) => {
  const model = content(randomFor(t), 3 * MiB);
  const bytes = await stream(model);
  const longer = Buffer.concat([bytes, new Uint8Array(5000)]);
  assert.equal(Buffer.compare(await readBack(longer), model), 0);
  const cut = new MemoryStorage({ bytes: bytes.subarray(0, bytes.length - 1024) });
  await assert.rejects(openLayer(vmdk, cut, { readOnly: true }), { code: 'TRUNCATED', field: 'gdOffset' });
});

test('a stream whose grains have no marker but their size is read too', async () => {
  // Header with its directory in front: sector 1 directory, 2 to 5 table, 8 the grain.
  const { deflateSync } = await import('node:zlib');
  const packed = deflateSync(new Uint8Array(GRAIN).fill(0x5a));
  const bytes = new Uint8Array(8 * 512 + Math.ceil((4 + packed.length) / 512) * 512);
  const view = new DataView(bytes.buffer);
  HOSTED_HEADER.write(view, {
    magic: 0x564d444b,
    version: 3,
    flags: 0x10000,
    capacity: 128,
    grainSize: 128,
    numGTEsPerGT: 512,
    gdOffset: 1,
    compressAlgorithm: 1,
  });
  view.setUint32(512, 2, true);
  view.setUint32(1024, 8, true);
  view.setUint32(8 * 512, packed.length, true);
  bytes.set(packed, 8 * 512 + 4);
  assert.ok((await readBack(bytes)).every((byte) => byte === 0x5a));
});

test('a grain whose marker is of another place, or whose data are damaged, is corrupt', async () => {
  const bytes = await stream(new Uint8Array(3 * GRAIN).fill(7));
  const [first] = walk(bytes);
  const at = first?.at ?? 0;
  for (const damage of [
    (copy: Uint8Array) => copy.fill(1, at, at + 1),
    (copy: Uint8Array) => copy.fill(0xff, at + 20, at + 40),
    (copy: Uint8Array) => copy.fill(0xff, at + 8, at + 12),
  ]) {
    const copy = bytes.slice();
    damage(copy);
    await assert.rejects(readBack(copy), { code: 'CORRUPT' });
  }
});

test('a stream is not opened for writing', async () => {
  const bytes = await stream(new Uint8Array(MiB).fill(7));
  await assert.rejects(openLayer(vmdk, new MemoryStorage({ bytes })), { code: 'READ_ONLY' });
});
