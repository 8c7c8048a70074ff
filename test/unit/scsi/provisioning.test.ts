import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LunetteError } from '../../../formats/core/errors.ts';
import { IoVec } from '../../../formats/core/iov.ts';
import { ChainImage } from '../../../formats/image/chain.ts';
import { RawLayer } from '../../../formats/raw/raw.ts';
import { MemoryStorage } from '../../../formats/storage/memory.ts';
import { ClusterLayer } from '../../support/cluster-layer.ts';
import { blockCdb, cdb, makeBench, memoryImage, unmapList } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const INVALID_FIELD = 0x05_24_00;
const CLUSTER = 65536;
const CLUSTER_BLOCKS = CLUSTER / 512;

async function filled(options: { clusterSize?: number } = {}) {
  const image = new SpyImage(memoryImage(options));
  const bench = await makeBench({ image });
  await bench.initiator.good(blockCdb(0x8a, 0, 2048), { out: new Uint8Array(1024 * 1024).fill(0xaa) });
  image.log.length = 0;
  return { ...bench, image };
}

test('UNMAP discards whole units, and what it covers reads as zeros, also parts of units', async () => {
  const { initiator, image } = await filled({ clusterSize: CLUSTER });
  const list = unmapList([100, 300]);
  await initiator.good(cdb.unmap(list.length), { out: list });
  assert.deepEqual(image.log, [
    `discard ${CLUSTER} ${2 * CLUSTER}`,
    `zero ${100 * 512} ${28 * 512}`,
    `zero ${3 * CLUSTER} ${16 * 512}`,
  ]);
  const data = await initiator.good(blockCdb(0x88, 0, 2048));
  for (let lba = 0; lba < 2048; lba++)
    assert.equal(data[lba * 512], lba >= 100 && lba < 400 ? 0 : 0xaa, `block ${lba}`);
});

test('UNMAP inside one unit, and of what is not there, works without a discard', async () => {
  const { initiator, image } = await filled({ clusterSize: CLUSTER });
  await initiator.good(cdb.unmap(24), { out: unmapList([1, 2]) });
  assert.deepEqual(image.log.splice(0), ['zero 512 1024']);
  await initiator.good(cdb.unmap(24), { out: unmapList([0, CLUSTER_BLOCKS]) });
  image.log.length = 0;
  await initiator.good(cdb.unmap(24), { out: unmapList([1, 2]) });
  assert.deepEqual(image.log, []);
});

test('UNMAP of a part of a unit that only a lower layer holds takes no space to zero it', async () => {
  const base = new RawLayer(new MemoryStorage({ bytes: new Uint8Array(4 * CLUSTER).fill(0xbb) }), true);
  const top = new ClusterLayer({ size: 4 * CLUSTER, clusterSize: CLUSTER });
  const image = new SpyImage(new ChainImage([top, base]));
  const { initiator } = await makeBench({ image });
  await initiator.good(cdb.unmap(24), { out: unmapList([8, 8]) });
  assert.deepEqual(image.log, []);
  assert.equal((await initiator.good(cdb.read10(8, 1)))[0], 0xbb);
  // Whole units are given back also then: they read as zeros afterwards.
  await initiator.good(cdb.unmap(24), { out: unmapList([0, 128]) });
  assert.deepEqual(image.log, [`discard 0 ${CLUSTER}`]);
});

test('what UNMAP covers reads as zeros also where the file system turns out not to discard', async () => {
  const storage = new MemoryStorage({ bytes: new Uint8Array(1024 * 1024).fill(0xaa) });
  storage.discard = async () => false;
  storage.writeZeroes = async () => false;
  const { initiator, image } = await makeBench({ image: new ChainImage([new RawLayer(storage, false)]) });
  assert.ok(image.limits.discardUnit > 0);
  await initiator.good(cdb.unmap(24), { out: unmapList([8, 16]) });
  const data = await initiator.good(cdb.read10(0, 32));
  for (let lba = 0; lba < 32; lba++) assert.equal(data[lba * 512], lba >= 8 && lba < 24 ? 0 : 0xaa, `block ${lba}`);
});

test('UNMAP of a unit block by block gives it back, in one piece', async () => {
  const { initiator, image } = await filled({ clusterSize: CLUSTER });
  const list = unmapList(
    [3 * CLUSTER_BLOCKS, 1],
    [CLUSTER_BLOCKS, 0],
    ...Array.from({ length: CLUSTER_BLOCKS }, (_, i) => [CLUSTER_BLOCKS + i, 1] as const),
  );
  await initiator.good(cdb.unmap(list.length), { out: list });
  assert.deepEqual(image.log, [`zero ${3 * CLUSTER} 512`, `discard ${CLUSTER} ${CLUSTER}`]);
});

