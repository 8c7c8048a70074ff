import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mergeKey, splitKey } from '../../../../formats/luks/anti-forensic.ts';
import { makeLuksVolume } from '../../../../formats/luks/create.ts';
import { HEADER_BYTES, MAX_ITERATIONS, parseLuksHeader } from '../../../../formats/luks/header.ts';
import { makeKeySlot, unlock } from '../../../../formats/luks/key-slots.ts';
import { Random } from '../../../support/random.ts';

const random = new Random(5);
const secret = Buffer.from('open sesame');
const volume = await makeLuksVolume({ secret, iterTimeMs: 1 });

const read = async (offset: number, length: number): Promise<Uint8Array> => volume.bytes.slice(offset, offset + length);

function parse(bytes: Uint8Array, length = volume.bytes.length) {
  return parseLuksHeader(new DataView(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, HEADER_BYTES)), {
    length,
    at: 65536,
  });
}

test('a split key comes back from all of its stripes, and from no fewer', () => {
  for (const [hash, size] of [
    ['sha256', 64],
    ['sha1', 64],
    ['sha1', 16],
    ['sha512', 32],
  ] as const) {
    const key = random.bytes(size);
    const split = splitKey(key, 40, hash);
    assert.deepEqual(mergeKey(split, size, 40, hash), key);
    split[size * 20] = (split[size * 20] as number) ^ 1;
    assert.notDeepEqual(mergeKey(split, size, 40, hash), key);
  }
});

test('the passphrase opens the volume, others do not, and each slot has its own', async () => {
  const header = parse(volume.bytes);
  assert.deepEqual((await unlock(header, read, secret))?.key, volume.key);
  assert.equal(await unlock(header, read, Buffer.from('open sesam')), undefined);
  assert.equal(await unlock(header, read, Buffer.from('open sesame\n')), undefined);
  const other = Buffer.from('a second one');
  const made = await makeKeySlot(header, volume.key, other, {
    materialOffset: header.slots[5]?.materialOffset as number,
    iterTimeMs: 1,
  });
  const slots = header.slots.map((slot, i) => (i === 5 ? made.slot : slot));
  const readBoth = async (offset: number, length: number): Promise<Uint8Array> =>
    offset === made.slot.materialOffset ? made.material.slice() : read(offset, length);
  assert.deepEqual(await unlock({ ...header, slots }, readBoth, other), { slot: 5, key: volume.key });
  assert.equal((await unlock({ ...header, slots }, readBoth, secret))?.slot, 0);
});

/** Rules of a LUKS header, each broken once. */
const BROKEN: readonly (readonly [
  rule: string,
  change: (view: DataView) => void,
  code: string,
  field: string,
  at: number,
])[] = [
  ['it begins with LUKS', (v) => v.setUint8(0, 0), 'BAD_MAGIC', 'magic', 0],
  ['it is of version 1', (v) => v.setUint16(6, 2), 'UNSUPPORTED', 'version', 6],
  ['its cipher is aes', (v) => v.setUint8(8, 0x62), 'UNSUPPORTED', 'cipherName', 8],
  ['its mode is xts or cbc', (v) => v.setUint8(40, 0x79), 'UNSUPPORTED', 'cipherName', 8],
  ['its hash is known', (v) => v.setUint8(72, 0x79), 'UNSUPPORTED', 'hashSpec', 72],
  ['its key has the cipher’s length', (v) => v.setUint32(108, 0xffffffff), 'UNSUPPORTED', 'cipherName', 8],
  ['its digest has rounds', (v) => v.setUint32(164, 0), 'BAD_HEADER', 'digestIterations', 164],
  [
    'its digest has no rounds for hours',
    (v) => v.setUint32(164, MAX_ITERATIONS + 1),
    'BAD_HEADER',
    'digestIterations',
    164,
  ],
  ['a slot is enabled or disabled', (v) => v.setUint32(208, 1), 'BAD_HEADER', 'keySlots[0].state', 208],
  ['a slot has rounds', (v) => v.setUint32(212, 0), 'BAD_HEADER', 'keySlots[0].iterations', 212],
  ['a slot has no rounds for hours', (v) => v.setUint32(212, 0xffffffff), 'BAD_HEADER', 'keySlots[0].iterations', 212],
  ['a slot has 4000 stripes', (v) => v.setUint32(252, 4001), 'BAD_HEADER', 'keySlots[0].stripes', 252],
  [
    'key material is inside the header',
    (v) => v.setUint32(248, 0xfffffff0),
    'BAD_HEADER',
    'keySlots[0].materialOffset',
    248,
  ],
  ['key material is not on the header', (v) => v.setUint32(248, 0), 'BAD_HEADER', 'keySlots[0].materialOffset', 248],
  [
    'key material is not on another slot’s',
    (v) => v.setUint32(248 + 48, 8),
    'BAD_HEADER',
    'keySlots[1].materialOffset',
    296,
  ],
];

for (const [rule, change, code, field, at] of BROKEN) {
  test(`LUKS header: ${rule}`, () => {
    const bytes = volume.bytes.slice(0, HEADER_BYTES);
    change(new DataView(bytes.buffer));
    assert.throws(() => parse(bytes), { code, field, offset: 65536 + at });
  });
}

test('a LUKS header that is cut short is TRUNCATED', () => {
  assert.throws(() => parse(volume.bytes.slice(0, 100)), { code: 'TRUNCATED' });
  assert.throws(() => parse(volume.bytes, 500), { code: 'TRUNCATED' });
});

test('LUKS: random flips of header bits are refused or read, and never take long', () => {
  for (let i = 0; i < 3000; i++) {
    const bytes = volume.bytes.slice(0, HEADER_BYTES);
    for (let flips = 1 + random.below(4); flips > 0; flips--) {
      const at = random.below(bytes.length);
      bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
    }
    try {
      parse(bytes);
    } catch (error) {
      assert.match((error as { code: string }).code, /^(BAD_MAGIC|BAD_HEADER|UNSUPPORTED)$/);
    }
  }
});
