import assert from 'node:assert/strict';
import { test } from 'node:test';
import { blockCdb, cdb, makeBench, memoryImage, OPCODES } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const LBA_OUT_OF_RANGE = 0x05_21_00;
const INVALID_FIELD = 0x05_24_00;

const READS = Object.values(OPCODES.read);
const WRITES = Object.values(OPCODES.write);
const name = (opcode: number): string => opcode.toString(16).padStart(2, '0');

/** 512-byte blocks that begin with their number. */
function numbered(first: number, count: number, blockSize = 512): Uint8Array {
  const bytes = new Uint8Array(count * blockSize);
  for (let i = 0; i < count; i++) bytes.fill((first + i) % 251, i * blockSize, (i + 1) * blockSize);
  return bytes;
}

for (const blockSize of [512, 4096] as const) {
  test(`what a WRITE of any size wrote, a READ of any size reads (${blockSize}-byte blocks)`, async () => {
    const { initiator } = await makeBench({ blockSize });
    let lba = 1;
    for (const write of WRITES) {
      await initiator.good(blockCdb(write, lba, 3), { out: numbered(lba, 3, blockSize) });
      for (const read of READS)
        assert.deepEqual(await initiator.good(blockCdb(read, lba, 3)), numbered(lba, 3, blockSize), name(read));
      lba += 5;
    }
    assert.deepEqual(await initiator.good(blockCdb(0x28, 0, 1)), new Uint8Array(blockSize));
  });
}

test('READ and WRITE(6) move 256 blocks when the length is 0; the others move nothing', async () => {
  const { initiator } = await makeBench();
  await initiator.good(blockCdb(0x0a, 0, 0), { out: numbered(0, 256) });
  assert.deepEqual(await initiator.good(blockCdb(0x08, 0, 0)), numbered(0, 256));
  for (const opcode of [0x28, 0xa8, 0x88]) assert.equal((await initiator.good(blockCdb(opcode, 5, 0))).length, 0);
  for (const opcode of [0x2a, 0xaa, 0x8a]) await initiator.good(blockCdb(opcode, 5, 0));
});

test('a range that is not wholly on the medium is refused, with the LBA in the information field', async () => {
  const { initiator } = await makeBench();
  for (const opcode of [...READS, ...WRITES]) {
    const out = opcode === 0x08 || (READS as number[]).includes(opcode) ? {} : { out: new Uint8Array(1024) };
    const outcome = await initiator.refused(LBA_OUT_OF_RANGE, blockCdb(opcode, 2047, 2), out);
    assert.equal(new DataView(outcome.senseBytes.buffer).getUint32(3), 2047, name(opcode));
    await initiator.refused(LBA_OUT_OF_RANGE, blockCdb(opcode, 2049, 1), out);
  }
  for (const opcode of [0x28, 0xa8, 0x88, 0x2a, 0xaa, 0x8a])
    await initiator.refused(LBA_OUT_OF_RANGE, blockCdb(opcode, 2049, 0));
});

