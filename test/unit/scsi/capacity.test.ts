import assert from 'node:assert/strict';
import { test } from 'node:test';
import { another, blockCdb, cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const view = (bytes: Uint8Array): DataView => new DataView(Uint8Array.from(bytes).buffer);

test('READ CAPACITY says the last LBA and the block size', async () => {
  for (const blockSize of [512, 4096] as const) {
    const { initiator } = await makeBench({ blockSize, image: memoryImage({ size: 1024 * 1024 + 511 }) });
    const ten = view(await initiator.good(cdb.readCapacity10()));
    assert.deepEqual([ten.byteLength, ten.getUint32(0), ten.getUint32(4)], [8, 1048576 / blockSize - 1, blockSize]);
    const sixteen = view(await initiator.good(cdb.readCapacity16()));
    assert.deepEqual(
      [sixteen.byteLength, sixteen.getBigUint64(0), sixteen.getUint32(8), sixteen.getUint8(13)],
      [32, BigInt(1048576 / blockSize - 1), blockSize, 0],
    );
  }
});

test('a capacity of more than 2^32 blocks shows whole in the long form, as FFFFFFFFh in the short one', async () => {
  const image = new SpyImage(memoryImage());
  for (const [blocks, short] of [
    [2 ** 32 - 1, 0xfffffffe],
    [2 ** 32, 0xffffffff],
    [2 ** 42, 0xffffffff],
  ] as const) {
    image.sizeShown = blocks * 512;
    const { initiator } = await makeBench({ image });
    assert.equal(view(await initiator.good(cdb.readCapacity10())).getUint32(0), short);
    assert.equal(view(await initiator.good(cdb.readCapacity16())).getBigUint64(0), BigInt(blocks) - 1n);
  }
});

test('an LBA without PMI is refused, the allocation length cuts', async () => {
  const { initiator } = await makeBench();
  await initiator.refused(0x05_24_00, blockCdb(0x25, 1, 0));
  await initiator.good([0x25, 0, 0, 0, 0, 1, 0, 0, 1, 0]);
  await initiator.refused(0x05_24_00, [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 32, 0, 0]);
  for (const length of [0, 7, 12, 32]) assert.equal((await initiator.good(cdb.readCapacity16(length))).length, length);
});

test('a resize is told to every nexus and counts at once', async () => {
  const image = memoryImage({ size: 1024 * 1024 });
  const { device, initiator } = await makeBench({ image });
  const other = await another(device);
  await initiator.refused(0x05_21_00, cdb.read10(2048, 1));
  await image.resize(2 * 1024 * 1024);
  for (const each of [initiator, other]) {
    await each.refused(0x06_2a_09, cdb.read10(2048, 1));
    await each.good(cdb.read10(2048, 1));
  }
  assert.equal(view(await initiator.good(cdb.readCapacity10())).getUint32(0), 4095);
});

test('a resize by less than a block changes nothing', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  image.showSize(1024 * 1024 + 100);
  await initiator.good(cdb.testUnitReady);
});

test('the physical block size is told when it is given', async () => {
  const { initiator } = await makeBench({ physicalBlockSize: 4096 });
  assert.equal((await initiator.good(cdb.readCapacity16()))[13], 3);
});
