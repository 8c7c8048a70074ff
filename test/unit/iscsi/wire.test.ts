import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { crc32c } from '../../../src/iscsi/digest.ts';
import {
  acceptInitiatorName,
  checkTargetName,
  decodeLun,
  formatAddress,
  iscsiTransportId,
  NO_LUN,
} from '../../../src/iscsi/names.ts';
import { type PduHandler, PduReader } from '../../../src/iscsi/pdu-reader.ts';
import { IscsiTarget } from '../../../src/iscsi/target.ts';
import { encodeText, parseBinary, parseNumber, parseText } from '../../../src/iscsi/text.ts';
import { FakeDeviceServer } from '../../support/fake-device-server.ts';
import { encodePdu, slowCrc32c } from '../../support/iscsi-wire.ts';
import { randomFor } from '../../support/random.ts';

describe('CRC32C', () => {
  test("is the RFC's for its examples", () => {
    // RFC 7143 appendix B.4, digests as numbers.
    const up = Uint8Array.from({ length: 32 }, (_, i) => i);
    assert.equal(crc32c(new Uint8Array(32)), 0x8a9136aa);
    assert.equal(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43);
    assert.equal(crc32c(up), 0x46dd794e);
    assert.equal(crc32c(up.slice().reverse()), 0x113fdb5c);
  });

  test('agrees with the definition for any length and cut', (t) => {
    const random = randomFor(t);
    for (let length = 0; length < 70; length++) {
      const bytes = Uint8Array.from({ length }, () => random.below(256));
      const cut = random.below(length + 1);
      assert.equal(crc32c(bytes), slowCrc32c(bytes));
      assert.equal(crc32c(bytes.subarray(cut), crc32c(bytes.subarray(0, cut))), slowCrc32c(bytes));
    }
  });
});

describe('text', () => {
  test('pairs come back as they were written', () => {
    const pairs = [
      ['A', ''],
      ['B-key', 'x=y'],
      ['C', 'ä'],
    ] as const;
    assert.deepEqual(parseText(encodeText(pairs)), pairs);
    assert.deepEqual(parseText(new Uint8Array(0)), []);
  });

  for (const bad of ['A=1', 'A\0', '=1\0', 'a b=1\0', `${'K'.repeat(64)}=1\0`, `K=${'v'.repeat(9000)}\0`, 'A=\xff\0']) {
    test(`${JSON.stringify(bad.slice(0, 12))} is no list of pairs`, () => {
      assert.throws(() => parseText(Buffer.from(bad, 'latin1')), { code: 'PROTOCOL' });
    });
  }

  test('numbers are decimal or hexadecimal, of 32 bits', () => {
    assert.deepEqual(['0', '65536', '0xFf', '4294967295'].map(parseNumber), [0, 65536, 255, 4294967295]);
    for (const bad of ['', '-1', '1.5', '4294967296', '0x', '1e3', ' 1', '0x100000000']) {
      assert.equal(parseNumber(bad), undefined);
    }
  });

  test('binary values are hexadecimal or base64, up to a length', () => {
    assert.deepEqual([...(parseBinary('0x0aFF', 2) ?? [])], [10, 255]);
    assert.deepEqual([...(parseBinary('0xa', 2) ?? [])], [10]);
    assert.deepEqual([...(parseBinary('0bCv8=', 2) ?? [])], [10, 255]);
    for (const bad of ['', '0x', '0b', '0xzz', '0b*', '0bA', '12', '0x010203', '0bAAAA']) {
      assert.equal(parseBinary(bad, 2), undefined);
    }
  });
});

