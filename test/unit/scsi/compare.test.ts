import assert from 'node:assert/strict';
import { test } from 'node:test';
import { blockCdb, cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const INVALID_FIELD = 0x05_24_00;

test('COMPARE AND WRITE writes when the medium holds what is expected', async () => {
  const { initiator } = await makeBench();
  const expected = new Uint8Array(1024);
  const wanted = new Uint8Array(1024).fill(7);
  await initiator.good(cdb.compareAndWrite(3, 2), { out: Buffer.concat([expected, wanted]) });
  assert.deepEqual(await initiator.good(cdb.read10(3, 2)), wanted);
});

test('COMPARE AND WRITE with a difference writes nothing and says where it is', async () => {
  const { initiator } = await makeBench();
  const expected = new Uint8Array(1024).fill(0, 0, 700).fill(1, 700);
  const { senseBytes } = await initiator.refused(0x0e_1d_00, cdb.compareAndWrite(3, 2), {
    out: Buffer.concat([expected, new Uint8Array(1024).fill(7)]),
  });
  assert.equal(senseBytes[0], 0xf0);
  assert.equal(new DataView(senseBytes.buffer).getUint32(3), 700);
  assert.deepEqual(await initiator.good(cdb.read10(3, 2)), new Uint8Array(1024));
});

test('of many that compare and write the same block at once, one wins', async () => {
  const { initiator } = await makeBench();
  const outcomes = await Promise.all(
    Array.from({ length: 50 }, (_, i) =>
      initiator.send(cdb.compareAndWrite(0, 1), {
        out: Buffer.concat([new Uint8Array(512), new Uint8Array(512).fill(i + 1)]),
      }),
    ),
  );
  assert.equal(outcomes.filter(({ status }) => status === 0).length, 1);
  assert.ok(outcomes.every(({ status, sense }) => status === 0 || sense === 0x0e_1d_00));
  const winner = outcomes.findIndex(({ status }) => status === 0);
  assert.equal((await initiator.good(cdb.read10(0, 1)))[0], winner + 1);
});

test('COMPARE AND WRITE refuses more than its limit, and data of another length than twice the blocks', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  await initiator.refused(INVALID_FIELD, cdb.compareAndWrite(0, 129), { out: new Uint8Array(2 * 129 * 512) });
  await initiator.refused(INVALID_FIELD, cdb.compareAndWrite(0, 0), { out: new Uint8Array(1024) });
  await initiator.refused(INVALID_FIELD, cdb.compareAndWrite(0, 2), { out: new Uint8Array(1024) });
  await initiator.refused(INVALID_FIELD, cdb.compareAndWrite(0, 1), { out: new Uint8Array(2048) });
  await initiator.refused(INVALID_FIELD, cdb.compareAndWrite(0, 1, 0x20), { out: new Uint8Array(1024) });
  await initiator.refused(0x05_21_00, cdb.compareAndWrite(2048, 1), { out: new Uint8Array(1024) });
  await initiator.good(cdb.compareAndWrite(0, 0), { expected: 0 });
  assert.deepEqual(image.log, []);
  await initiator.good(cdb.compareAndWrite(0, 128), { out: new Uint8Array(2 * 128 * 512) });
});

test('COMPARE AND WRITE and ORWRITE flush with FUA', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  await initiator.good(cdb.compareAndWrite(0, 1, 0x08), { out: new Uint8Array(1024) });
  await initiator.good(blockCdb(0x8b, 0, 1, 0x08), { out: new Uint8Array(512) });
  assert.deepEqual(image.log, ['modify 0 512', 'flush', 'modify 0 512', 'flush']);
});

test('ORWRITE sets the bits that the data has, also over more than a piece', async () => {
  const { initiator } = await makeBench({ image: memoryImage({ size: 4 * 1024 * 1024 }) });
  const before = new Uint8Array(4000 * 512).map((_, i) => i);
  const mask = new Uint8Array(4000 * 512).map((_, i) => i >> 8);
  await initiator.good(blockCdb(0x8a, 1, 4000), { out: before });
  await initiator.good(blockCdb(0x8b, 1, 4000), { out: mask });
  const after = await initiator.good(blockCdb(0x88, 1, 4000));
  assert.equal(
    Buffer.compare(
      after,
      before.map((byte, i) => byte | (mask[i] as number)),
    ),
    0,
  );
  await initiator.refused(0x05_21_00, blockCdb(0x8b, 8191, 2), { out: new Uint8Array(1024) });
  await initiator.refused(INVALID_FIELD, blockCdb(0x8b, 0, 1, 0x20), { out: new Uint8Array(512) });
});