test('UNMAP judges all descriptors before it acts on the first', async () => {
  const { initiator, image } = await filled();
  await initiator.refused(0x05_21_00, cdb.unmap(40), { out: unmapList([0, 8], [2048, 1]) });
  await initiator.refused(0x05_21_00, cdb.unmap(40), { out: unmapList([0, 8], [2 ** 54, 1]) });
  await initiator.refused(0x05_26_00, cdb.unmap(8 + 16 * 257), {
    out: unmapList(...Array.from({ length: 257 }, () => [0, 1] as const)),
  });
  assert.deepEqual(image.log, []);
  await initiator.refused(INVALID_FIELD, cdb.unmap(24, 1), { out: unmapList([0, 8]) }); // ANCHOR
  await initiator.refused(0x05_1a_00, cdb.unmap(24), { out: unmapList([0, 8]).subarray(0, 20) });
  await initiator.refused(0x05_1a_00, cdb.unmap(4), { out: new Uint8Array(4) });
  await initiator.good(cdb.unmap(0));
  await initiator.good(cdb.unmap(8), { out: unmapList() });
  await initiator.good(cdb.unmap(40), { out: unmapList([2048, 0], [5, 0]) });
  assert.deepEqual(image.log, []);
});

test('UNMAP of more blocks than the limit is refused', async () => {
  const image = new SpyImage(memoryImage());
  image.sizeShown = 2 ** 40;
  const { initiator } = await makeBench({ image });
  await initiator.refused(0x05_26_00, cdb.unmap(40), { out: unmapList([0, 2 ** 20], [2 ** 20, 1]) });
  assert.deepEqual(image.log, []);
});

test('WRITE SAME of zeros is a write of zeroes; UNMAP says whether space is given back', async () => {
  const { initiator, image } = await filled();
  const zeros = new Uint8Array(512);
  for (const opcode of [0x41, 0x93]) {
    await initiator.good(blockCdb(opcode, 4, 100), { out: zeros });
    await initiator.good(blockCdb(opcode, 4, 100, 0x08), { out: zeros });
  }
  await initiator.good(blockCdb(0x93, 4, 100, 0x01)); // NDOB: no data at all
  assert.deepEqual(image.log, [
    'zero 2048 51200',
    'unmap 2048 51200',
    'zero 2048 51200',
    'unmap 2048 51200',
    'zero 2048 51200',
  ]);
  const data = await initiator.good(blockCdb(0x28, 3, 102));
  assert.deepEqual([data[0], data[512], data[100 * 512], data[101 * 512]], [0xaa, 0, 0, 0xaa]);
});

test('WRITE SAME of another pattern writes it into every block, in bounded pieces, whatever UNMAP says', async () => {
  const image = new SpyImage(memoryImage({ size: 4 * 1024 * 1024 }));
  const { initiator } = await makeBench({ image });
  const out = new Uint8Array(512).map((_, i) => i + 1);
  await initiator.good(blockCdb(0x93, 8, 5000, 0x08), { out });
  assert.equal(image.log.length, 3);
  const data = await initiator.good(blockCdb(0x88, 0, 5010));
  for (let lba = 0; lba < 5010; lba++) {
    const block = data.subarray(lba * 512, (lba + 1) * 512);
    assert.deepEqual(block, lba >= 8 && lba < 5008 ? out : new Uint8Array(512), `block ${lba}`);
  }
});

test('WRITE SAME refuses what it does not do, and data of another length than a block', async () => {
  const { initiator, image } = await filled();
  const out = new Uint8Array(512);
  for (const opcode of [0x41, 0x93]) {
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 0), { out }); // WSNZ
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1, 0x10), { out }); // ANCHOR
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1, 0x20), { out }); // WRPROTECT
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1, 0x02), { out }); // LBDATA
    await initiator.refused(0x05_21_00, blockCdb(opcode, 2048, 1), { out });
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1), { out: new Uint8Array(256) });
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1), { out: new Uint8Array(1024) });
  }
  await initiator.refused(INVALID_FIELD, blockCdb(0x41, 0, 1, 0x01), { out }); // NDOB is of the long form
  assert.deepEqual(image.log, []);
});

interface Status {
  lba: number;
  blocks: number;
  status: number;
}

function parseStatus(data: Uint8Array): Status[] {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const list: Status[] = [];
  for (let at = 8; at + 16 <= data.length; at += 16)
    list.push({ lba: Number(view.getBigUint64(at)), blocks: view.getUint32(at + 8), status: view.getUint8(at + 12) });
  return list;
}

