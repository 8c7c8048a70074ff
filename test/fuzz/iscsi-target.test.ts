/**
 * Streams of junk against the target side of iSCSI: whatever comes, receive() does not throw, memory stays bounded, the
 * connection either goes on or is closed, and another session on the same target is not disturbed.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryPortal, TARGET_NAME } from '../support/iscsi-endpoint.ts';
import { cdb16 } from '../support/iscsi-initiator.ts';
import { encodePdu, type PduFields, slowCrc32c, textBytes } from '../support/iscsi-wire.ts';
import { type Random, randomFor } from '../support/random.ts';

const LIMITS = {
  totalMemory: 4 * 1024 * 1024,
  sessionMemory: 2 * 1024 * 1024,
  outputLimit: 512 * 1024,
  queueDepth: 16,
};
const BOUND = 12 * 1024 * 1024;
const OPCODES = [0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 0x10, 0x1c, 0x20, 0x25, 0x3f];
const WORDS = [0, 1, 2, 3, 5, 8, 512, 4096, 65536, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff];
const TEXTS = [
  'SendTargets=All\0',
  'SendTargets=\0',
  'A=1\0A=1\0',
  'junk',
  '=\0\0\0',
  `SendTargets=${'x'.repeat(300)}\0`,
];

function randomBytes(random: Random, length: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, () => random.below(256)));
}

/** A PDU that is nearly right: right sequence numbers, opcodes and tags more often than not. */
function likelyPdu(random: Random, state: { cmdSN: number }): PduFields {
  const word = (): number => (random.chance(0.5) ? random.pick(WORDS) : random.below(64));
  const opcode = random.pick(OPCODES);
  const immediate = random.chance(0.3);
  const blocks = random.pick([0, 1, 1, 2, 8, 100, 1000, 0xffff]);
  const data = random.chance(0.5)
    ? new Uint8Array(0)
    : opcode === 4
      ? Buffer.from(random.pick(TEXTS))
      : randomBytes(random, random.pick([1, 3, 4, 512, 513, 2048]));
  const command = opcode === 1;
  const flags = random.chance(0.7) ? random.pick([0x80, 0xa1, 0xc1, 0x21, 0xe2, 0x81, 0x85, 0x86]) : random.below(256);
  return {
    opcode,
    immediate,
    // No cold reset: it ends all sessions, as it should.
    flags: opcode === 2 && (flags & 0x7f) === 7 ? 0x80 : flags,
    itt: random.chance(0.8) ? random.below(40) : word(),
    word20: command ? random.pick([0, 512, blocks * 512, 0xffffffff]) : random.chance(0.6) ? 0xffffffff : word(),
    cmdSN: random.chance(0.85) ? (immediate ? state.cmdSN : state.cmdSN++) : word(),
    ...(command
      ? {
          cdb: random.chance(0.8)
            ? cdb16(random.pick([0, 0x88, 0x8a, 0x91]), random.below(20), blocks)
            : randomBytes(random, 16),
        }
      : {
          word32: word(),
          word36: random.chance(0.7) ? 0 : word(),
          word40: random.chance(0.7) ? 0 : word(),
          word44: word(),
        }),
    lun: random.chance(0.9) ? 0 : random.below(0x4000),
    ...(random.chance(0.1) ? { ahs: randomBytes(random, 4 * random.below(5)) } : {}),
    data,
    ...(random.chance(0.02) ? { dataLength: random.pick([1, 600, 262144, 262145, 0xffffff]) } : {}),
  };
}

