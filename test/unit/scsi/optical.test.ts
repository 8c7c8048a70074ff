import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Image } from '../../../formats/image/image.ts';
import { another, type Bench, cdb, type Initiator, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const MiB = 1024 * 1024;
const NO_MEDIUM = 0x02_3a_00;
const CHANGED = 0x06_28_00;
const UNKNOWN = 0x05_20_00;

const toc = (format: number, start = 0, flags = 0, control = 0): number[] => [
  0x43,
  flags,
  format,
  0,
  0,
  0,
  start,
  0xff,
  0xff,
  control,
];
const configuration = (from = 0, which = 0): number[] => [0x46, which, 0, from, 0, 0, 0, 0xff, 0xff, 0];
const events = (classes: number, flags = 1, length = 8): number[] => [0x4a, flags, 0, 0, classes, 0, 0, 0, length, 0];
const structure = (format: number): number[] => [0xad, 0, 0, 0, 0, 0, 0, format, 0xff, 0xff, 0, 0];

function drive(size = MiB): Promise<Bench> {
  return makeBench({ optical: true, image: memoryImage({ size }) });
}

/** A disc of a size that memory does not hold: only asked for its size. */
function discOf(size: number): Image {
  const image = new SpyImage(memoryImage({ readOnly: true }));
  image.sizeShown = size;
  return image;
}

test('a drive is a removable unit of type 5 that conforms to MMC, without pages of disks', async () => {
  const { initiator } = await drive();
  const data = await initiator.good(cdb.inquiry());
  assert.deepEqual([...data.subarray(0, 8)], [5, 0x80, 6, 0x12, 91, 0x10, 0, 2]);
  assert.equal(Buffer.from(data.subarray(16, 32)).toString(), 'VIRTUAL DVD-ROM ');
  const pages = await initiator.good(cdb.inquiry(0));
  assert.deepEqual([...pages], [5, 0, 0, 4, 0x00, 0x80, 0x83, 0x86]);
  await initiator.refused(0x05_24_00, cdb.inquiry(0xb0));
});

test('blocks have 2048 bytes; READ(10) and READ(12) return them', async () => {
  const image = memoryImage({ size: MiB });
  const { initiator } = await makeBench({ optical: true, image });
  assert.deepEqual([...(await initiator.good(cdb.readCapacity10()))], [0, 0, 1, 0xff, 0, 0, 8, 0]);
  assert.equal((await initiator.good(cdb.read10(3, 2))).length, 4096);
  assert.equal((await initiator.good([0xa8, 0, 0, 0, 1, 0xff, 0, 0, 0, 1, 0, 0])).length, 2048);
  await initiator.refused(0x05_21_00, cdb.read10(512, 1));
});

test('what writes is unknown to a drive, and what is asked of drives is unknown to a disk', async () => {
  const { initiator } = await drive();
  for (const command of [cdb.write10(0, 1), [0x41], [0x42], [0x48, 2], [0x89], [0x2e], cdb.readCapacity16(), [0x83]]) {
    const outcome = await initiator.send(command, { out: new Uint8Array(2048) });
    assert.equal(outcome.status, 2);
    assert.ok([UNKNOWN, 0x05_24_00].includes(outcome.sense as number), outcome.sense?.toString(16));
  }
  const disk = (await makeBench()).initiator;
  for (const command of [toc(0), configuration(), events(0x10), structure(0), [0x51], [0x52], [0xbd], [0xbb]]) {
    await disk.refused(UNKNOWN, command);
  }
});

test('the table of contents has one data track up to the end, as blocks and as time', async () => {
  const { initiator } = await drive(4 * MiB); // 2048 blocks
  const byBlock = [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 8, 0];
  assert.deepEqual([...(await initiator.good(toc(0)))], byBlock);
  // 2048 + 150 frames of 1/75 s: 29 s and 23 frames.
  const byTime = [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xaa, 0, 0, 0, 29, 23];
  assert.deepEqual([...(await initiator.good(toc(0, 0, 2)))], byTime);
  assert.deepEqual([...(await initiator.good(toc(0, 0xaa)))], [0, 10, 1, 1, ...byBlock.slice(12)]);
  assert.deepEqual([...(await initiator.good(toc(1)))], [0, 10, 1, 1, ...byBlock.slice(4, 12)]);
  assert.deepEqual([...(await initiator.good(toc(0, 0, 0, 0x40)))], [0, 10, 1, 1, ...byBlock.slice(4, 12)]);
  const full = await initiator.good(toc(2));
  assert.deepEqual([full[1], full.length, full[7], full[18], full[29], full[40]], [46, 48, 0xa0, 0xa1, 0xa2, 1]);
  await initiator.refused(0x05_24_00, toc(0, 2));
  await initiator.refused(0x05_24_00, toc(5));
});

test('a disc is a CD by its size or else a DVD: profile, features and structure say the same', async () => {
  const cd = (await drive()).initiator;
  const dvd = (await makeBench({ optical: true, image: discOf(4_700_000_000) })).initiator;
  const profile = (data: Uint8Array): number => data[7] as number;
  const all = await cd.good(configuration());
  assert.equal(profile(all), 0x08);
  assert.equal(new DataView(all.buffer, all.byteOffset).getUint32(0), all.length - 4);
  assert.equal(profile(await dvd.good(configuration())), 0x10);
  assert.deepEqual([...(await cd.good(configuration(0x1f, 2))).subarray(8, 12)], [0, 0x1f, 0x04, 4]); // not current
  assert.deepEqual([...(await dvd.good(configuration(0x1f, 2))).subarray(8, 12)], [0, 0x1f, 0x05, 4]);
  assert.equal((await dvd.good(configuration(0x1e, 1))).subarray(8)[1], 0x1f); // current ones from there on
  await cd.refused(0x05_24_00, configuration(0, 3));
  await cd.refused(0x05_30_02, structure(0));
  const layer = (await dvd.good(structure(0))).subarray(4);
  const view = new DataView(layer.buffer, layer.byteOffset);
  assert.equal(view.getUint32(8) - view.getUint32(4) + 1, Math.floor(4_700_000_000 / 2048));
});

test('an eject and a new disc are media events, told once to each nexus', async () => {
  const { device, initiator } = await drive();
  const other = await another(device);
  const mediaEvent = async (who: Initiator): Promise<number[]> => [...(await who.good(events(0x10)))];
  assert.deepEqual(await mediaEvent(initiator), [0, 6, 4, 0x56, 0, 2, 0, 0]);
  await initiator.good(cdb.startStop(0x02));
  assert.deepEqual(await mediaEvent(initiator), [0, 6, 4, 0x56, 3, 1, 0, 0]);
  assert.deepEqual(await mediaEvent(initiator), [0, 6, 4, 0x56, 0, 1, 0, 0]);
  await initiator.good(cdb.startStop(0x03));
  assert.deepEqual(await mediaEvent(other), [0, 6, 4, 0x56, 2, 2, 0, 0]);
  await initiator.refused(0x05_24_00, events(0x10, 0));
  assert.deepEqual([...(await initiator.good(events(0)))], [0, 2, 0x80, 0x56]);
  assert.deepEqual([...(await initiator.good(events(0x04)))], [0, 6, 2, 0x56, 0, 1, 0, 0]);
});

test('an event that did not fit into the answer is told again', async () => {
  const { initiator } = await drive();
  await initiator.good(cdb.startStop(0x02));
  await initiator.good(events(0x10, 1, 4));
  assert.equal((await initiator.good(events(0x10)))[4], 3);
});

test('mode pages of a drive say what it reads, without a block descriptor', async () => {
  const { initiator } = await drive();
  const data = await initiator.good(cdb.modeSense10(0x2a));
  assert.deepEqual([...data.subarray(0, 14)], [0, 28, 0, 0, 0, 0, 0, 0, 0x2a, 0x14, 0x1b, 0, 0, 0]);
  await initiator.refused(0x05_24_00, cdb.modeSense10(0x08));
});

test('a disc that is changed is another one afterwards, and every nexus hears of it', async () => {
  const { device, initiator, image } = await drive();
  const other = await another(device);
  const next = memoryImage({ size: 2 * MiB });
  assert.equal(await device.unit(0)?.changeMedium(next), image);
  await initiator.refused(CHANGED, cdb.testUnitReady);
  await other.refused(CHANGED, cdb.testUnitReady);
  assert.deepEqual([...(await initiator.good(cdb.readCapacity10()))].slice(0, 4), [0, 0, 3, 0xff]);
  assert.equal((await initiator.good(cdb.read10(1000, 1))).length, 2048);
});

test('a drive without a disc loads nothing until one is put in', async () => {
  const { device, initiator } = await drive();
  await device.unit(0)?.changeMedium(undefined);
  await initiator.refused(NO_MEDIUM, cdb.startStop(0x03));
  await initiator.refused(NO_MEDIUM, cdb.testUnitReady);
  assert.equal((await initiator.good(configuration()))[7], 0);
  assert.equal(await device.unit(0)?.changeMedium(memoryImage()), undefined);
  await initiator.clearAttentions();
  await initiator.good(cdb.testUnitReady);
});

test('a disc that an initiator holds in stays, and the initiator is asked for it; by force it goes', async () => {
  const { device, initiator, image } = await drive();
  await initiator.good(cdb.preventAllow(1));
  await assert.rejects(async () => device.unit(0)?.changeMedium(memoryImage()), { code: 'LOCKED' });
  assert.deepEqual([...(await initiator.good(events(0x10)))].slice(4, 6), [1, 2]);
  await initiator.good(cdb.read10(0, 1));
  assert.equal(await device.unit(0)?.changeMedium(memoryImage(), true), image);
});

test('commands that run when the disc is changed finish on the old one', async () => {
  const slow = new SpyImage(memoryImage({ size: MiB }));
  const { device, initiator } = await makeBench({ optical: true, image: slow });
  const release = slow.hold();
  const reading = initiator.send(cdb.read10(0, 4));
  const changing = device.unit(0)?.changeMedium(memoryImage({ size: 2 * MiB }));
  await initiator.refused(NO_MEDIUM, cdb.read10(0, 1));
  await initiator.refused(NO_MEDIUM, cdb.startStop(0x03)); // the old disc cannot come back
  release();
  assert.equal((await reading).status, 0);
  assert.equal(await changing, slow);
});

test('the medium of a fixed disk cannot be changed', async () => {
  const { device } = await makeBench();
  await assert.rejects(async () => device.unit(0)?.changeMedium(memoryImage()), { code: 'INVALID' });
});

test('a removable disk takes a medium with other abilities: write protection and provisioning follow it', async () => {
  const { device, initiator } = await makeBench({ removable: true, image: memoryImage({ clusterSize: 4096 }) });
  assert.equal((await initiator.good(cdb.readCapacity16()))[14], 0xc0);
  await device.unit(0)?.changeMedium(memoryImage({ readOnly: true }));
  await initiator.clearAttentions();
  await initiator.refused(0x07_27_00, cdb.write10(0, 1), { out: new Uint8Array(512) });
});