describe('names', () => {
  test('iqn, eui and naa names are taken, in lower case', () => {
    assert.equal(checkTargetName('IQN.2026-11.Host:Disk_1'), 'iqn.2026-11.host:disk_1');
    checkTargetName('eui.02004567a425678d');
    checkTargetName('naa.52004567ba64678d');
    for (const bad of [
      '',
      'disk',
      'iqn.2026-13.host:x',
      'iqn.26-11.host',
      'iqn.2026-11.host:a b',
      `iqn.2026-11.h:${'x'.repeat(220)}`,
    ]) {
      assert.throws(() => checkTargetName(bad), { code: 'INVALID' });
    }
  });

  test('an initiator may have any name without blanks, commas and control characters', () => {
    assert.equal(acceptInitiatorName('Whatever'), 'whatever');
    for (const bad of ['', 'a b', 'a,b', 'a\u0007', 'x'.repeat(224)]) assert.equal(acceptInitiatorName(bad), undefined);
  });

  test('addresses are written as URLs have them', () => {
    assert.equal(formatAddress('10.0.0.1', 3260), '10.0.0.1:3260');
    assert.equal(formatAddress('::1', 3260), '[::1]:3260');
    assert.equal(formatAddress('::ffff:10.0.0.1', 1), '10.0.0.1:1');
    assert.equal(formatAddress('fe80::1%eth0', 1), '[fe80::1]:1');
  });

  test('a TransportID is at least 24 bytes long', () => {
    assert.equal(iscsiTransportId('x').length, 24);
  });

  test('LUNs in peripheral and flat addressing are numbers, all others are absent', () => {
    const lun = (hex: string): number => decodeLun(new DataView(Uint8Array.from(Buffer.from(hex, 'hex')).buffer), 0);
    assert.equal(lun('0000000000000000'), 0);
    assert.equal(lun('00ff000000000000'), 255);
    assert.equal(lun('4005000000000000'), 5);
    assert.equal(lun('7fff000000000000'), 16383);
    for (const other of [
      '0100000000000000',
      'c101000000000000',
      '8001000000000000',
      '0000000100000000',
      '0000000000000001',
    ]) {
      assert.equal(lun(other), NO_LUN);
    }
  });

  test('a target checks its secrets', () => {
    const device = new FakeDeviceServer();
    const name = 'iqn.2026-11.lunette.test:disk';
    const chap = { user: 'u', secret: 'twelve-bytes' };
    const make = (options: object) => () => new IscsiTarget({ name, device, ...options });
    make({ chap })();
    for (const options of [
      { chap: { user: 'u', secret: 'short' } },
      { chap: { user: '', secret: 'twelve-bytes' } },
      { chap, mutualChap: { user: 'v', secret: 'twelve-bytes' } },
      { mutualChap: chap },
      { chapAlgorithms: [] },
      { chapAlgorithms: [1] },
      { alias: 'x'.repeat(256) },
    ]) {
      assert.throws(make(options), { code: 'INVALID' });
    }
  });
});

class Recorder implements PduHandler {
  readonly pdus: { opcode: number; data: Buffer; good: boolean }[] = [];
  #opcode = 0;
  #data: Buffer[] = [];

  begin(view: DataView, at: number): void {
    this.#opcode = view.getUint8(at);
    this.#data = [];
  }

  data(bytes: Uint8Array, from: number, to: number): void {
    this.#data.push(Buffer.from(bytes.slice(from, to)));
  }

  end(good: boolean): void {
    this.pdus.push({ opcode: this.#opcode, data: Buffer.concat(this.#data), good });
  }
}

describe('PduReader', () => {
  test('finds the same PDUs however the stream is cut', (t) => {
    const random = randomFor(t);
    for (const digests of [{}, { header: crc32c }, { data: crc32c }, { header: crc32c, data: crc32c }]) {
      const sent = Array.from({ length: 30 }, (_, opcode) => ({
        opcode,
        ahs: new Uint8Array(random.below(3) * 4),
        data: Uint8Array.from({ length: random.chance(0.3) ? 0 : random.below(300) }, () => random.below(256)),
      }));
      const stream = Buffer.concat(sent.map((fields) => encodePdu(fields, digests)));
      for (const most of [1, 3, 50, 400, stream.length]) {
        const recorder = new Recorder();
        const reader = new PduReader(recorder, { maxDataLength: 1000, crc32c });
        reader.headerDigest = 'header' in digests;
        reader.dataDigest = 'data' in digests;
        for (let at = 0; at < stream.length; ) {
          const end = Math.min(stream.length, at + 1 + random.below(most));
          // In the middle of a larger buffer, as a receive buffer is.
          reader.receive(Buffer.concat([Buffer.alloc(5, 0xee), stream.subarray(at, end)]), 5);
          at = end;
        }
        assert.deepEqual(
          recorder.pdus,
          sent.map(({ opcode, data }) => ({ opcode, data: Buffer.from(data), good: true })),
        );
      }
    }
  });

  test('refuses lengths beyond its limits from the first 48 bytes on', () => {
    const reader = (): PduReader => {
      const made = new PduReader(new Recorder(), { maxDataLength: 1000, crc32c });
      made.maxAhsLength = 8;
      return made;
    };
    const long = encodePdu({ opcode: 1, dataLength: 1001 });
    assert.throws(() => reader().receive(long), { code: 'PROTOCOL' });
    const cut = reader();
    cut.receive(long, 0, 47);
    assert.throws(() => cut.receive(long, 47), { code: 'PROTOCOL' });
    assert.throws(() => reader().receive(encodePdu({ opcode: 1, ahs: new Uint8Array(12) })), { code: 'PROTOCOL' });
  });
});
