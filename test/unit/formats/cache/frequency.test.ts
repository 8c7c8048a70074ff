import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FrequencySketch } from '../../../../formats/cache/frequency.ts';

test('a key is never estimated below its count while nothing was halved', () => {
  const sketch = new FrequencySketch(1024);
  const keys = [0, 1, 77, 2 ** 31, 2 ** 40 + 5];
  for (const key of keys) for (let i = 0; i < 10; i++) sketch.count(key);
  for (const key of keys) assert.ok(sketch.estimate(key) >= 10);
});

test('keys that were not counted are mostly estimated at nothing', () => {
  const sketch = new FrequencySketch(4096);
  for (let key = 0; key < 400; key++) sketch.count(key);
  let wrong = 0;
  for (let key = 10_000; key < 11_000; key++) if (sketch.estimate(key) > 0) wrong++;
  assert.ok(wrong < 50, `${wrong} of 1000`);
});

test('keys that differ only above 2^32 are told apart', () => {
  const sketch = new FrequencySketch(4096);
  for (let i = 0; i < 5; i++) sketch.count(3);
  assert.equal(sketch.estimate(3 + 2 ** 33), 0);
});

test('counts saturate, and what was long ago counts less and less', () => {
  const sketch = new FrequencySketch(256);
  for (let i = 0; i < 1000; i++) sketch.count(1);
  assert.equal(sketch.estimate(1), 255);
  for (let i = 0; i < 256 * 8 * 3; i++) sketch.count(1000 + (i % 16));
  assert.ok(sketch.estimate(1) < 64);
});