test('20,000 nearly right PDUs, cut and flipped, break nothing', async (t) => {
  const random = randomFor(t);
  const portal = new MemoryPortal({ limits: LIMITS });
  const witness = await portal.session({}, '0000000000ff');
  portal.device.async = (task) => task.nexus.initiatorPort.endsWith('01') && random.chance(0.3);
  let connections = 0;
  for (let sent = 0; sent < 20_000; connections++) {
    const digest = random.chance(0.2);
    const connection = portal.connect();
    const { initiator } = connection;
    // What answers to junk mean to an initiator is of no interest here.
    await initiator.login({
      target: TARGET_NAME,
      isid: '000000000001',
      keys: {
        ...(digest ? { HeaderDigest: 'CRC32C', DataDigest: 'CRC32C' } : {}),
        ...(random.chance(0.3) ? { InitialR2T: 'Yes' } : {}),
        ...(random.chance(0.3) ? { MaxRecvDataSegmentLength: '512' } : {}),
      },
    });
    initiator.receive = () => {};
    connection.stuck = random.chance(0.1);
    const digests = digest ? { header: slowCrc32c, data: slowCrc32c } : {};
    const state = { cmdSN: initiator.cmdSN };
    for (let n = random.between(1, 120); n > 0 && connection.closeReason === undefined; n--, sent++) {
      const bytes = encodePdu(likelyPdu(random, state), digests);
      if (random.chance(0.02)) bytes[random.below(bytes.length)] = random.below(256);
      const whole = random.chance(0.01) ? bytes.subarray(0, random.below(bytes.length)) : bytes;
      if (random.chance(0.1)) for (const byte of whole) connection.endpoint.receive(Uint8Array.of(byte));
      else connection.endpoint.receive(whole);
      if (random.chance(0.2)) portal.device.release();
      if (random.chance(0.2)) await Promise.resolve();
      assert.ok(portal.pool.used <= BOUND, `${portal.pool.used} bytes out`);
    }
    connection.drop();
    portal.device.release();
    if (connections % 20 === 0) assert.equal((await witness.initiator.read(0, 8)).length, 4096);
    assert.equal(witness.closeReason, undefined);
    assert.deepEqual(portal.internalErrors, []);
  }
  assert.ok(connections > 100);
  // Nothing of all that is left behind.
  witness.initiator.destroy();
  for (let i = 0; i < 20; i++) await Promise.resolve();
  assert.equal(portal.target.sessions.size, 0);
  assert.equal(portal.counters.sessions, 0);
  assert.equal(portal.pool.used, 0);
});

test('noise after login closes the connection or is survived', async (t) => {
  const random = randomFor(t);
  const portal = new MemoryPortal({ limits: LIMITS });
  for (let i = 0; i < 300; i++) {
    const connection = await portal.session();
    connection.initiator.receive = () => {};
    for (let n = 0; n < 20; n++) connection.endpoint.receive(randomBytes(random, random.below(200)));
    connection.drop();
    assert.ok(portal.pool.used <= BOUND);
    assert.deepEqual(portal.internalErrors, []);
  }
});

test('3,000 logins of junk end in a refusal or a closed connection', async (t) => {
  const random = randomFor(t);
  const chap = { user: 'guest', secret: 'open-sesame-1' };
  const portal = new MemoryPortal({
    limits: LIMITS,
    target: { chap, mutualChap: { user: 'h', secret: 'open-sesame-2' } },
  });
  const keys = [
    'InitiatorName',
    'TargetName',
    'SessionType',
    'AuthMethod',
    'CHAP_A',
    'CHAP_N',
    'CHAP_R',
    'CHAP_I',
    'CHAP_C',
  ];
  const values = [
    'iqn.2026-11.a:b',
    TARGET_NAME,
    'Normal',
    'Discovery',
    'CHAP',
    'None',
    'CHAP,None',
    '5',
    '7,5',
    'guest',
    '0x00',
    '0b',
    '',
    '0x',
  ];
  for (let i = 0; i < 3000; i++) {
    const connection = portal.connect();
    connection.initiator.receive = () => {};
    for (let n = random.between(1, 5); n > 0; n--) {
      const text: Record<string, string> = { InitiatorName: 'iqn.2026-11.a:b', TargetName: TARGET_NAME };
      for (let k = random.below(5); k > 0; k--) text[random.pick(keys)] = random.pick(values);
      const data = random.chance(0.8) ? textBytes(text) : randomBytes(random, random.below(300));
      const bytes = encodePdu({
        opcode: 3,
        immediate: true,
        flags: random.pick([0x81, 0x87, 0x00, 0x04, 0x40, 0x83, random.below(256)]),
        data,
      });
      if (random.chance(0.1)) bytes[random.below(48)] = random.below(256);
      connection.endpoint.receive(bytes);
    }
    // Nobody proves anything by chance.
    assert.ok(connection.endpoint.session === undefined || connection.endpoint.session.tasks === undefined);
    assert.deepEqual(portal.internalErrors, []);
    connection.drop();
  }
  assert.ok(portal.counters.loginsFailed > 500);
});
