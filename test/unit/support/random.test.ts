import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Random } from '../../support/random.ts';

test('the same seed gives the same numbers, another seed others', () => {
  const draw = (seed: number): number[] => {
    const random = new Random(seed);
    return [random.next(), random.below(1e12), random.between(5, 9)];
  };
  assert.deepEqual(draw(7), draw(7));
  assert.notDeepEqual(draw(7), draw(8));
});

test('below and between stay inside their bounds and reach both ends', () => {
  const random = new Random(1);
  const seen = new Set<number>();
  for (let i = 0; i < 1000; i++) seen.add(random.between(3, 6));
  assert.deepEqual([...seen].sort(), [3, 4, 5, 6]);
  assert.ok(random.below(2 ** 50) < 2 ** 50);
});

test('fill reaches every byte whatever the length, and shuffle keeps the items', () => {
  for (const length of [1, 2, 3, 4, 5, 7, 64]) {
    const touched = new Uint8Array(length);
    for (let seed = 0; seed < 20; seed++) {
      new Random(seed).bytes(length).forEach((byte, i) => {
        touched[i] = (touched[i] as number) | byte;
      });
    }
    assert.ok(
      touched.every((byte) => byte !== 0),
      `length ${length}`,
    );
  }
  assert.deepEqual(new Random(3).shuffle([1, 2, 3, 4]).sort(), [1, 2, 3, 4]);
});
