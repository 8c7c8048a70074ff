import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import type { BlockSpace } from '../../formats/cache/cache.ts';
import { KiB } from '../../formats/core/units.ts';
import { type Random, randomFor } from '../support/random.ts';

/** A block of random length, from random to all the same: some shrink below the limit, some do not. */
function randomBlock(random: Random, limit: number): Uint8Array {
  const bytes = new Uint8Array(random.chance(0.1) ? random.below(limit) : random.pick([512, 4096, 16 * KiB, 64 * KiB]));
  random.fill(bytes.subarray(0, random.below(bytes.length + 1)));
  return bytes;
}

interface Modelled {
  readonly space: BlockSpace;
  readonly count: number;
  /** What was set last under each number and not deleted since. */
  readonly blocks: Map<number, Uint8Array>;
}

test('whatever is done, the budget holds and a block is absent or what was set last', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 6; round++) {
    const budget = random.pick([0, 4096, 100_000, 256 * KiB, 2048 * KiB, 4096 * KiB]);
    const cache = new SharedBlockCache(budget, { coldShare: random.pick([0, 0.25, 0.5, 1]) });
    const open: Modelled[] = [];
    let pinned = 0;
    let found = 0;
    for (let step = 0; step < 4000; step++) {
      const action = random.below(100);
      const at = random.below(open.length);
      const modelled = open[at];
      if (modelled === undefined || (action === 0 && open.length < 6)) {
        const count = random.between(1, 200);
        open.push({ space: cache.space(count), count, blocks: new Map() });
      } else if (action === 1) {
        modelled.space.release();
        open.splice(at, 1);
      } else if (action < 5) {
        const delta = random.chance(0.6)
          ? -random.below(pinned + 1)
          : random.below(random.chance(0.1) ? budget : budget / 16 + 1);
        pinned += delta;
        cache.adjustPinned(delta);
        assert.equal(cache.pinnedFull, pinned > budget / 4);
      } else if (action < 40) {
        const number = random.below(modelled.count);
        const bytes = randomBlock(random, budget * 1.2 + 1);
        modelled.space.set(number, bytes);
        modelled.blocks.set(number, bytes);
      } else if (action < 43) {
        const number = random.below(modelled.count);
        modelled.space.delete(number);
        modelled.blocks.delete(number);
      } else {
        const number = random.below(modelled.count);
        const bytes = modelled.space.get(number);
        if (bytes !== undefined) {
          found++;
          assert.equal(Buffer.compare(bytes, modelled.blocks.get(number) as Uint8Array), 0);
        }
      }
      if (step % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
      const { warmBytes, coldBytes, pinnedBytes } = cache.stats;
      assert.equal(pinnedBytes, pinned);
      assert.ok(
        warmBytes + coldBytes <= Math.max(0, budget - pinned),
        `step ${step}: ${warmBytes} warm + ${coldBytes} cold + ${pinned} pinned > ${budget}`,
      );
    }
    for (const { space } of open) space.release();
    await new Promise((resolve) => setImmediate(resolve));
    const { warmBytes, coldBytes, hits, coldHits } = cache.stats;
    assert.equal(warmBytes + coldBytes, 0, 'released spaces leave nothing');
    assert.equal(hits, found);
    t.diagnostic(`budget ${budget}: ${hits} hits, ${coldHits} of them cold`);
  }
});
