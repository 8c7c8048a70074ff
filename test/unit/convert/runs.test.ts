import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ABSENT, DATA, type ExtentBuffer, MemoryStorage, type Storage } from '../../../formats/index.ts';
import type { DiskSource } from '../../../src/convert/disk.ts';
import { type DataRun, dataRuns } from '../../../src/convert/runs.ts';
import { randomFor } from '../../support/random.ts';

/** A disk whose data lies in a storage, 1000 bytes behind where the guest sees it. */
function diskOf(size: number, data: readonly (readonly [start: number, end: number])[], storage: Storage): DiskSource {
  return {
    path: 'disk',
    size,
    map: async (offset: number, length: number, out: ExtentBuffer) => {
      assert.equal(offset + length, size);
      out.begin(offset);
      let at = offset;
      for (const [start, end] of data) {
        if (start > at) out.append(ABSENT, start - at);
        out.append(DATA, end - start, storage, start + 1000);
        at = end;
      }
      if (size > at) out.append(ABSENT, size - at);
      return out.count;
    },
    tryReadv: () => false,
    readv: async () => undefined,
  };
}

test('of a run whose ends lie within units, what is between them has its place, and the ends have none', async () => {
  const storage = new MemoryStorage();
  const runs: DataRun[] = [];
  for await (const run of dataRuns(diskOf(100_000, [[1500, 9500]], storage), { unit: 1000 })) runs.push(run);
  assert.deepEqual(runs, [
    { offset: 1000, length: 1000, storage: null, storageOffset: 0 },
    { offset: 2000, length: 7000, storage, storageOffset: 3000 },
    { offset: 9000, length: 1000, storage: null, storageOffset: 0 },
  ]);
});

test('runs cover each unit with data once, in order, and name places only where all of it lies', async (t) => {
  const random = randomFor(t);
  const storage = new MemoryStorage();
  for (let round = 0; round < 200; round++) {
    const size = 50_000 + random.below(3000);
    const data: [number, number][] = [];
    for (let at = random.below(3000); at < size; at += random.below(5000)) {
      const end = Math.min(size, at + 1 + random.below(6000));
      data.push([at, end]);
      at = end + 1;
    }
    const [unit, longest] = [1000, random.pick([Number.POSITIVE_INFINITY, 3000])];
    const covered = new Set<number>();
    let last = 0;
    for await (const run of dataRuns(diskOf(size, data, storage), { unit, longest })) {
      assert.ok(run.offset >= last && run.offset % unit === 0 && run.length > 0 && run.length <= longest);
      last = run.offset + run.length;
      assert.ok(last % unit === 0 || last === size);
      for (let at = run.offset; at < last; at += unit) covered.add(at / unit);
      const held = data.some(([start, end]) => start <= run.offset && last <= end);
      if (run.storage !== null) assert.ok(held && run.storageOffset === run.offset + 1000);
    }
    const expected = new Set<number>();
    for (const [start, end] of data) {
      for (let i = Math.floor(start / unit); i * unit < end; i++) expected.add(i);
    }
    assert.deepEqual(covered, expected);
  }
});
