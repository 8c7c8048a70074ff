import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { randomFor } from '../../../support/random.ts';

test('slices, copies and fills agree with the same operations on one array', (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 300; round++) {
    const list = new IoVec();
    const pieces = random.between(1, 6);
    for (let i = 0; i < pieces; i++) {
      const before = random.below(5);
      const length = random.below(20);
      list.append(new Uint8Array(before + length + random.below(5)), before, length);
    }
    const model = new Uint8Array(list.byteLength);
    for (let step = 0; step < 10; step++) {
      const at = random.below(list.byteLength + 1);
      const length = random.below(list.byteLength - at + 1);
      const value = random.below(256);
      switch (random.below(3)) {
        case 0:
          list.fill(at, length, value);
          model.fill(value, at, at + length);
          break;
        case 1: {
          const bytes = new Uint8Array(length).map(() => random.below(256));
          assert.equal(list.copyIn(at, bytes), length);
          model.set(bytes, at);
          break;
        }
        default: {
          const other = IoVec.of(new Uint8Array(3).fill(value)).append(new Uint8Array(40).fill(value + 1));
          const take = Math.min(length, 20);
          list.copyFrom(at, other, 1, take);
          model.set(other.contiguous().subarray(1, 1 + take), at);
        }
      }
      const slice = list.slice(at, length);
      assert.equal(slice.byteLength, length);
      assert.deepEqual(slice.contiguous(), model.slice(at, at + length));
    }
    const out = new Uint8Array(list.byteLength);
    assert.equal(list.copyOut(0, out), list.byteLength);
    assert.deepEqual(out, model);
  }
});

test('copies stop at the end of the list', () => {
  const list = IoVec.of(new Uint8Array(4));
  assert.equal(list.copyIn(2, Uint8Array.of(1, 2, 3)), 2);
  assert.deepEqual(list.contiguous(), Uint8Array.of(0, 0, 1, 2));
  assert.equal(list.copyOut(3, new Uint8Array(9)), 1);
});

test('a cleared list lets go of its memory', () => {
  const list = IoVec.of(new Uint8Array(4));
  list.clear();
  assert.equal(list.byteLength, 0);
  assert.equal(list.memory[0]?.length, 0);
});
