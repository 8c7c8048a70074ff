import assert from 'node:assert/strict';
import { test } from 'node:test';
import { another, cdb, makeBench, memoryImage } from '../../support/scsi.ts';
import { SpyImage } from '../../support/spy-image.ts';

const HEAD_OF_QUEUE = 1;
const ORDERED = 2;
const ACA = 4;
const block = (value: number) => ({ out: new Uint8Array(512).fill(value) });

async function slowBench() {
  const image = new SpyImage(memoryImage());
  const bench = await makeBench({ image });
  const ended: string[] = [];
  const note = <T>(name: string, sent: Promise<T>): Promise<T> =>
    sent.then((outcome) => {
      ended.push(name);
      return outcome;
    });
  return { ...bench, image, ended, note };
}

test('an ORDERED task waits for what came before it and holds back what comes after it', async () => {
  const { initiator, image, ended, note } = await slowBench();
  const open = image.hold();
  const all = [
    note('simple 1', initiator.send(cdb.write10(0, 1), block(1))),
    note('ordered', initiator.send(cdb.write10(0, 1), { ...block(2), attribute: ORDERED })),
    note('simple 2', initiator.send(cdb.read10(0, 1))),
    note('simple 3', initiator.send(cdb.testUnitReady)),
  ];
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual([ended, image.log], [[], ['write 0 512']]);
  open();
  const outcomes = await Promise.all(all);
  assert.deepEqual(ended.slice(0, 2), ['simple 1', 'ordered']);
  assert.equal(outcomes[2]?.data[0], 2);
});

test('an ORDERED task waits for all that came before it, not for the first that ends', async () => {
  const { initiator, image, ended, note } = await slowBench();
  const openFirst = image.hold();
  const first = note('first', initiator.send(cdb.read10(0, 1)));
  const openSecond = image.hold();
  const second = note('second', initiator.send(cdb.read10(1, 1)));
  const ordered = note('ordered', initiator.send(cdb.testUnitReady, { attribute: ORDERED }));
  openFirst();
  await first;
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(ended, ['first']);
  openSecond();
  await Promise.all([second, ordered]);
  assert.deepEqual(ended, ['first', 'second', 'ordered']);
});

test('a HEAD OF QUEUE task passes those that wait, and holds back new SIMPLE ones while it runs', async () => {
  const { initiator, image, ended, note } = await slowBench();
  const openFirst = image.hold();
  const first = note('simple', initiator.send(cdb.read10(0, 1)));
  const ordered = note('ordered', initiator.send(cdb.testUnitReady, { attribute: ORDERED }));
  const head = note('head', initiator.send(cdb.testUnitReady, { attribute: HEAD_OF_QUEUE }));
  assert.equal((await head).now, true);
  assert.deepEqual(ended, ['head']);
  openFirst();
  await Promise.all([first, ordered]);

  const openHead = image.hold();
  const slowHead = note('slow head', initiator.send(cdb.read10(0, 1), { attribute: HEAD_OF_QUEUE }));
  const after = note('after', initiator.send(cdb.testUnitReady));
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(ended, ['head', 'simple', 'ordered']);
  openHead();
  await Promise.all([slowHead, after]);
  assert.deepEqual(ended.slice(3), ['slow head', 'after']);
});

test('with nothing before it an ORDERED task completes at once; ACA is refused', async () => {
  const { initiator } = await slowBench();
  assert.equal((await initiator.send(cdb.read10(0, 1), { attribute: ORDERED })).now, true);
  assert.equal((await initiator.send(cdb.testUnitReady)).now, true);
  await initiator.refused(0x05_49_00, cdb.testUnitReady, { attribute: ACA });
});

test('ABORT TASK ends one task by its tag, running or waiting, and answers after that', async () => {
  const { device, initiator, image } = await slowBench();
  const open = image.hold();
  const running = initiator.send(cdb.read10(0, 1), { tag: 11 });
  const waiting = initiator.send(cdb.testUnitReady, { tag: 12, attribute: ORDERED });
  const behind = initiator.send(cdb.testUnitReady, { tag: 13 });
  assert.equal(await device.manage(initiator.nexus, 0, 1, 12), 0);
  assert.equal((await waiting).aborted, true);
  assert.equal((await behind).status, 0); // nothing holds it back any more
  let answered = false;
  const aborting = device.manage(initiator.nexus, 0, 1, 11).then((response) => {
    answered = true;
    return response;
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(answered, false);
  open();
  assert.equal((await running).aborted, true);
  assert.equal(await aborting, 0);
  assert.equal(await device.manage(initiator.nexus, 0, 1, 11), 1); // no such task
});

test('ABORT TASK SET is about one nexus, CLEAR TASK SET about all; those cleared hear of it', async () => {
  const { device, initiator, image } = await slowBench();
  const other = await another(device);
  let open = image.hold();
  let mine = initiator.send(cdb.read10(0, 1));
  let theirs = other.send(cdb.read10(0, 1));
  let managed = device.manage(initiator.nexus, 0, 2);
  open();
  assert.deepEqual([(await mine).aborted, (await theirs).aborted, await managed], [true, false, 0]);

  open = image.hold();
  mine = initiator.send(cdb.read10(0, 1));
  theirs = other.send(cdb.read10(0, 1));
  managed = device.manage(initiator.nexus, 0, 4);
  open();
  assert.deepEqual([(await mine).aborted, (await theirs).aborted, await managed], [true, true, 0]);
  assert.deepEqual(await other.clearAttentions(), [0x06_2f_00]);
  assert.deepEqual(await initiator.clearAttentions(), []);
});

test('with TAS tasks that another nexus cleared end with TASK ABORTED and no attention', async () => {
  const { device, initiator, image } = await slowBench();
  const other = await another(device);
  const page = (await initiator.good(cdb.modeSense6(0x0a, 0, 8))).subarray(4);
  page[5] = 0x40;
  await initiator.good(cdb.modeSelect6(16), { out: Uint8Array.of(0, 0, 0, 0, ...page) });
  await other.clearAttentions();
  const open = image.hold();
  const theirs = other.send(cdb.read10(0, 1));
  const queued = other.send(cdb.testUnitReady, { attribute: ORDERED });
  const mine = initiator.send(cdb.read10(0, 1), { attribute: HEAD_OF_QUEUE });
  const managed = device.manage(initiator.nexus, 0, 4);
  open();
  for (const outcome of [await theirs, await queued])
    assert.deepEqual([outcome.status, outcome.aborted], [0x40, false]);
  assert.equal((await mine).aborted, true);
  await managed;
  assert.deepEqual(await other.clearAttentions(), []);
});

test('detach resolves when the tasks of the nexus have ended', async () => {
  const { device, initiator, image } = await slowBench();
  const open = image.hold();
  const pending = initiator.send(cdb.read10(0, 1));
  let gone = false;
  const detached = device.detach(initiator.nexus).then(() => {
    gone = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(gone, false);
  open();
  assert.equal((await pending).aborted, true);
  await detached;
});

test('more tasks than a unit takes get TASK SET FULL', async () => {
  const { initiator, image } = await slowBench();
  const open = image.hold();
  const first = initiator.send(cdb.read10(0, 1));
  const sent = Array.from({ length: 4100 }, () => initiator.send(cdb.testUnitReady, { attribute: ORDERED }));
  assert.equal((await sent.at(-1))?.status, 0x28);
  open();
  await first;
  const outcomes = await Promise.all(sent);
  assert.equal(outcomes.filter(({ status }) => status === 0).length, 4095);
});
