import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LunetteError } from '../../../formats/core/errors.ts';
import { blockCdb, cdb, makeBench, memoryImage, OPCODES } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const MISCOMPARE = 0x0e_1d_00;
const INVALID_FIELD = 0x05_24_00;
const VERIFIES = Object.values(OPCODES.verify);
const WRITE_VERIFIES = Object.values(OPCODES.writeVerify);

const information = (sense: Uint8Array): number => new DataView(sense.buffer, sense.byteOffset).getUint32(3);

test('VERIFY with BYTCHK 1 compares with data, and says where the first difference is', async () => {
  const { initiator } = await makeBench();
  const data = new Uint8Array(3 * 512).map((_, i) => i * 7);
  await initiator.good(cdb.write10(4, 3), { out: data });
  for (const opcode of VERIFIES) {
    await initiator.good(blockCdb(opcode, 4, 3, 0x02), { out: data });
    const wrong = data.slice();
    wrong[1000] = (wrong[1000] as number) ^ 1;
    const { senseBytes } = await initiator.refused(MISCOMPARE, blockCdb(opcode, 4, 3, 0x02), { out: wrong });
    assert.equal(information(senseBytes), 1000);
  }
});

test('VERIFY with BYTCHK 3 compares every block with one block', async () => {
  const { initiator } = await makeBench();
  const block = new Uint8Array(512).map((_, i) => i);
  for (let lba = 0; lba < 4; lba++) await initiator.good(cdb.write10(lba, 1), { out: block });
  for (const opcode of VERIFIES) {
    await initiator.good(blockCdb(opcode, 0, 4, 0x06), { out: block });
    const { senseBytes } = await initiator.refused(MISCOMPARE, blockCdb(opcode, 0, 5, 0x06), { out: block });
    assert.equal(information(senseBytes), 4 * 512 + 1);
  }
});

test('VERIFY with BYTCHK 0 reads the medium and takes no data', async () => {
  const image = new SpyImage(memoryImage({ size: 8 * 1024 * 1024 }));
  const { initiator } = await makeBench({ image });
  for (const opcode of VERIFIES) {
    await initiator.good(blockCdb(opcode, 0, 16384));
    image.failures.set('readv', new LunetteError('IO', 'bad sector'));
    const { status } = await initiator.send(blockCdb(opcode, 0, 8));
    assert.equal(status, 2);
    image.failures.clear();
    await initiator.good(blockCdb(opcode, 0, 0));
    await initiator.refused(0x05_21_00, blockCdb(opcode, 16384, 1));
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1, 0x04)); // BYTCHK 2
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1, 0x20)); // VRPROTECT
  }
});

test('a difference behind the first mebibyte is found too', async () => {
  const { initiator } = await makeBench({ image: memoryImage({ size: 4 * 1024 * 1024 }) });
  const data = new Uint8Array(3 * 1024 * 1024).fill(5);
  await initiator.good(blockCdb(0x8a, 0, 6144), { out: data });
  await initiator.good(blockCdb(0x8f, 0, 6144, 0x02), { out: data });
  data[2_500_000] = 6;
  const { senseBytes } = await initiator.refused(MISCOMPARE, blockCdb(0x8f, 0, 6144, 0x02), { out: data });
  assert.equal(information(senseBytes), 2_500_000);
});

test('WRITE AND VERIFY writes, makes it durable and reads it back', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  let lba = 0;
  for (const opcode of WRITE_VERIFIES) {
    for (const flags of [0, 0x02]) {
      const out = new Uint8Array(1024).fill(lba + 1);
      await initiator.good(blockCdb(opcode, lba, 2, flags), { out });
      assert.deepEqual(await initiator.good(cdb.read10(lba, 2)), out);
      assert.deepEqual(image.log.splice(0), [`write ${lba * 512} 1024`, 'flush']);
      lba += 2;
    }
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1, 0x04), { out: new Uint8Array(512) });
    await initiator.refused(0x05_21_00, blockCdb(opcode, 2048, 1), { out: new Uint8Array(512) });
  }
});
