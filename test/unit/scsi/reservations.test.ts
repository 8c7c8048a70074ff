import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ReservationState, ReservationStore } from '../../../src/scsi/reservation-state.ts';
import { another, type Bench, cdb, Initiator, makeBench, makeNexus, type Outcome } from '../../support/scsi.ts';

const CONFLICT = 0x18;
const KEY_A = '00000000000000aa';
const KEY_B = '00000000000000bb';
const NONE = '0000000000000000';
const [REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_ABORT, IGNORE] = [0, 1, 2, 3, 4, 5, 6];
const WE = 1;
const EA = 3;
const WERO = 5;
const EARO = 6;
const WEAR = 7;
const EAAR = 8;

function parameters(key: string, newKey = NONE, flags = 0): Uint8Array {
  const list = Buffer.alloc(24);
  list.write(key, 0, 'hex');
  list.write(newKey, 8, 'hex');
  list[20] = flags;
  return list;
}

function out(initiator: Initiator, action: number, key: string, newKey = NONE, type = 0, flags = 0): Promise<Outcome> {
  return initiator.send(cdb.prOut(action, type), { out: parameters(key, newKey, flags) });
}

async function ok(initiator: Initiator, action: number, key: string, newKey = NONE, type = 0): Promise<void> {
  const { status, sense } = await out(initiator, action, key, newKey, type);
  assert.equal(status, 0, `action ${action}: status ${status}, sense ${sense?.toString(16)}`);
}

async function keys(initiator: Initiator): Promise<string[]> {
  const data = Buffer.from(await initiator.good(cdb.prIn(0)));
  assert.equal(data.readUInt32BE(4), data.length - 8);
  const list: string[] = [];
  for (let at = 8; at < data.length; at += 8) list.push(data.toString('hex', at, at + 8));
  return list;
}

async function reservation(initiator: Initiator): Promise<{ key: string; type: number } | undefined> {
  const data = Buffer.from(await initiator.good(cdb.prIn(1)));
  return data.length === 8 ? undefined : { key: data.toString('hex', 8, 16), type: data[21] as number };
}

/** Two registered nexuses and one that is not. */
async function three(): Promise<Bench & { a: Initiator; b: Initiator; c: Initiator }> {
  const bench = await makeBench({ removable: true });
  const a = bench.initiator;
  const b = await another(bench.device, 'iqn.2026-11.example:b');
  const c = await another(bench.device, 'iqn.2026-11.example:c');
  await ok(a, REGISTER, NONE, KEY_A);
  await ok(b, REGISTER, NONE, KEY_B);
  return { ...bench, a, b, c };
}

const DATA = { out: new Uint8Array(512) };
const read = (i: Initiator) => i.send(cdb.read10(0, 1));
const write = (i: Initiator) => i.send(cdb.write10(0, 1), DATA);

test('who may read and write under each type of reservation', async () => {
  const table: [type: number, other: [boolean, boolean], stranger: [boolean, boolean]][] = [
    [WE, [true, false], [true, false]],
    [EA, [false, false], [false, false]],
    [WERO, [true, true], [true, false]],
    [EARO, [true, true], [false, false]],
    [WEAR, [true, true], [true, false]],
    [EAAR, [true, true], [false, false]],
  ];
  for (const [type, other, stranger] of table) {
    const { a, b, c } = await three();
    await ok(a, RESERVE, KEY_A, NONE, type);
    for (const [initiator, [mayRead, mayWrite]] of [
      [a, [true, true]],
      [b, other],
      [c, stranger],
    ] as const) {
      assert.equal((await read(initiator)).status, mayRead ? 0 : CONFLICT, `type ${type} read`);
      assert.equal((await write(initiator)).status, mayWrite ? 0 : CONFLICT, `type ${type} write`);
      for (const command of [cdb.testUnitReady, cdb.inquiry(), cdb.reportLuns(), cdb.readCapacity10(), cdb.prIn(0)])
        await initiator.good(command);
    }
    // Allowing removal and starting are free, preventing and stopping are not.
    const prevented = other[1] ? 0 : CONFLICT;
    assert.equal((await b.send(cdb.preventAllow(1))).status, prevented);
    assert.equal((await b.send(cdb.preventAllow(0))).status, 0);
    assert.equal((await b.send(cdb.startStop(0))).status, prevented);
    assert.equal((await b.send(cdb.startStop(1))).status, 0);
    assert.equal((await b.send(cdb.modeSense6(0x3f))).status, prevented);
  }
});

