import assert from 'node:assert/strict';
import { createCipheriv, createHash } from 'node:crypto';
import { test } from 'node:test';
import { parseCipher } from '../../../../formats/luks/cipher-spec.ts';
import { makeSectorCipher } from '../../../../formats/luks/sector-cipher.ts';
import { Random } from '../../../support/random.ts';

const SECTOR = 512;
const random = new Random(77);

/** What OpenSSL makes of one sector. */
function reference(name: string, key: Uint8Array, vector: Uint8Array, sector: Uint8Array): Uint8Array {
  return createCipheriv(name, key, vector).setAutoPadding(false).update(sector);
}

function numberVector(sector: number, bytes: number): Uint8Array {
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(BigInt(sector));
  vector.fill(0, bytes);
  return vector;
}

const MODES = [
  { mode: 'xts-plain64', keyBytes: 64, openssl: 'aes-256-xts' },
  { mode: 'xts-plain64', keyBytes: 32, openssl: 'aes-128-xts' },
  { mode: 'xts-plain', keyBytes: 64, openssl: 'aes-256-xts' },
  { mode: 'xts-essiv:sha256', keyBytes: 64, openssl: 'aes-256-xts' },
  { mode: 'cbc-plain64', keyBytes: 32, openssl: 'aes-256-cbc' },
  { mode: 'cbc-plain64', keyBytes: 24, openssl: 'aes-192-cbc' },
  { mode: 'cbc-plain', keyBytes: 16, openssl: 'aes-128-cbc' },
  { mode: 'cbc-essiv:sha256', keyBytes: 32, openssl: 'aes-256-cbc' },
];

for (const { mode, keyBytes, openssl } of MODES) {
  test(`aes ${mode} with ${keyBytes} bytes of key is what OpenSSL makes of each sector, and comes back`, () => {
    const key = random.bytes(keyBytes);
    const cipher = makeSectorCipher(parseCipher('aes', mode, keyBytes), key);
    const essiv = createHash('sha256').update(key).digest();
    for (const first of [0, 1, 2 ** 32 - 100, 2 ** 40 + 3]) {
      const plain = random.bytes(300 * SECTOR);
      const bytes = plain.slice();
      cipher.encrypt(bytes, first);
      for (const i of [0, 1, 99, 100, 127, 128, 299]) {
        let vector = numberVector(first + i, mode.endsWith('plain') ? 4 : 8);
        if (mode.includes('essiv')) vector = reference('aes-256-ecb', essiv, new Uint8Array(0), vector);
        const at = i * SECTOR;
        assert.deepEqual(
          Buffer.from(bytes.subarray(at, at + SECTOR)),
          Buffer.from(reference(openssl, key, vector, plain.subarray(at, at + SECTOR))),
          `sector ${first + i}`,
        );
      }
      // In other pieces than it was encrypted in.
      cipher.decrypt(bytes.subarray(0, 7 * SECTOR), first);
      cipher.decrypt(bytes.subarray(7 * SECTOR), first + 7);
      assert.ok(Buffer.compare(bytes, plain) === 0);
    }
  });
}

test('ciphers that are not supported are refused by name', () => {
  for (const [name, mode, keyBytes, why] of [
    ['serpent', 'xts-plain64', 64, /cipher "serpent"/],
    ['twofish', 'xts-plain64', 64, /cipher "twofish"/],
    ['aes', 'ctr-plain64', 32, /cipher mode "ctr-plain64"/],
    ['aes', 'ecb', 32, /cipher mode "ecb"/],
    ['aes', 'cbc-essiv:sha512', 32, /essiv with sha512/],
    ['aes', 'cbc-essiv:nosuch', 32, /essiv with nosuch/],
    ['aes', 'cbc-essiv', 32, /not valid/],
    ['aes', 'xts-plain64', 48, /key of 48 bytes/],
    ['aes', 'xts-plain64', 4_000_000_000, /key of 4000000000 bytes/],
    ['aes', 'cbc-plain64', 0, /key of 0 bytes/],
  ] as const) {
    assert.throws(() => parseCipher(name, mode, keyBytes), why);
  }
});