test('LBAs beyond 2^53 are out of range, not rounded', async () => {
  const { initiator } = await makeBench();
  const read = [0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0];
  await initiator.refused(LBA_OUT_OF_RANGE, read);
  await initiator.refused(LBA_OUT_OF_RANGE, [0x88, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
});

test('protection information is refused, as is NACA', async () => {
  const { initiator } = await makeBench();
  for (const opcode of [0x28, 0xa8, 0x88, 0x2a, 0xaa, 0x8a]) {
    const out = { out: new Uint8Array(512) };
    await initiator.refused(INVALID_FIELD, blockCdb(opcode, 0, 1, 0x20), opcode === 0x28 ? {} : out);
    const naca = blockCdb(opcode, 0, 1);
    naca[naca.length - 1] = 4;
    await initiator.refused(INVALID_FIELD, naca, out);
  }
});

test('a transfer above the limit of the block limits page is refused before data moves', async () => {
  const { initiator } = await makeBench({ image: memoryImage({ size: 64 * 1024 * 1024 }) });
  const task = blockCdb(0x88, 0, 65537);
  const { status, sense } = await initiator.send(task);
  assert.deepEqual([status, sense], [2, INVALID_FIELD]);
  assert.equal((await initiator.good(blockCdb(0x88, 0, 65536))).length, 32 * 1024 * 1024);
});

test('an initiator that expects less gets the beginning and hears how much there was', async () => {
  const { initiator } = await makeBench();
  await initiator.good(cdb.write10(0, 4), { out: numbered(10, 4) });
  const read = await initiator.send(cdb.read10(0, 4), { expected: 700 });
  assert.deepEqual(read.data, numbered(10, 4).subarray(0, 700));
  assert.deepEqual([read.status, read.transferLength], [0, 2048]);
  const more = await initiator.send(cdb.read10(0, 1), { expected: 4096 });
  assert.deepEqual([more.data.length, more.transferLength], [512, 512]);
});

test('an initiator that sends less has whole blocks written, the rest is left alone', async () => {
  const { initiator } = await makeBench();
  await initiator.good(cdb.write10(0, 4), { out: numbered(10, 4) });
  const write = await initiator.send(cdb.write10(0, 4), { out: new Uint8Array(1100) });
  assert.deepEqual([write.status, write.transferLength], [0, 2048]);
  const expected = numbered(10, 4);
  expected.fill(0, 0, 1024);
  assert.deepEqual(await initiator.good(cdb.read10(0, 4)), expected);
});

test('a command that memory can answer completes in the same tick', async () => {
  const { initiator } = await makeBench();
  await initiator.good(cdb.write10(0, 1), { out: new Uint8Array(512) }); // the first write makes the image ready
  for (const opcode of READS) assert.equal((await initiator.send(blockCdb(opcode, 0, 1))).now, true, name(opcode));
  for (const opcode of WRITES)
    assert.equal((await initiator.send(blockCdb(opcode, 0, 1), { out: new Uint8Array(512) })).now, true, name(opcode));
});

test('a write is flushed when it says FUA, or when the write cache is off, and not otherwise', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  const out = new Uint8Array(512);
  await initiator.good(cdb.write10(1, 1, 0x10), { out }); // DPO
  assert.deepEqual(image.log, ['write 512 512']);
  await initiator.good(cdb.write10(2, 1, 0x08), { out });
  assert.deepEqual(image.log.splice(0), ['write 512 512', 'write 1024 512', 'flush']);
  await initiator.good(cdb.read10(2, 1, 0x08));
  assert.deepEqual(image.log.splice(0), ['flush']);

  const caching = [0, 0, 0, 0, 0x08, 0x12, 0, ...new Array(17).fill(0)];
  await initiator.good(cdb.modeSelect6(24), { out: Uint8Array.from(caching) });
  assert.deepEqual(image.log.splice(0), ['flush']); // what was cached becomes durable
  await initiator.good(cdb.write10(3, 1), { out });
  assert.deepEqual(image.log, ['write 1536 512', 'flush']);
});

test('a write that is slow and then fails to flush does not end with GOOD', async () => {
  const image = new SpyImage(memoryImage());
  const { initiator } = await makeBench({ image });
  const open = image.hold();
  image.failures.set('flush', new Error('disk gone'));
  const sent = initiator.refused(0x04_44_00, cdb.write10(0, 1, 0x08), { out: new Uint8Array(512) });
  open();
  await sent;
});

test('a read-only unit refuses every command that writes, and says so in MODE SENSE', async () => {
  for (const options of [{ readOnly: true }, { image: memoryImage({ readOnly: true }) }]) {
    const image = new SpyImage(options.image ?? memoryImage());
    const { initiator } = await makeBench({ ...options, image });
    for (const opcode of [...WRITES, 0x2e, 0xae, 0x8e, 0x8b, 0x41, 0x93])
      await initiator.refused(0x07_27_00, blockCdb(opcode, 0, 1), { out: new Uint8Array(512) });
    await initiator.refused(0x07_27_00, cdb.compareAndWrite(0, 1), { out: new Uint8Array(1024) });
    await initiator.refused(0x07_27_00, cdb.unmap(24), { out: new Uint8Array(24) });
    await initiator.refused(0x07_27_00, [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0]);
    await initiator.good(cdb.read10(0, 1));
    await initiator.good([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert.equal((await initiator.good(cdb.modeSense6(0x3f)))[2], 0x90);
    assert.deepEqual(
      image.log.filter((line) => line !== 'flush'),
      [],
    );
  }
});

test('what is left of the image behind the last whole block is out of reach', async () => {
  const { initiator } = await makeBench({ image: memoryImage({ size: 4096 * 3 + 700 }), blockSize: 4096 });
  assert.equal((await initiator.good(blockCdb(0x28, 0, 3))).length, 3 * 4096);
  await initiator.refused(LBA_OUT_OF_RANGE, blockCdb(0x28, 3, 1));
});
