import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ColdPolicy, SAMPLE_EVERY } from '../../../../formats/cache/cold-policy.ts';

function wanted(policy: ColdPolicy, evictions: number): number {
  let count = 0;
  for (let i = 0; i < evictions; i++) if (policy.wants()) count++;
  return count;
}

test('it starts on, and a block is kept when it shrinks below 60 percent', () => {
  const policy = new ColdPolicy();
  assert.equal(wanted(policy, 10), 10);
  assert.equal(policy.tried(1000, 600), true);
  assert.equal(policy.tried(1000, 601), false);
});

test('blocks that do not shrink turn it down to samples, and samples that shrink turn it on again', () => {
  const policy = new ColdPolicy();
  for (let i = 0; i < 32; i++) policy.tried(1000, 990);
  assert.equal(policy.on, false);
  assert.equal(wanted(policy, SAMPLE_EVERY * 10), 10);
  for (let i = 0; i < 8; i++) policy.tried(1000, 300);
  assert.equal(policy.on, true);
});

test('blocks that nobody asks for again turn it down, and ones that are wanted turn it on again', () => {
  const policy = new ColdPolicy();
  for (let i = 0; i < 256; i++) policy.expired();
  assert.equal(policy.on, false);
  for (let i = 0; i < 8; i++) policy.expired();
  for (let i = 0; i < 8; i++) policy.hit();
  assert.equal(policy.on, true);
});

test('as many hits as departures keep it on', () => {
  const policy = new ColdPolicy();
  for (let i = 0; i < 10_000; i++) {
    policy.hit();
    policy.expired();
    assert.equal(policy.on, true);
  }
});
