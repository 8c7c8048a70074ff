import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32c as byJavascript } from '../../../src/iscsi/digest.ts';
import { nativeCrc32c, nativeCrc32cPortable } from '../../../src/native/crc32c.ts';
import { nativeFacts } from '../../../src/native/facts.ts';
import { requireAddon } from '../../support/addon.ts';
import { randomFor } from '../../support/random.ts';

const skip = requireAddon();
const all = { instructions: nativeCrc32c, tables: nativeCrc32cPortable };

for (const [name, compute] of Object.entries(all)) {
  if (compute === undefined) continue;

  test(`crc32c by ${name} gives the values of RFC 3720, appendix B.4`, { skip }, () => {
    const ascending = Uint8Array.from({ length: 32 }, (_, i) => i);
    const readCdb = new Uint8Array(48);
    readCdb.set([0x01, 0xc0, 0, 0], 0);
    readCdb.set([0x14, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02], 16);
    assert.equal(compute(new Uint8Array(32)), 0x8a9136aa);
    assert.equal(compute(new Uint8Array(32).fill(0xff)), 0x62a8ab43);
    assert.equal(compute(ascending), 0x46dd794e);
    assert.equal(compute(ascending.slice().reverse()), 0x113fdb5c);
    assert.equal(compute(readCdb), 0xd9963a56);
    assert.equal(compute(Buffer.from('123456789')), 0xe3069283);
    assert.equal(compute(new Uint8Array(0)), 0);
  });

  test(`crc32c by ${name} agrees with JavaScript at every alignment and length around its block sizes`, {
    skip,
  }, (t) => {
    const random = randomFor(t);
    const memory = random.bytes(40_000);
    // Three streams of 256 and of 2048 bytes, eight-byte steps, single bytes.
    const lengths = [...Array(70).keys(), 255, 256, 257, 760, 767, 768, 769, 776, 1536, 6143, 6144, 6145, 6912, 20_000];
    for (let start = 0; start < 16; start++) {
      for (const length of lengths) {
        const bytes = memory.subarray(start, start + length);
        assert.equal(compute(bytes), byJavascript(bytes), `at ${start}, ${length} bytes`);
      }
    }
  });

  test(`crc32c by ${name} goes on from the CRC of what comes before`, { skip }, (t) => {
    const random = randomFor(t);
    for (let i = 0; i < 200; i++) {
      const bytes = random.bytes(random.between(1, 30_000));
      const cut = random.below(bytes.length);
      assert.equal(compute(bytes.subarray(cut), compute(bytes.subarray(0, cut))), compute(bytes));
    }
  });
}

test('doctor says which CRC32C is in use', () => {
  const expected = nativeCrc32c === undefined ? ['javascript'] : ['sse4.2', 'armv8-crc', 'table'];
  assert.ok(expected.includes(nativeFacts().crc32c));
});
