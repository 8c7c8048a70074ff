import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deriveIdentity } from '../../../src/scsi/identity.ts';
import { cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const text = (bytes: Uint8Array, from: number, to: number): string => Buffer.from(bytes.subarray(from, to)).toString();

test('standard data: a disk of SPC-4 with command queuing and third-party copy', async () => {
  const { initiator } = await makeBench({ vendor: 'ACME', product: 'Disk', revision: '2.0' });
  const data = await initiator.good(cdb.inquiry());
  assert.deepEqual([...data.subarray(0, 8)], [0, 0, 6, 0x12, 91, 0x18, 0, 2]);
  assert.equal(text(data, 8, 36), 'ACME    Disk            2.0 ');
  const view = new DataView(data.buffer, data.byteOffset);
  assert.deepEqual(
    [58, 60, 62, 64, 66].map((at) => view.getUint16(at)),
    [0x00a0, 0x0460, 0x04c0, 0x0960, 0],
  );
});

test('the allocation length cuts the data, not its length field', async () => {
  const { initiator } = await makeBench();
  for (const length of [0, 1, 5, 36, 96]) {
    const { data, transferLength } = await initiator.send(cdb.inquiry(undefined, length));
    assert.equal(data.length, length);
    assert.equal(transferLength, length);
    if (length >= 5) assert.equal(data[4], 91);
  }
  assert.equal((await initiator.send(cdb.inquiry(undefined, 255))).transferLength, 96);
});

test('a removable medium shows in standard data', async () => {
  const { initiator } = await makeBench({ removable: true });
  assert.equal((await initiator.good(cdb.inquiry()))[1], 0x80);
});

test('page 00h lists exactly the pages that can be had, ascending', async () => {
  const { initiator } = await makeBench();
  const list = (await initiator.good(cdb.inquiry(0))).subarray(4);
  assert.deepEqual([...list], [0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2]);
  for (let page = 0; page < 256; page++) {
    if (list.includes(page)) {
      const data = await initiator.good(cdb.inquiry(page, 4096));
      assert.equal(data[1], page);
      assert.equal(data.length, 4 + ((data[2] as number) << 8) + (data[3] as number));
    } else {
      await initiator.refused(0x05_24_00, cdb.inquiry(page));
    }
  }
  await initiator.refused(0x05_24_00, [0x12, 0, 0x80, 0, 255, 0]); // a page code without EVPD
});

test('identity follows from its seed alone, and nothing of the seed shows', async () => {
  const seed = '/secret/path/disk.qcow2';
  const a = deriveIdentity(seed);
  assert.deepEqual(deriveIdentity(seed), a);
  assert.notDeepEqual(deriveIdentity(`${seed}2`).naa, a.naa);
  assert.equal((a.naa[0] as number) >> 4, 3);
  assert.equal(a.naa.length, 8);

  const { initiator } = await makeBench({ identity: seed });
  for (const page of [undefined, 0x80, 0x83]) {
    assert.ok(!Buffer.from(await initiator.good(cdb.inquiry(page, 4096))).includes('secret'));
  }
  const serial = await initiator.good(cdb.inquiry(0x80));
  assert.equal(text(serial, 4, serial.length), a.serial);
});

interface Designator {
  codeSet: number;
  association: number;
  type: number;
  value: Buffer;
}

function designators(page: Uint8Array): Designator[] {
  const found: Designator[] = [];
  for (let at = 4; at < page.length; at += 4 + (page[at + 3] as number)) {
    const kind = page[at + 1] as number;
    found.push({
      codeSet: (page[at] as number) & 15,
      association: (kind >> 4) & 3,
      type: kind & 15,
      value: Buffer.from(page.subarray(at + 4, at + 4 + (page[at + 3] as number))),
    });
  }
  return found;
}

test('page 83h names unit, port, port group and device', async () => {
  const { device, initiator } = await makeBench();
  const list = designators(await initiator.good(cdb.inquiry(0x83, 4096)));
  const naa = list.find(({ association, type }) => association === 0 && type === 3);
  assert.deepEqual(new Uint8Array(naa?.value ?? []), device.unit(0)?.identity.naa);
  assert.match(
    list.find(({ type, association }) => type === 1 && association === 0)?.value.toString() ?? '',
    /^LUNETTE [0-9a-f]{20}$/,
  );
  assert.equal(list.find(({ type }) => type === 4)?.value.readUInt32BE(), 1);
  assert.equal(list.find(({ type }) => type === 5)?.value.readUInt32BE(), 1);
  const names = list.filter(({ type }) => type === 8);
  assert.deepEqual(
    names.map(({ association }) => association),
    [1, 2],
  );
  for (const { value } of names) {
    assert.equal(value.length % 4, 0);
    assert.equal(value.toString().replace(/\0+$/, ''), 'iqn.2026-11.lunette.host:test');
  }
});

test('page 86h: all task attributes but ACA, a volatile cache, long sense data', async () => {
  const { initiator } = await makeBench();
  const data = await initiator.good(cdb.inquiry(0x86));
  assert.deepEqual([data[5], data[6], data[13]], [7, 1, 252]);
});

test('page B0h: limits in blocks; discard granularity from the image', async () => {
  for (const blockSize of [512, 4096] as const) {
    const { initiator } = await makeBench({ image: memoryImage({ clusterSize: 65536 }), blockSize });
    const view = new DataView(Uint8Array.from(await initiator.good(cdb.inquiry(0xb0))).buffer);
    assert.equal(view.getUint8(4), 1); // WSNZ
    assert.equal(view.getUint8(5), 128);
    assert.equal(view.getUint16(6), 4096 / blockSize);
    assert.equal(view.getUint32(8), (32 * 1024 * 1024) / blockSize);
    assert.equal(view.getUint32(12), (1024 * 1024) / blockSize);
    assert.ok(view.getUint32(20) > 0 && view.getUint32(24) > 0);
    assert.equal(view.getUint32(28), 65536 / blockSize);
    assert.equal(view.getUint32(32), 0x80000000);
    assert.equal(view.getUint32(40), (256 * 1024 * 1024) / blockSize);
  }
});

test('page B2h and READ CAPACITY promise thin provisioning only where discard works', async () => {
  const image = new SpyImage(memoryImage());
  const thin = await makeBench({ image });
  assert.deepEqual([...(await thin.initiator.good(cdb.inquiry(0xb2)))], [0, 0xb2, 0, 4, 0, 0xe4, 2, 0]);
  assert.equal((await thin.initiator.good(cdb.readCapacity16()))[14], 0xc0);

  image.limitsShown = { allocationUnit: 1, discardUnit: 0, zeroUnit: 1 };
  const thick = await makeBench({ image });
  assert.deepEqual([...(await thick.initiator.good(cdb.inquiry(0xb2)))], [0, 0xb2, 0, 4, 0, 0, 0, 0]);
  const limits = await thick.initiator.good(cdb.inquiry(0xb0));
  assert.ok(limits.subarray(20, 36).every((byte) => byte === 0));
  assert.equal((await thick.initiator.good(cdb.readCapacity16()))[14], 0);
  await thick.initiator.refused(0x05_20_00, cdb.unmap(0));
  await thick.initiator.refused(0x05_24_00, [0x41, 0x08, 0, 0, 0, 0, 0, 0, 1, 0], { out: new Uint8Array(512) });
});

test('page B1h: no rotation; reads work at once after a block erase', async () => {
  const { initiator } = await makeBench();
  assert.deepEqual([...(await initiator.good(cdb.inquiry(0xb1)))].slice(4, 8), [0, 1, 0, 0x40]);
});