test('REGISTER wants the present key, registers, changes and takes back', async () => {
  const { initiator: a } = await makeBench();
  assert.equal((await out(a, REGISTER, KEY_A, KEY_B)).status, CONFLICT);
  await ok(a, REGISTER, NONE, NONE);
  assert.deepEqual(await keys(a), []);
  await ok(a, REGISTER, NONE, KEY_A);
  assert.equal((await out(a, REGISTER, NONE, KEY_B)).status, CONFLICT);
  await ok(a, REGISTER, KEY_A, KEY_B);
  assert.deepEqual(await keys(a), [KEY_B]);
  await ok(a, IGNORE as number, KEY_A, KEY_A);
  assert.deepEqual(await keys(a), [KEY_A]);
  await ok(a, REGISTER, KEY_A, NONE);
  assert.deepEqual(await keys(a), []);
  assert.equal(Buffer.from(await a.good(cdb.prIn(0))).readUInt32BE(0), 4); // PRgeneration
});

test('without a registration nothing but registering works', async () => {
  const { a, c } = await three();
  await ok(a, RESERVE, KEY_A, NONE, WE);
  for (const action of [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_ABORT])
    assert.equal((await out(c, action as number, NONE, KEY_A, WE)).status, CONFLICT, `action ${action}`);
  assert.deepEqual(await reservation(c), { key: KEY_A, type: WE });
});

test('RESERVE again is fine for the holder and for the same type only', async () => {
  const { a, b } = await three();
  await ok(a, RESERVE, KEY_A, NONE, WE);
  await ok(a, RESERVE, KEY_A, NONE, WE);
  assert.equal((await out(a, RESERVE, KEY_A, NONE, EA)).status, CONFLICT);
  assert.equal((await out(b, RESERVE, KEY_B, NONE, WE)).status, CONFLICT);
  await a.refused(0x05_24_00, cdb.prOut(RESERVE, 2), { out: parameters(KEY_A) });
  await a.refused(0x05_24_00, cdb.prOut(RESERVE, 0x11), { out: parameters(KEY_A) });
});

test('RELEASE by the holder ends the reservation; registrants hear of it where they shared it', async () => {
  for (const [type, told] of [
    [WE, false],
    [WERO, true],
    [EAAR, true],
  ] as const) {
    const { a, b, c } = await three();
    await ok(a, RESERVE, KEY_A, NONE, type);
    if (type === WE) await ok(b, RELEASE, KEY_B, NONE, type); // not the holder: nothing happens
    assert.equal((await reservation(a))?.type, type);
    const wrong = await out(a, RELEASE, KEY_A, NONE, EA);
    assert.equal(wrong.sense, 0x05_26_04);
    await ok(a, RELEASE, KEY_A, NONE, type);
    assert.equal(await reservation(a), undefined);
    if (told) await b.refused(0x06_2a_04, cdb.testUnitReady);
    await b.good(cdb.testUnitReady);
    await c.good(cdb.testUnitReady);
  }
});

test('a holder that unregisters loses its reservation; one held by all lasts until the last has gone', async () => {
  const shared = await three();
  await ok(shared.a, RESERVE, KEY_A, NONE, WEAR);
  assert.deepEqual(await reservation(shared.c), { key: NONE, type: WEAR });
  await ok(shared.a, REGISTER, KEY_A, NONE);
  assert.equal((await reservation(shared.c))?.type, WEAR);
  await ok(shared.b, REGISTER, KEY_B, NONE);
  assert.equal(await reservation(shared.c), undefined);

  const single = await three();
  await ok(single.a, RESERVE, KEY_A, NONE, WERO);
  await ok(single.a, REGISTER, KEY_A, NONE);
  assert.equal(await reservation(single.c), undefined);
  await single.b.refused(0x06_2a_04, cdb.testUnitReady);
});

test('CLEAR takes everything and tells the others', async () => {
  const { a, b } = await three();
  await ok(a, RESERVE, KEY_A, NONE, WE);
  await ok(b, CLEAR as number, KEY_B);
  assert.deepEqual([await keys(b), await reservation(b)], [[], undefined]);
  await a.refused(0x06_2a_03, cdb.testUnitReady);
});

test('PREEMPT takes the reservation from the key that holds it', async () => {
  const { a, b, c } = await three();
  await ok(c, REGISTER, NONE, '00000000000000cc');
  await ok(a, RESERVE, KEY_A, NONE, WE);
  await ok(b, PREEMPT as number, KEY_B, KEY_A, WERO);
  assert.deepEqual(await reservation(b), { key: KEY_B, type: WERO });
  assert.deepEqual((await keys(b)).sort(), [KEY_B, '00000000000000cc'].sort());
  await a.refused(0x06_2a_05, cdb.testUnitReady);
  await c.refused(0x06_2a_04, cdb.testUnitReady); // the type has changed
  assert.equal((await out(b, PREEMPT as number, KEY_B, '0000000000001234', WE)).status, CONFLICT);
  assert.equal((await out(b, PREEMPT as number, KEY_B, NONE, WE)).sense, 0x05_26_00);
});

