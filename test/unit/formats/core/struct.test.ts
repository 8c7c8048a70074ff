import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bits64, bytes, reserved, Struct, u8, u16, u32, u64 } from '../../../../formats/core/struct.ts';

const fields = {
  magic: u32(0),
  kind: u8(4),
  gap: reserved(5, 1),
  count: u16(6),
  size: u64(8),
  flags: bits64(16),
  name: bytes(24, 4),
};

for (const endian of ['big', 'little'] as const) {
  test(`what is encoded ${endian}-endian is read back`, () => {
    const table = new Struct('thing', { size: 28, endian }, fields);
    const value = {
      magic: 0xdeadbeef,
      kind: 7,
      count: 0x1234,
      size: Number.MAX_SAFE_INTEGER,
      flags: { high: 0x80000000, low: 1 },
      name: Uint8Array.of(1, 2, 3, 4),
    };
    const encoded = table.encode(value);
    assert.equal(encoded[0], endian === 'big' ? 0xde : 0xef);
    assert.deepEqual(table.read(new DataView(encoded.buffer)), value);
  });
}

test('a 64-bit number that is not exact reads as Infinity, so that every bound refuses it', () => {
  const table = new Struct('n', { size: 8, endian: 'big' }, { n: u64(0) });
  const read = (...octets: number[]) => table.read(new DataView(Uint8Array.from(octets).buffer)).n;
  assert.equal(read(0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), Number.MAX_SAFE_INTEGER);
  assert.equal(read(0, 0x20, 0, 0, 0, 0, 0, 0), Number.POSITIVE_INFINITY);
  assert.throws(() => table.encode({ n: -1 }), RangeError);
});

test('gaps, overlaps and a wrong size are found when the table is made', () => {
  const make = (size: number, table: Record<string, ReturnType<typeof u32>>) => () =>
    new Struct('bad', { size, endian: 'big' }, table);
  assert.throws(make(12, { a: u32(0), b: u32(8) }), /b is at 0x8/);
  assert.throws(make(8, { a: u32(0), b: u32(2) }), /b is at 0x2/);
  assert.throws(make(12, { a: u32(0), b: u32(4) }), /end at 0x8/);
});

test('write changes the named fields only', () => {
  const table = new Struct('pair', { size: 8, endian: 'big' }, { a: u32(0), b: u32(4) });
  const view = new DataView(Uint8Array.of(0, 0, 0, 1, 9, 9, 9, 9).buffer);
  table.write(view, { a: 2 });
  assert.deepEqual(table.read(view), { a: 2, b: 0x09090909 });
});