test('GET LBA STATUS tells mapped from deallocated blocks, from any LBA on', async () => {
  const { initiator } = await makeBench({ image: memoryImage({ clusterSize: CLUSTER }) });
  await initiator.good(cdb.write10(CLUSTER_BLOCKS + 5, 1), { out: new Uint8Array(512).fill(1) });
  const data = await initiator.good(cdb.getLbaStatus(0));
  assert.deepEqual(parseStatus(data), [
    { lba: 0, blocks: 128, status: 1 },
    { lba: 128, blocks: 128, status: 0 },
    { lba: 256, blocks: 2048 - 256, status: 1 },
  ]);
  assert.equal(new DataView(data.buffer).getUint32(0), data.length - 4);
  assert.deepEqual(parseStatus(await initiator.good(cdb.getLbaStatus(130, 24))), [
    { lba: 130, blocks: 126, status: 0 },
  ]);
  assert.deepEqual(parseStatus(await initiator.good(cdb.getLbaStatus(2047))), [{ lba: 2047, blocks: 1, status: 1 }]);
  await initiator.refused(0x05_21_00, cdb.getLbaStatus(2048));
});

test('GET LBA STATUS calls a block mapped when any part of it is', async () => {
  const { initiator, image } = await makeBench({ image: memoryImage({ clusterSize: 1024 }), blockSize: 4096 });
  await image.writev(5 * 1024, IoVec.of(new Uint8Array(10).fill(1)));
  await image.writev(16 * 1024, IoVec.of(new Uint8Array(10).fill(1)));
  assert.deepEqual(parseStatus(await initiator.good(cdb.getLbaStatus(0))), [
    { lba: 0, blocks: 1, status: 1 },
    { lba: 1, blocks: 1, status: 0 },
    { lba: 2, blocks: 2, status: 1 },
    { lba: 4, blocks: 1, status: 0 },
    { lba: 5, blocks: 251, status: 1 },
  ]);
});

test('after UNMAP of whole units GET LBA STATUS says deallocated', async () => {
  const { initiator } = await filled({ clusterSize: CLUSTER });
  await initiator.good(cdb.unmap(24), { out: unmapList([128, 256]) });
  assert.deepEqual(
    parseStatus(await initiator.good(cdb.getLbaStatus(0))).map(({ blocks, status }) => [blocks, status]),
    [
      [128, 0],
      [256, 1],
      [2048 - 384, 0],
    ],
  );
});

test('SANITIZE BLOCK ERASE zeroes everything; meanwhile the medium is not ready', async () => {
  const { initiator, image, device } = await filled();
  const open = image.hold();
  await initiator.good([0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]); // IMMED
  const { senseBytes } = await initiator.refused(0x02_04_1b, cdb.read10(0, 1));
  assert.equal(senseBytes[15], 0x80); // progress is valid
  await initiator.refused(0x02_04_1b, cdb.testUnitReady);
  await device.manage(initiator.nexus, 0, 5);
  await initiator.clearAttentions();
  await initiator.refused(0x02_04_1b, cdb.testUnitReady);
  await initiator.good(cdb.inquiry());
  const progress = await initiator.good(cdb.requestSense());
  assert.deepEqual([progress[2], progress[12], progress[13]], [2, 4, 0x1b]);
  open();
  while ((await initiator.send(cdb.testUnitReady)).status !== 0) await new Promise((resolve) => setImmediate(resolve));
  assert.ok((await initiator.good(blockCdb(0x88, 0, 2048))).every((byte) => byte === 0));
  assert.deepEqual(image.log, ['unmap 0 1048576', 'flush']);
});

test('a SANITIZE that fails leaves the medium unusable until EXIT FAILURE MODE, where that was allowed', async () => {
  for (const ause of [0, 0x20]) {
    const { initiator, image } = await filled();
    image.failures.set('writeZeroes', new LunetteError('IO', 'made to fail'));
    assert.equal((await initiator.send([0x48, 0x02 | ause, 0, 0, 0, 0, 0, 0, 0, 0])).status, 2);
    await initiator.refused(0x03_31_03, cdb.read10(0, 1));
    const exit = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];
    if (ause === 0) {
      await initiator.refused(INVALID_FIELD, exit);
      image.failures.clear();
      await initiator.good([0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0]); // another try mends it
    } else {
      await initiator.good(exit);
    }
    await initiator.good(cdb.read10(0, 1));
  }
});

test('SANITIZE refuses OVERWRITE, CRYPTOGRAPHIC ERASE and reserved fields', async () => {
  const { initiator, image } = await filled();
  for (const bytes of [[0x01], [0x03], [0x42], [0x02, 1], [0x02, 0, 0, 0, 0, 1], [0x02, 0, 0, 0, 0, 0, 0, 4]]) {
    const command = [0x48, ...bytes, ...new Array(9 - bytes.length).fill(0)];
    await initiator.refused(INVALID_FIELD, command);
  }
  assert.deepEqual(image.log, []);
});
