import assert from 'node:assert/strict';
import { test } from 'node:test';
import { another, cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const INVALID_FIELD = 0x05_24_00;
const INVALID_PARAMETER = 0x05_26_00;
const LENGTH_ERROR = 0x05_1a_00;

const CACHING = 0x08;
const CONTROL = 0x0a;
const PAGES = [0x01, CACHING, CONTROL, 0x1c];

/** The pages of MODE SENSE data by code. */
function pagesOf(data: Uint8Array, header: number): Map<number, Uint8Array> {
  const pages = new Map<number, Uint8Array>();
  for (let at = header; at < data.length; at += 2 + (data[at + 1] as number))
    pages.set((data[at] as number) & 0x3f, data.slice(at, at + 2 + (data[at + 1] as number)));
  return pages;
}

test('MODE SENSE returns each page alone, all of them for 3Fh, and refuses the rest', async () => {
  const { initiator } = await makeBench();
  for (let code = 0; code < 0x40; code++) {
    const command = cdb.modeSense6(code, 0, 0x08);
    if (code !== 0x3f && !PAGES.includes(code)) {
      await initiator.refused(INVALID_FIELD, command);
      continue;
    }
    const data = await initiator.good(command);
    assert.equal(data[0], data.length - 1);
    assert.deepEqual([...pagesOf(data, 4).keys()], code === 0x3f ? PAGES : [code]);
  }
  await initiator.refused(INVALID_FIELD, [0x1a, 0, CACHING, 1, 255, 0]); // no subpages
  assert.equal(pagesOf(await initiator.good([0x1a, 8, 0x3f, 0xff, 255, 0]), 4).size, 4);
});

test('the block descriptor is there unless DBD, short or long as asked', async () => {
  const { initiator } = await makeBench({ blockSize: 4096 });
  const short = await initiator.good(cdb.modeSense6(CACHING));
  assert.deepEqual([...short.subarray(2, 12)], [0x10, 8, 0, 0, 1, 0, 0, 0, 0x10, 0]);
  const ten = await initiator.good(cdb.modeSense10(CACHING));
  assert.deepEqual([...ten.subarray(0, 16)], [0, 34, 0, 0x10, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 0x10, 0]);
  const long = await initiator.good(cdb.modeSense10(CACHING, 0, 0x10));
  assert.deepEqual([...long.subarray(4, 24)], [1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]);
  assert.equal((await initiator.good(cdb.modeSense10(CACHING, 0, 0x18)))[7], 0);
});

test('a capacity of 2^32 blocks and more is all ones in a short block descriptor', async () => {
  const image = new SpyImage(memoryImage());
  image.sizeShown = 2 ** 42;
  const { initiator } = await makeBench({ image });
  assert.deepEqual([...(await initiator.good(cdb.modeSense6(CACHING))).subarray(4, 8)], [255, 255, 255, 255]);
  const long = await initiator.good(cdb.modeSense10(CACHING, 0, 0x10));
  assert.deepEqual([...long.subarray(8, 16)], [0, 0, 0, 2, 0, 0, 0, 0]);
});

test('page control: current, changeable, default; saved values are not supported', async () => {
  const { initiator } = await makeBench();
  const read = async (control: number) => pagesOf(await initiator.good(cdb.modeSense6(0x3f, control, 8)), 4);
  const defaults = await read(2);
  assert.deepEqual(await read(0), defaults);
  const changeable = await read(1);
  assert.equal(changeable.get(CACHING)?.[2], 0x04);
  assert.deepEqual(
    [2, 4, 5].map((at) => changeable.get(CONTROL)?.[at]),
    [0x04, 0x08, 0x40],
  );
  await initiator.refused(0x05_39_00, cdb.modeSense6(0x3f, 3));

  const page = defaults.get(CONTROL) as Uint8Array;
  page[4] = 0x08;
  await initiator.good(cdb.modeSelect6(16), { out: Uint8Array.of(0, 0, 0, 0, ...page) });
  assert.equal((await read(0)).get(CONTROL)?.[4], 0x08);
  assert.equal((await read(2)).get(CONTROL)?.[4], 0);
});

test('SWP protects the medium, D_SENSE changes the format of sense data', async () => {
  const { initiator } = await makeBench();
  const page = pagesOf(await initiator.good(cdb.modeSense6(CONTROL, 0, 8)), 4).get(CONTROL) as Uint8Array;
  const select = (at: number, value: number) => {
    const changed = page.slice();
    changed[at] = value;
    return initiator.good(cdb.modeSelect10(20), { out: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, ...changed) });
  };
  await select(4, 0x08);
  await initiator.refused(0x07_27_00, cdb.write10(0, 1), { out: new Uint8Array(512) });
  assert.equal((await initiator.good(cdb.modeSense6(CACHING)))[2], 0x90);
  await select(2, (page[2] as number) | 0x04);
  await initiator.good(cdb.write10(0, 1), { out: new Uint8Array(512) });
  const { senseBytes } = await initiator.refused(0x05_21_00, cdb.read10(9999, 1));
  assert.equal(senseBytes[0], 0x72);
});

