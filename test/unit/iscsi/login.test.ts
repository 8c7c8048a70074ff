import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, test } from 'node:test';
import type { IscsiTargetOptions } from '../../../src/iscsi/target.ts';
import { MemoryPortal, TARGET_NAME } from '../../support/iscsi-endpoint.ts';
import type { IscsiInitiator } from '../../support/iscsi-initiator.ts';
import { textBytes, textOf } from '../../support/iscsi-wire.ts';

const NAME = 'iqn.2026-11.lunette.test:initiator';
const WHO = { InitiatorName: NAME, TargetName: TARGET_NAME, SessionType: 'Normal' };
const CHAP = {
  chap: { user: 'guest', secret: 'open-sesame-1' },
  mutualChap: { user: 'host', secret: 'open-sesame-2' },
};

/** Status of one Login Request in a fresh connection, and what it answers. */
async function say(
  flags: number,
  keys: Readonly<Record<string, string>>,
  target: Partial<IscsiTargetOptions> = {},
): Promise<{ status: number; flags: number; text: Map<string, string> }> {
  const pdu = await new MemoryPortal({ target }).connect().initiator.sayLogin({ flags, data: textBytes(keys) });
  return { status: pdu.bytes.readUInt16BE(36), flags: pdu.flags, text: textOf(pdu.data) };
}

describe('login', () => {
  test('goes straight to the end from the operational stage', async () => {
    const { status, flags, text } = await say(0x87, WHO);
    assert.deepEqual([status, flags], [0, 0x87]);
    assert.equal(text.get('TargetPortalGroupTag'), '1');
    assert.equal(text.get('MaxRecvDataSegmentLength'), '262144');
  });

  test('names are compared without regard to case', async () => {
    assert.equal((await say(0x87, { ...WHO, TargetName: TARGET_NAME.toUpperCase() })).status, 0);
  });

  for (const [name, keys, status] of [
    ['no InitiatorName', { TargetName: TARGET_NAME }, 0x0207],
    ['no TargetName', { InitiatorName: NAME }, 0x0207],
    ['an unknown target', { ...WHO, TargetName: `${TARGET_NAME}x` }, 0x0203],
    ['an unknown session type', { ...WHO, SessionType: 'Both' }, 0x0209],
    ['a name with blanks', { ...WHO, InitiatorName: 'iqn x' }, 0x0200],
  ] as const) {
    test(`${name} is refused with 0x${status.toString(16).padStart(4, '0')}`, async () => {
      assert.equal((await say(0x87, keys)).status, status);
    });
  }

  test('an initiator that is not on the allow-list is refused', async () => {
    const allowedInitiators = ['iqn.2026-11.lunette.test:friend'];
    assert.equal((await say(0x87, WHO, { allowedInitiators })).status, 0x0202);
    assert.equal((await say(0x87, WHO, { allowedInitiators: [NAME.toUpperCase()] })).status, 0);
  });

  test('a later version of the protocol is refused', async () => {
    const { initiator } = new MemoryPortal().connect();
    const pdu = await initiator.sayLogin({ flags: 0x87, data: textBytes(WHO), version: 1 });
    assert.equal(pdu.bytes.readUInt16BE(36), 0x0205);
  });

  for (const flags of [0x84, 0x80, 0x82, 0x8b, 0x0b, 0xc7]) {
    test(`flags 0x${flags.toString(16)} make no sense and are refused`, async () => {
      assert.equal((await say(flags, WHO)).status, 0x0200);
    });
  }

  test('text in pieces is put together, and a key may be given once only', async () => {
    const { initiator } = new MemoryPortal().connect();
    const text = textBytes({ ...WHO, HeaderDigest: 'CRC32C,None', MaxBurstLength: '65536' });
    for (let at = 0; at < text.length - 10; at += 10) {
      const pdu = await initiator.sayLogin({ flags: 0x44, data: text.subarray(at, at + 10) });
      assert.deepEqual([pdu.bytes.readUInt16BE(36), pdu.flags, pdu.data.length], [0, 0x04, 0]);
    }
    const last = text.length - ((text.length - 1) % 10) - 1;
    const pdu = await initiator.sayLogin({ flags: 0x04, data: text.subarray(last) });
    assert.equal(textOf(pdu.data).get('HeaderDigest'), 'CRC32C');
    assert.equal(textOf(pdu.data).get('MaxBurstLength'), '65536');
    const again = await initiator.sayLogin({ flags: 0x87, data: textBytes({ HeaderDigest: 'None' }) });
    assert.equal(again.bytes.readUInt16BE(36), 0x0200);
  });

  test('text without end is refused', async () => {
    const { initiator } = new MemoryPortal().connect();
    const data = Buffer.alloc(8000, 0x41);
    await initiator.sayLogin({ flags: 0x44, data });
    await initiator.sayLogin({ flags: 0x44, data });
    assert.equal((await initiator.sayLogin({ flags: 0x44, data })).bytes.readUInt16BE(36), 0x0200);
  });

  test('a long answer is continued, and the stage changes with its last piece', async () => {
    const { initiator } = new MemoryPortal().connect();
    const unknown = Object.fromEntries(Array.from({ length: 600 }, (_, i) => [`X-${i}`, '1']));
    const first = await initiator.sayLogin({ flags: 0x87, data: textBytes({ ...WHO, ...unknown }) });
    assert.deepEqual([first.flags, first.data.length], [0x44, 8192]);
    const second = await initiator.sayLogin({ flags: 0x87, data: new Uint8Array(0) });
    assert.equal(second.flags, 0x87);
    const text = textOf(Buffer.concat([first.data, second.data]));
    assert.equal([...text.values()].filter((value) => value === 'NotUnderstood').length, 600);
  });

  test('ITT, ISID and CID stay the same', async () => {
    for (const change of [{ itt: 7 }, { isid: '000000000009' }, { cid: 3 }, { tsih: 9 }]) {
      const { initiator } = new MemoryPortal().connect();
      await initiator.sayLogin({ flags: 0x04, data: textBytes(WHO) });
      const pdu = await initiator.sayLogin({ flags: 0x87, data: new Uint8Array(0), ...change });
      assert.equal(pdu.bytes.readUInt16BE(36), 0x0200);
    }
  });

  test('anything but a login before login ends the connection without an answer', async () => {
    const portal = new MemoryPortal();
    const connection = portal.connect();
    connection.initiator.send({ opcode: 1, itt: 1 });
    assert.match(connection.closeReason as string, /opcode 0x1 before login/);
    assert.equal(portal.counters.pdusOut, 0);
  });
});

