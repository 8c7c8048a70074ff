import assert from 'node:assert/strict';
import { test } from 'node:test';
import { areFree, getRefcount, setOnes, setRefcount } from '../../../../formats/qcow2/refcount-codec.ts';
import { randomFor } from '../../../support/random.ts';

test('refcounts narrower than a byte start at its least significant bit', () => {
  const bytes = Uint8Array.of(0b1010_0001, 0b0000_0010);
  assert.deepEqual(
    Array.from({ length: 10 }, (_, i) => getRefcount(bytes, 0, i)),
    [1, 0, 0, 0, 0, 1, 0, 1, 0, 1],
  );
  assert.deepEqual(
    Array.from({ length: 5 }, (_, i) => getRefcount(bytes, 1, i)),
    [1, 0, 2, 2, 2],
  );
  assert.deepEqual(
    Array.from({ length: 3 }, (_, i) => getRefcount(bytes, 2, i)),
    [1, 10, 2],
  );
});

test('refcounts wider than a byte are big endian', () => {
  const bytes = Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 2);
  assert.equal(getRefcount(bytes, 4, 1), 1);
  assert.equal(getRefcount(bytes, 5, 1), 2);
  assert.equal(getRefcount(bytes, 6, 0), 0x100000002);
  assert.equal(getRefcount(new Uint8Array(8).fill(255), 6, 0), Number.POSITIVE_INFINITY);
});

test('setting a refcount changes no other, at any width', (t) => {
  const random = randomFor(t);
  for (let order = 0; order <= 6; order++) {
    const bits = 2 ** order;
    const bytes = new Uint8Array(64);
    const model = new Array<number>(512 / bits).fill(0);
    for (let i = 0; i < 500; i++) {
      const index = random.below(model.length);
      const value = random.below(Math.min(2 ** bits, Number.MAX_SAFE_INTEGER));
      setRefcount(bytes, order, index, value);
      model[index] = value;
    }
    assert.deepEqual(
      model.map((_, i) => getRefcount(bytes, order, i)),
      model,
    );
  }
});

test('runs of refcounts are looked at and set as if one by one, at any width', (t) => {
  const random = randomFor(t);
  for (let order = 0; order <= 6; order++) {
    const count = 4096 / 2 ** order;
    for (let round = 0; round < 50; round++) {
      const [many, one] = [new Uint8Array(512), new Uint8Array(512)];
      const from = random.below(count);
      const to = from + random.below(count - from + 1);
      // What is next to the run is not part of it.
      for (const other of [from - 1, to]) {
        if (other < 0 || other >= count) continue;
        for (const bytes of [many, one]) setRefcount(bytes, order, other, 1);
      }
      assert.equal(areFree(many, order, from, to), order >= 3 && to - from >= 16, `order ${order}: [${from}, ${to})`);
      setOnes(many, order, from, to);
      for (let i = from; i < to; i++) setRefcount(one, order, i, 1);
      assert.deepEqual(many, one, `order ${order}: [${from}, ${to})`);
      if (to > from) assert.equal(areFree(many, order, from, to), false);
    }
  }
});