test('MODE SELECT takes all of a list or nothing', async () => {
  const { initiator } = await makeBench();
  const pages = pagesOf(await initiator.good(cdb.modeSense6(0x3f, 0, 8)), 4);
  const caching = (pages.get(CACHING) as Uint8Array).slice();
  caching[2] = 0;
  const control = (pages.get(CONTROL) as Uint8Array).slice();
  const header = [0, 0, 0, 0];
  const cases: [string, number[], number][] = [
    ['a fixed bit', [...header, ...caching, ...control.with(3, 0x10)], INVALID_PARAMETER],
    ['a page that does not exist', [...header, ...caching, 0x02, 2, 0, 0], INVALID_PARAMETER],
    ['a page of the wrong length', [...header, ...caching, 0x0a, 8, ...new Array(8).fill(0)], INVALID_PARAMETER],
    ['a page that is cut', [...header, ...caching, ...control.subarray(0, 6)], INVALID_PARAMETER],
    ['a subpage', [...header, ...caching, 0x4a, 10, ...control.subarray(2)], INVALID_PARAMETER],
    ['a block descriptor that is cut', [0, 0, 0, 8, 0, 0], LENGTH_ERROR],
    ['another block size', [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 4, 0, ...caching], INVALID_PARAMETER],
    ['another capacity', [0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 2, 0, ...caching], INVALID_PARAMETER],
    ['a short header', [0, 0], LENGTH_ERROR],
  ];
  for (const [what, list, sense] of cases) {
    const outcome = await initiator.send(cdb.modeSelect6(list.length), { out: Uint8Array.from(list) });
    assert.equal(outcome.sense?.toString(16), sense.toString(16), what);
    assert.deepEqual(pagesOf(await initiator.good(cdb.modeSense6(0x3f, 0, 8)), 4), pages, what);
  }
  await initiator.refused(LENGTH_ERROR, cdb.modeSelect6(40), { out: new Uint8Array(24) });
  await initiator.refused(INVALID_FIELD, cdb.modeSelect6(24, 0x11), { out: new Uint8Array(24) }); // SP
  await initiator.refused(INVALID_FIELD, cdb.modeSelect6(24, 0), { out: new Uint8Array(24) }); // PF
  await initiator.good(cdb.modeSelect6(0));
  await initiator.good(cdb.modeSelect6(12), { out: Uint8Array.of(0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 2, 0) });
});

test('a change is told to the other nexuses, no change to nobody; a reset brings the defaults back', async () => {
  const { device, initiator } = await makeBench();
  const other = await another(device);
  const data = await initiator.good(cdb.modeSense6(CACHING, 0, 8));
  const list = Uint8Array.of(0, 0, 0, 0, ...data.subarray(4));
  await initiator.good(cdb.modeSelect6(24), { out: list });
  await other.good(cdb.testUnitReady);
  list[6] = 0; // WCE off
  await initiator.good(cdb.modeSelect6(24), { out: list });
  await other.refused(0x06_2a_01, cdb.testUnitReady);
  await initiator.good(cdb.testUnitReady);
  await device.manage(other.nexus, 0, 5);
  await initiator.clearAttentions();
  assert.equal((await initiator.good(cdb.modeSense6(CACHING, 0, 8)))[6], 0x04);
});
