import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { MiB } from '../../../../formats/core/units.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { createVdi } from '../../../../formats/vdi/create.ts';
import { vdi } from '../../../../formats/vdi/driver.ts';
import { HEADER_V0, HEADER_V1, parseHeader } from '../../../../formats/vdi/header.ts';
import { parseUuid, randomUuid, uuidText } from '../../../../formats/vdi/uuid.ts';
import { openDisk, openLayer, testContext } from '../../../support/layers.ts';

type V1 = NonNullable<Parameters<typeof HEADER_V1.write>[1]>;

/** The start of a new image of 10 MiB, with fields changed. */
async function headWith(fields: V1): Promise<{ head: Uint8Array; size: number }> {
  const storage = new MemoryStorage();
  await createVdi(storage, { size: 10 * MiB });
  const head = storage.toBytes().slice(0, 512);
  HEADER_V1.write(new DataView(head.buffer), fields);
  return { head, size: storage.size };
}

const REFUSED: readonly { fields: V1; field: string; code: string }[] = [
  { fields: { version: 0x00020000 }, field: 'version', code: 'UNSUPPORTED' },
  { fields: { cbHeader: 0x17f }, field: 'cbHeader', code: 'BAD_HEADER' },
  { fields: { type: 0 }, field: 'type', code: 'BAD_HEADER' },
  { fields: { type: 5 }, field: 'type', code: 'BAD_HEADER' },
  { fields: { flags: 2 }, field: 'flags', code: 'UNSUPPORTED' },
  { fields: { cbSector: 4096 }, field: 'cbSector', code: 'BAD_HEADER' },
  { fields: { cbBlock: 0 }, field: 'cbBlock', code: 'BAD_HEADER' },
  { fields: { cbBlock: 3 * MiB }, field: 'cbBlock', code: 'BAD_HEADER' },
  { fields: { cbBlock: 256, cBlocks: 40960 }, field: 'cbBlock', code: 'BAD_HEADER' },
  { fields: { cbBlock: 128 * MiB }, field: 'cbBlock', code: 'UNSUPPORTED' },
  { fields: { cbBlockExtra: 3 }, field: 'cbBlockExtra', code: 'BAD_HEADER' },
  { fields: { cbDisk: 11 * MiB }, field: 'cBlocks', code: 'BAD_HEADER' },
  { fields: { cBlocks: 0xffffffff }, field: 'cBlocks', code: 'UNSUPPORTED' },
  { fields: { cBlocks: 2 ** 20, offData: 8 * MiB }, field: 'cBlocks', code: 'TRUNCATED' },
  { fields: { cBlocksAllocated: 11 }, field: 'cBlocksAllocated', code: 'BAD_HEADER' },
  { fields: { offBlocks: 0x100 }, field: 'offBlocks', code: 'BAD_HEADER' },
  { fields: { offBlocks: 0x201 }, field: 'offBlocks', code: 'BAD_HEADER' },
  { fields: { offData: MiB }, field: 'offData', code: 'BAD_HEADER' },
  { fields: { uuidCreate: new Uint8Array(16) }, field: 'uuidCreate', code: 'BAD_HEADER' },
  { fields: { uuidModify: new Uint8Array(16) }, field: 'uuidModify', code: 'BAD_HEADER' },
];

for (const { fields, field, code } of REFUSED) {
  test(`a header with ${JSON.stringify(fields, (_, v) => (v instanceof Uint8Array ? 'zeros' : v))} is refused: ${code}`, async () => {
    const { head, size } = await headWith(fields);
    const { at } = HEADER_V1.fields[field as 'type'];
    assert.throws(() => parseHeader(head, size, '/x'), { code, field, offset: at, path: '/x' });
  });
}

test('a disk of 2^53 bytes and more is refused, however its high half looks', async () => {
  const { head, size } = await headWith({});
  for (const high of [0x00200000, 0x7fffffff, 0xffffffff]) {
    new DataView(head.buffer).setUint32(0x174, high, true);
    assert.throws(() => parseHeader(head, size, '/x'), { code: 'UNSUPPORTED', field: 'cbDisk' });
  }
});

test('a file that is cut inside the header is called truncated, and one without signature no VDI', async () => {
  const { head, size } = await headWith({});
  assert.throws(() => parseHeader(head.subarray(0, 0x1c7), size, '/x'), { code: 'TRUNCATED', offset: 0x1c7 });
  assert.throws(() => parseHeader(head.subarray(0, 0x47), size, '/x'), { code: 'BAD_MAGIC' });
  head[0x40] = 0;
  assert.throws(() => parseHeader(head, size, '/x'), { code: 'BAD_MAGIC', offset: 0x40 });
  assert.equal(vdi.probe(head), 0);
});

test('a size that is no whole number of sectors is rounded down, with a warning', async () => {
  const { head, size } = await headWith({ cbDisk: 10 * MiB - 100 });
  assert.equal(parseHeader(head, size, '/x').size, 10 * MiB - 512);
  const warnings: string[] = [];
  const storage = new MemoryStorage({ bytes: head });
  await storage.resize(size);
  const layer = await openLayer(vdi, storage, { readOnly: true, context: testContext({ warnings }) });
  assert.match(warnings.join(), /no whole number of sectors/);
  await layer.close();
});

test('version 0 is read: map at 420, data right behind it; writing it is refused', async () => {
  const bytes = new Uint8Array(420 + 8 + 4096);
  const view = new DataView(bytes.buffer);
  HEADER_V0.write(view, {
    signature: 0xbeda107f,
    version: 2,
    type: 1,
    cbSector: 512,
    cbDisk: 8192,
    cbBlock: 4096,
    cBlocks: 2,
    cBlocksAllocated: 1,
    uuidCreate: randomUuid(),
    uuidModify: randomUuid(),
  });
  view.setUint32(420, 0xffffffff, true);
  view.setUint32(424, 0, true);
  bytes.fill(0x5a, 428);
  const disk = await openDisk(vdi, new MemoryStorage({ bytes }), { readOnly: true });
  const read = new Uint8Array(8192);
  await disk.readv(0, IoVec.of(read));
  assert.ok(read.subarray(0, 4096).every((byte) => byte === 0));
  assert.ok(read.subarray(4096).every((byte) => byte === 0x5a));
  await disk.close();
  await assert.rejects(openLayer(vdi, new MemoryStorage({ bytes })), { code: 'UNSUPPORTED', field: 'version' });
});

test('ids are shown with their first three fields turned round, as VirtualBox shows them', () => {
  const bytes = Uint8Array.from({ length: 16 }, (_, i) => i);
  assert.equal(uuidText(bytes), '03020100-0504-0706-0809-0a0b0c0d0e0f');
  assert.deepEqual(parseUuid('{03020100-0504-0706-0809-0A0B0C0D0E0F}'), bytes);
  assert.equal(parseUuid('03020100-0504-0706-0809-0a0b0c0d0e'), undefined);
  assert.match(uuidText(randomUuid()), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
});