describe('operational keys', () => {
  const cases: Readonly<Record<string, readonly [string, string]>> = {
    'InitialR2T (theirs Yes)': ['Yes', 'Yes'],
    'InitialR2T (theirs No)': ['No', 'No'],
    'ImmediateData (theirs No)': ['No', 'No'],
    'ImmediateData (theirs nonsense)': ['Maybe', 'Reject'],
    MaxConnections: ['8', '1'],
    MaxBurstLength: ['16776192', '1048576'],
    FirstBurstLength: ['0x400', '1024'],
    'FirstBurstLength (too short)': ['511', 'Reject'],
    MaxOutstandingR2T: ['65535', '4'],
    DefaultTime2Wait: ['0', '2'],
    DefaultTime2Retain: ['20', '0'],
    ErrorRecoveryLevel: ['2', '0'],
    HeaderDigest: ['MD5,CRC32C,None', 'CRC32C'],
    DataDigest: ['MD5', 'Reject'],
    DataPDUInOrder: ['No', 'Yes'],
    IFMarker: ['Yes', 'No'],
    OFMarkInt: ['1~2', 'Irrelevant'],
    TaskReporting: ['FastAbort,RFC3720', 'RFC3720'],
    MaxRecvDataSegmentLength: ['8192', '262144'],
    'X-com.example.key': ['1', 'NotUnderstood'],
    'constructor (of Object)': ['1', 'NotUnderstood'],
    iSCSIProtocolLevel: ['2', '1'],
  };
  for (const [name, [value, answer]] of Object.entries(cases)) {
    const key = name.split(' ')[0] as string;
    test(`${name} ${value} gives ${answer}`, async () => {
      assert.equal((await say(0x87, { ...WHO, [key]: value })).text.get(key), answer);
    });
  }

  test('FirstBurstLength is never above MaxBurstLength, whichever comes first', async () => {
    const { text } = await say(0x87, { ...WHO, FirstBurstLength: '262144', MaxBurstLength: '8192' });
    assert.equal(text.get('FirstBurstLength'), '8192');
  });

  test('keys of normal sessions are irrelevant in a discovery session', async () => {
    const keys = { InitiatorName: NAME, SessionType: 'Discovery', MaxBurstLength: '512', HeaderDigest: 'None' };
    const { status, text } = await say(0x87, keys);
    assert.equal(status, 0);
    assert.equal(text.get('MaxBurstLength'), 'Irrelevant');
    assert.equal(text.get('HeaderDigest'), 'None');
    assert.equal(text.has('TargetPortalGroupTag'), false);
  });
});

