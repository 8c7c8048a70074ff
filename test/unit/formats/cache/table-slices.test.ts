import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../../../formats/cache/block-cache.ts';
import { TableSlices } from '../../../../formats/cache/table-slices.ts';

const SLICE = 64;

/** A table whose file holds the slice's number in every byte, and counts what is read. */
function tableOf(slices: number, budget = 2 ** 16) {
  const cache = new SharedBlockCache(budget);
  const file = Array.from({ length: slices }, (_, i) => new Uint8Array(SLICE).fill(i));
  const loads: number[] = [];
  const table = new TableSlices(cache, slices, async (slice) => {
    loads.push(slice);
    const bytes = (file[slice] as Uint8Array).slice();
    await new Promise((resolve) => setImmediate(resolve));
    return bytes;
  });
  return { cache, file, loads, table };
}

test('a slice is read once, also when several ask at the same time', async () => {
  const { table, loads } = tableOf(4);
  assert.equal(table.tryGet(2), undefined);
  const all = await Promise.all([table.get(2), table.get(2), table.change(2)]);
  assert.deepEqual(loads, [2]);
  assert.equal(all[0]?.[0], 2);
  assert.notEqual(table.tryGet(2), undefined);
});

test('without any cache a slice is there in the tick in which it was read', async () => {
  const { table } = tableOf(300, 0);
  for (const slice of [1, 65, 129, 1]) {
    await table.get(slice);
    assert.equal(table.tryGet(slice)?.[0], slice % 256);
  }
});

test('a changed slice stays, and counts as pinned, until a copy of that state was written', async () => {
  const { table, cache } = tableOf(300, 0);
  const pinned = (): number => cache.stats.pinnedBytes;
  (await table.change(5))[0] = 77;
  assert.equal(table.dirty, true);
  assert.equal(pinned(), SLICE);
  for (let slice = 6; slice < 300; slice++) await table.get(slice);
  assert.equal(table.tryGet(5)?.[0], 77);
  const copies = table.copies();
  (await table.change(5))[0] = 78;
  assert.equal(copies[0]?.bytes[0], 77, 'a copy does not change with the slice');
  table.written(copies);
  assert.equal(table.dirty, true, 'it has changed since');
  table.written(table.copies());
  assert.equal(table.dirty, false);
  assert.equal(pinned(), 0);
});

test('arrays that the cache holds are not changed', async () => {
  const { table } = tableOf(4);
  const before = await table.get(3);
  (await table.change(3))[0] = 99;
  assert.equal(before[0], 3);
  assert.equal(table.tryGet(3)?.[0], 99);
});

test('copies come in the order of the file', async () => {
  const { table } = tableOf(10);
  for (const slice of [7, 2, 9, 0]) (await table.change(slice))[1] = 1;
  assert.deepEqual(
    table.copies().map(({ slice }) => slice),
    [0, 2, 7, 9],
  );
});

test('a read that fails is tried again by the next who asks', async () => {
  let fail = true;
  const table = new TableSlices(new SharedBlockCache(1000), 1, async () => {
    if (fail) throw new Error('no luck');
    return new Uint8Array(SLICE);
  });
  await assert.rejects(table.get(0), /no luck/);
  fail = false;
  assert.equal((await table.get(0)).length, SLICE);
});

test('release gives pinned memory back', async () => {
  const { table, cache } = tableOf(4);
  await table.change(1);
  table.release();
  assert.equal(cache.stats.pinnedBytes, 0);
  assert.equal(table.dirty, false);
});

test('what is forgotten is read anew, also when it was being read just then', async () => {
  const { table, file, loads } = tableOf(4);
  await table.get(2);
  (file[2] as Uint8Array).fill(7);
  table.forget();
  assert.equal(table.tryGet(2), undefined);
  const before = table.get(2); // reads 7
  (file[2] as Uint8Array).fill(8);
  table.forget();
  const after = table.get(2);
  assert.deepEqual([(await before)[0], (await after)[0], table.tryGet(2)?.[0]], [8, 8, 8]);
  assert.deepEqual(loads, [2, 2, 2]);
});
