import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  COPIED,
  compressedLength,
  compressedOffset,
  getU32,
  hostOffset,
  isEmpty,
  setEntry,
  setEntryRun,
  ZERO_BIT,
} from '../../../../formats/qcow2/l2.ts';

test('a host offset of 56 bits survives its two halves', () => {
  const bytes = new Uint8Array(16);
  for (const offset of [0, 0x200, 0x10000, 0xfffff000, 0x100000000, 0x1234567890000, 2 ** 53 - 2 ** 21]) {
    setEntry(bytes, 8, offset, COPIED, ZERO_BIT);
    const high = getU32(bytes, 8);
    const low = getU32(bytes, 12);
    assert.equal(hostOffset(high, low), offset);
    assert.equal(high >>> 31, 1);
    assert.equal(low & 1, 1);
  }
  // All offset bits and nothing else.
  assert.equal(hostOffset(0xffffffff, 0xffffffff), 2 ** 56 - 512);
});

test('a compressed descriptor splits by cluster size', () => {
  // 64 KiB clusters: 54 bits of offset, 8 bits of sectors. 5 more sectors behind the one that holds offset 0x12345.
  const entry = (1n << 62n) | (5n << 54n) | 0x12345n;
  const high = Number(entry >> 32n);
  const low = Number(entry & 0xffffffffn);
  assert.equal(compressedOffset(high, low, 54), 0x12345);
  assert.equal(compressedLength(high, low, 54), 6 * 512 - 0x145);
  // 512-byte clusters: 61 bits of offset, one bit of sectors.
  const small = (1n << 62n) | (1n << 61n) | 0x40007n;
  assert.equal(compressedOffset(Number(small >> 32n), Number(small & 0xffffffffn), 61), 0x40007);
  assert.equal(compressedLength(Number(small >> 32n), Number(small & 0xffffffffn), 61), 1024 - 7);
});

test('a run of entries is what its entries are one by one, across 4 GiB too', () => {
  for (const [offset, clusterSize] of [
    [0x50000, 0x10000],
    [2 ** 32 - 3 * 0x10000, 0x10000],
    [2 ** 40 - 2 ** 21, 2 ** 21],
    [2 ** 33 - 512, 512],
  ] as const) {
    const [run, single] = [new Uint8Array(10 * 8), new Uint8Array(10 * 8)];
    setEntryRun(run, 8, offset, 7, clusterSize);
    for (let i = 0; i < 7; i++) setEntry(single, 8 + i * 8, offset + i * clusterSize, COPIED, 0);
    assert.deepEqual(run, single);
  }
});

test('entries are empty when each of their bytes is', () => {
  const bytes = new Uint8Array(4096);
  assert.equal(isEmpty(bytes, 0, 4096), true);
  bytes[800] = 1;
  assert.deepEqual(
    [
      [0, 800],
      [0, 808],
      [800, 801],
      [801, 4096],
    ].map(([from, to]) => isEmpty(bytes, from as number, to as number)),
    [true, false, false, true],
  );
});