test('PREEMPT of another key only takes its registrations; zeros preempt all with an all-registrants type', async () => {
  const { a, b } = await three();
  await ok(a, RESERVE, KEY_A, NONE, WE);
  await ok(a, PREEMPT as number, KEY_A, KEY_B, EA);
  assert.deepEqual([await keys(a), await reservation(a)], [[KEY_A], { key: KEY_A, type: WE }]);
  await b.refused(0x06_2a_05, cdb.testUnitReady);

  const all = await three();
  await ok(all.a, RESERVE, KEY_A, NONE, EAAR);
  await ok(all.b, PREEMPT as number, KEY_B, NONE, WE);
  assert.deepEqual([await keys(all.b), await reservation(all.b)], [[KEY_B], { key: KEY_B, type: WE }]);
});

test('PREEMPT AND ABORT ends the tasks of those it preempts', async () => {
  const { SpyImage } = await import('../../support/spy-image.ts');
  const { memoryImage } = await import('../../support/scsi.ts');
  const image = new SpyImage(memoryImage());
  const { device, initiator: a } = await makeBench({ image });
  const b = await another(device);
  await ok(a, REGISTER, NONE, KEY_A);
  await ok(b, REGISTER, NONE, KEY_B);
  const open = image.hold();
  const pending = a.send(cdb.write10(0, 1), DATA);
  const preempting = out(b, PREEMPT_ABORT as number, KEY_B, KEY_A, WE);
  open();
  assert.equal((await pending).aborted, true);
  assert.equal((await preempting).status, 0);
});

test('registrations outlive a session of the same port, not of another', async () => {
  const { device, initiator: a } = await makeBench();
  await ok(a, REGISTER, NONE, KEY_A);
  await ok(a, RESERVE, KEY_A, NONE, EA);
  await device.detach(a.nexus);
  const again = new Initiator(device, makeNexus());
  await again.clearAttentions();
  assert.equal((await write(again)).status, 0);
  const otherPort = new Initiator(device, makeNexus('iqn.2026-11.example:a', '000000000002'));
  await otherPort.clearAttentions();
  assert.equal((await write(otherPort)).status, CONFLICT);
});

test('READ FULL STATUS names ports and the holder', async () => {
  const { a, b } = await three();
  await ok(a, RESERVE, KEY_A, NONE, EA);
  const data = Buffer.from(await b.good(cdb.prIn(3)));
  const found: { key: string; holder: boolean; port: string; type: number }[] = [];
  for (let at = 8; at < data.length; ) {
    const length = data.readUInt32BE(at + 20);
    found.push({
      key: data.toString('hex', at, at + 8),
      holder: ((data[at + 12] as number) & 1) !== 0,
      type: data[at + 13] as number,
      port: data.toString('utf8', at + 28, at + 24 + length).replace(/\0+$/, ''),
    });
    assert.equal(data.readUInt16BE(at + 18), 1);
    at += 24 + length;
  }
  assert.deepEqual(found, [
    { key: KEY_A, holder: true, type: EA, port: a.nexus.initiatorPort },
    { key: KEY_B, holder: false, type: 0, port: b.nexus.initiatorPort },
  ]);
});

test('SPEC_I_PT registers other ports, ALL_TG_PT for every target port; malformed lists register nobody', async () => {
  const { device, initiator: a } = await makeBench();
  const b = await another(device);
  const id = b.nexus.transportId;
  const list = Buffer.concat([parameters(NONE, KEY_A, 0x0c), Buffer.from([0, 0, 0, id.length]), id]);
  const bad = Buffer.from(list);
  bad[bad.length - id.length + 3] = 3;
  await a.refused(0x05_26_00, cdb.prOut(REGISTER, 0, bad.length), { out: bad });
  await a.refused(0x05_1a_00, cdb.prOut(REGISTER, 0, list.length - 4), { out: list.subarray(0, list.length - 4) });
  assert.deepEqual(await keys(a), []);
  await a.good(cdb.prOut(REGISTER, 0, list.length), { out: list });
  assert.deepEqual(await keys(a), [KEY_A, KEY_A]);
  await ok(b, RESERVE, KEY_A, NONE, EA);
  assert.equal((await write(a)).status, CONFLICT);
  await a.refused(0x05_26_00, cdb.prOut(REGISTER, 0, list.length), { out: list }); // registered already
});