describe('CHAP', () => {
  const login = (options: object, target: Partial<IscsiTargetOptions> = CHAP): Promise<void> =>
    new MemoryPortal({ target }).connect().initiator.login({ target: TARGET_NAME, ...options });
  const guest = { user: 'guest', secret: 'open-sesame-1' };

  for (const algorithm of ['5', '6', '7', '8']) {
    test(`algorithm ${algorithm}, one way and mutual`, async () => {
      await login({ ...guest, algorithms: algorithm });
      await login({ ...guest, algorithms: algorithm, targetSecret: 'open-sesame-2' });
      await assert.rejects(login({ ...guest, secret: 'open-sesame-3', algorithms: algorithm }), { status: 0x0201 });
    });
  }

  test("the first algorithm of the initiator's list that is allowed is taken", async () => {
    const answer = async (offer: string, chapAlgorithms?: number[]): Promise<string | undefined> => {
      const { initiator } = new MemoryPortal({ target: { ...CHAP, chapAlgorithms } }).connect();
      await initiator.sayLogin({ flags: 0x00, data: textBytes({ ...WHO, AuthMethod: 'CHAP' }) });
      return textOf((await initiator.sayLogin({ flags: 0, data: textBytes({ CHAP_A: offer }) })).data).get('CHAP_A');
    };
    assert.equal(await answer('9,7,5'), '7');
    assert.equal(await answer('5,7'), '5');
    assert.equal(await answer('5,6,7', [7, 8]), '7');
    assert.equal(await answer('5,6', [7, 8]), undefined);
  });

  test('a wrong name, no authentication, or a way around it is refused', async () => {
    await assert.rejects(login({ ...guest, user: 'Guest' }), { status: 0x0201 });
    await assert.rejects(login({}), { status: 0x0201 });
    assert.equal((await say(0x87, WHO, CHAP)).status, 0x0201);
    assert.equal((await say(0x83, WHO, CHAP)).status, 0x0201);
    // Transit is not granted before the proof.
    assert.equal((await say(0x83, { ...WHO, AuthMethod: 'CHAP' }, CHAP)).flags, 0x00);
  });

  test('an initiator that wants proof of a target that has none is refused', async () => {
    await assert.rejects(login({ ...guest, targetSecret: 'open-sesame-2' }, { chap: CHAP.chap }), { status: 0x0201 });
  });

  test('without CHAP a target takes who offers None, and refuses who offers CHAP only', async () => {
    assert.equal((await say(0x81, { ...WHO, AuthMethod: 'CHAP,None' })).text.get('AuthMethod'), 'None');
    assert.equal((await say(0x81, { ...WHO, AuthMethod: 'CHAP' })).status, 0x0201);
  });

  test('discovery has credentials of its own', async () => {
    const portal = new MemoryPortal({ discovery: { chap: guest }, target: CHAP });
    await assert.rejects(portal.connect().initiator.login({}), { status: 0x0201 });
    const { initiator } = portal.connect();
    await initiator.login(guest);
    assert.match(await initiator.text({ SendTargets: 'All' }), /TargetName/);
  });

  /** Goes up to the challenge and gives it. */
  async function challenge(initiator: IscsiInitiator): Promise<{ identifier: number; bytes: Buffer; text: string }> {
    await initiator.sayLogin({ flags: 0x00, data: textBytes({ ...WHO, AuthMethod: 'CHAP' }) });
    const text = textOf((await initiator.sayLogin({ flags: 0, data: textBytes({ CHAP_A: '5' }) })).data);
    const hex = text.get('CHAP_C') as string;
    return { identifier: Number(text.get('CHAP_I')), bytes: Buffer.from(hex.slice(2), 'hex'), text: hex };
  }

  function proof(identifier: number, bytes: Buffer): Buffer {
    return createHash('md5')
      .update(Buffer.from([identifier]))
      .update(guest.secret)
      .update(bytes)
      .digest();
  }

  test('a response in base64 is taken; our own challenge sent back is not', async () => {
    const portal = new MemoryPortal({ target: CHAP });
    const one = portal.connect().initiator;
    const first = await challenge(one);
    const base64 = `0b${proof(first.identifier, first.bytes).toString('base64')}`;
    const keys = { CHAP_N: 'guest', CHAP_R: base64 };
    assert.equal((await one.sayLogin({ flags: 0x81, data: textBytes(keys) })).flags, 0x81);
    const two = portal.connect().initiator;
    const second = await challenge(two);
    assert.notEqual(second.text, first.text);
    const response = `0x${proof(second.identifier, second.bytes).toString('hex')}`;
    const reflecting = { CHAP_N: 'guest', CHAP_R: response, CHAP_I: '1', CHAP_C: second.text };
    assert.equal((await two.sayLogin({ flags: 0x81, data: textBytes(reflecting) })).bytes.readUInt16BE(36), 0x0201);
    assert.match(portal.refusals[0]?.reason as string, /reflects/);
    assert.equal(portal.counters.authenticationFailures, 1);
  });

  for (const [name, keys] of Object.entries({
    'no CHAP_R': { CHAP_N: 'guest' },
    'CHAP_R without its prefix': { CHAP_N: 'guest', CHAP_R: '1234' },
    'an empty CHAP_R': { CHAP_N: 'guest', CHAP_R: '0x' },
    'a CHAP_R of a megabyte of digits': { CHAP_N: 'guest', CHAP_R: `0x${'1'.repeat(7000)}` },
  })) {
    test(`${name} is refused`, async () => {
      const { initiator } = new MemoryPortal({ target: CHAP }).connect();
      await challenge(initiator);
      assert.equal((await initiator.sayLogin({ flags: 0x81, data: textBytes(keys) })).bytes.readUInt16BE(36), 0x0201);
    });
  }
});
