import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PointerTable } from '../../../../formats/qcow2/pointer-table.ts';

const ENTRIES = 70;

/** A table with the low or the high byte of some entries set, whose bytes begin at an offset of their memory. */
function tableWith(used: readonly number[], byte: number, begin: number): PointerTable {
  const bytes = new Uint8Array(begin + ENTRIES * 8).subarray(begin);
  for (const index of used) bytes[index * 8 + byte] = 1;
  return new PointerTable({ name: 'test', offset: 0, bytes, clusterSize: 65536 });
}

test('every entry with a bit set is met once, in order, wherever in memory the table lies', () => {
  for (const begin of [0, 1, 2, 4]) {
    for (const byte of [0, 3, 4, 7]) {
      for (const used of [[], [0], [ENTRIES - 1], [0, 1, 2, 33, ENTRIES - 1], [...Array(ENTRIES).keys()]]) {
        const table = tableWith(used, byte, begin);
        const met: number[] = [];
        for (let i = table.nextUsed(0); i < table.entries; i = table.nextUsed(i + 1)) met.push(i);
        assert.deepEqual(met, used, `begin ${begin}, byte ${byte}`);
        assert.equal(table.nextUsed(ENTRIES), ENTRIES);
      }
    }
  }
});
