import assert from 'node:assert/strict';
import { test } from 'node:test';
import { alignDown, alignUp, formatSize, GiB, KiB, MiB, parseSize, TiB } from '../../../../formats/core/units.ts';

test('sizes are read as qemu-img reads them', () => {
  const cases: [string, number | undefined][] = [
    ['0', 0],
    ['512', 512],
    ['1k', KiB],
    ['1K', KiB],
    ['64M', 64 * MiB],
    ['1.5G', 1.5 * GiB],
    ['2t', 2 * TiB],
    ['10GiB', 10 * GiB],
    ['7b', 7],
    ['', undefined],
    ['-1', undefined],
    ['12x', undefined],
    ['99999E', undefined],
  ];
  for (const [text, size] of cases) assert.equal(parseSize(text), size, text);
});

test('sizes are shown with three digits', () => {
  assert.equal(formatSize(0), '0 B');
  assert.equal(formatSize(999), '999 B');
  assert.equal(formatSize(1023), '0.999 KiB'); // as qemu-img: the unit changes at 1000
  assert.equal(formatSize(1536), '1.5 KiB');
  assert.equal(formatSize(1.125 * MiB), '1.12 MiB'); // as qemu-img: halfway goes to the even digit
  assert.equal(formatSize(1.375 * MiB), '1.38 MiB');
  assert.equal(formatSize(100.5 * MiB), '100 MiB');
  assert.equal(formatSize(2 * GiB), '2 GiB');
  assert.equal(formatSize(100 * MiB + 1), '100 MiB');
});

test('alignment is exact far beyond 32 bits', () => {
  const large = 2 ** 52 + 4097;
  assert.equal(alignDown(large, 4096), 2 ** 52 + 4096);
  assert.equal(alignUp(large, 4096), 2 ** 52 + 8192);
  assert.equal(alignUp(4096, 4096), 4096);
});
