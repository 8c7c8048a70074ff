import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { MiB } from '../../../formats/core/units.ts';
import { type Image, MemoryStorage } from '../../../formats/index.ts';
import { transferRun } from '../../../src/convert/transfer.ts';

const PIECE = 32 * MiB;
const LENGTH = 5 * PIECE;

/** Copies with a target that takes the given time, and does what it is told, for each piece. */
async function copied(act: (piece: number, length: number) => Promise<number>, check = (): void => undefined) {
  const told: number[] = [];
  let [inFlight, most] = [0, 0];
  const target = {
    limits: { allocationUnit: 1 },
    copyFrom: async (offset: number, length: number) => {
      most = Math.max(most, ++inFlight);
      try {
        return await act(offset / PIECE, length);
      } finally {
        inFlight--;
      }
    },
  } as unknown as Image;
  const run = { offset: 0, length: LENGTH, storage: new MemoryStorage(), storageOffset: 0 };
  const options = { unit: 0, targetIsZero: true, check, done: (offset: number) => told.push(offset) };
  const result = await transferRun(run, target, options).catch((error: Error) => error);
  return { result, told: told.map((offset) => offset / PIECE), most, inFlight };
}

test('two pieces are in flight, and progress comes in the order of the disk', async () => {
  const seen = await copied(async (piece, length) => {
    await sleep(piece % 2 === 0 ? 20 : 1);
    return length;
  });
  assert.deepEqual(seen, { result: LENGTH, told: [1, 2, 3, 4, 5], most: 2, inFlight: 0 });
});

test('what a piece could not do is where the run ends, whatever came behind it', async () => {
  const seen = await copied(async (piece, length) => {
    await sleep(piece === 1 ? 20 : 1);
    return piece === 1 ? 4096 : length;
  });
  assert.deepEqual([seen.result, seen.told, seen.inFlight], [PIECE + 4096, [1], 0]);
});

test('a failure is that of the first piece that failed, and nothing is in flight then', async () => {
  const seen = await copied(async (piece, length) => {
    await sleep(piece === 2 ? 20 : 1);
    if (piece >= 2) throw new Error(`piece ${piece}`);
    return length;
  });
  assert.equal((seen.result as Error).message, 'piece 2');
  assert.deepEqual([seen.told, seen.inFlight], [[1, 2], 0]);
});

test('who interrupts it waits for the pieces in flight, and no more begin', async () => {
  let pieces = 0;
  const seen = await copied(
    async (_, length) => {
      pieces++;
      await sleep(10);
      return length;
    },
    () => {
      if (pieces >= 3) throw new Error('interrupted');
    },
  );
  assert.equal((seen.result as Error).message, 'interrupted');
  assert.deepEqual([pieces, seen.inFlight], [3, 0]);
});
