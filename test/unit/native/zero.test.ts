import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isZero, isZeroPlain } from '../../../src/native/zero.ts';
import { randomFor } from '../../support/random.ts';

for (const [name, check] of Object.entries({ fastest: isZero, 'without the addon': isZeroPlain })) {
  test(`is-zero (${name}) sees a single bit anywhere, at every alignment and length`, (t) => {
    const random = randomFor(t);
    const memory = new Uint8Array(300);
    for (let start = 0; start < 64; start += random.between(1, 3)) {
      for (let length = 0; length < 200; length += 1) {
        assert.equal(check(memory, start, length), true);
        if (length === 0) continue;
        const at = start + random.below(length);
        memory[at] = 1 << random.below(8);
        assert.equal(check(memory, start, length), false, `byte ${at} of ${start}+${length}`);
        memory[at] = 0;
      }
    }
  });

  test(`is-zero (${name}) does not look outside its range`, (t) => {
    const random = randomFor(t);
    for (let i = 0; i < 200; i++) {
      const memory = random.bytes(200_000).map((byte) => byte | 1);
      const offset = random.below(100_000);
      const length = random.below(100_000);
      memory.fill(0, offset, offset + length);
      assert.equal(check(memory, offset, length), true);
      assert.equal(check(memory, offset, length + 1), false);
      if (offset > 0) assert.equal(check(memory, offset - 1, length + 1), false);
    }
  });

  test(`is-zero (${name}) refuses ranges outside the memory`, () => {
    const memory = new Uint8Array(10);
    for (const [offset, length] of [
      [0, 11],
      [10, 1],
      [-1, 1],
      [0, -1],
      [Number.NaN, 1],
      [2 ** 53, 1],
    ] as const) {
      assert.throws(() => check(memory, offset, length), RangeError);
    }
  });
}