test('REGISTER AND MOVE hands the reservation to another port', async () => {
  const { a, c } = await three();
  await ok(a, RESERVE, KEY_A, NONE, EA);
  const id = c.nexus.transportId;
  const list = Buffer.concat([parameters(KEY_A, '00000000000000cc'), id]);
  list.fill(0, 16, 24);
  list[17] = 0x02; // UNREG
  list[19] = 1;
  list.writeUInt32BE(id.length, 20);
  await a.good(cdb.prOut(7, 0, list.length), { out: list });
  assert.deepEqual(await reservation(a), { key: '00000000000000cc', type: EA });
  assert.deepEqual((await keys(a)).sort(), [KEY_B, '00000000000000cc'].sort());
  assert.equal((await write(c)).status, 0);
  assert.equal((await write(a)).status, CONFLICT);
  assert.equal((await a.send(cdb.prOut(7, 0, list.length), { out: list })).status, CONFLICT);
});

test('parameter lists of another length are refused', async () => {
  const { initiator: a } = await makeBench();
  await a.refused(0x05_1a_00, cdb.prOut(REGISTER, 0, 23), { out: new Uint8Array(23) });
  await a.refused(0x05_1a_00, cdb.prOut(REGISTER, 0, 28), { out: new Uint8Array(28) });
  await a.refused(0x05_1a_00, cdb.prOut(REGISTER, 0, 24), { out: new Uint8Array(20) });
  await a.refused(0x05_1a_00, cdb.prOut(REGISTER, 0, 0x7fffffff), { out: new Uint8Array(24) });
  await a.refused(0x05_24_00, cdb.prOut(8), { out: parameters(NONE) });
  await a.refused(0x05_24_00, cdb.prIn(4));
  await a.refused(0x05_26_00, cdb.prOut(REGISTER), { out: parameters(NONE, KEY_A, 1) }); // APTPL without a store
});

class MemoryStore implements ReservationStore {
  readonly initial: ReservationState | undefined;
  saved: ReservationState[] = [];
  failure: Error | undefined;
  busy = 0;

  constructor(initial?: ReservationState) {
    this.initial = initial;
  }

  async save(state: ReservationState): Promise<void> {
    assert.equal(++this.busy, 1, 'saves overlap');
    await new Promise((resolve) => setImmediate(resolve));
    this.busy--;
    if (this.failure !== undefined) throw this.failure;
    this.saved.push(state);
  }
}

test('with APTPL every change is saved before it counts, and comes back with the store', async () => {
  const store = new MemoryStore();
  const { device, initiator: a } = await makeBench({ reservationStore: store });
  const b = await another(device);
  assert.equal((await out(a, REGISTER, NONE, KEY_A, 0, 1)).status, 0);
  await Promise.all([out(b, REGISTER, NONE, KEY_B, 0, 1), ok(a, RESERVE, KEY_A, NONE, WE)]);
  assert.equal(store.saved.length, 3);
  assert.equal((await a.good(cdb.prIn(2)))[3], 0x81);

  store.failure = new Error('disk full');
  assert.equal((await out(a, CLEAR as number, KEY_A)).status, 2);
  assert.deepEqual(await keys(a), [KEY_A, KEY_B]);

  const restored = await makeBench({ reservationStore: new MemoryStore(store.saved.at(-1)) });
  assert.equal((await write(restored.initiator)).status, 0); // the same port as a
  assert.equal((await write(await another(restored.device))).status, CONFLICT);
});

test('RESERVE(6) keeps others out until released, lost or reset', async () => {
  for (const end of ['release', 'logout', 'lun reset', 'target reset'] as const) {
    const { device, initiator: a } = await makeBench();
    const b = await another(device);
    await a.good(cdb.reserve6);
    await a.good(cdb.reserve6);
    for (const command of [cdb.testUnitReady, cdb.read10(0, 1), cdb.modeSense6(0x3f), cdb.reserve6, cdb.prIn(0)])
      assert.equal((await b.send(command)).status, CONFLICT);
    for (const command of [cdb.inquiry(), cdb.requestSense(), cdb.reportLuns(), cdb.release6]) await b.good(command);
    assert.equal((await a.send(cdb.prIn(0))).status, CONFLICT);
    assert.equal((await write(a)).status, 0);
    if (end === 'release') await a.good([0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    if (end === 'logout') await device.detach(a.nexus);
    if (end === 'lun reset') await device.manage(b.nexus, 0, 5);
    if (end === 'target reset') await device.manage(b.nexus, 0, 6);
    await b.clearAttentions();
    assert.equal((await write(b)).status, 0, end);
  }
});

test('with persistent registrations RESERVE(6) succeeds without effect for who has access, and conflicts for others', async () => {
  const { a, b, c } = await three();
  assert.equal((await a.send(cdb.reserve6)).status, CONFLICT);
  await ok(a, RESERVE, KEY_A, NONE, WE);
  await a.good(cdb.reserve6);
  await a.good(cdb.release6);
  assert.equal((await b.send(cdb.reserve6)).status, CONFLICT);
  assert.equal((await c.send(cdb.release6)).status, CONFLICT);
  await b.good(cdb.read10(0, 1));
});
