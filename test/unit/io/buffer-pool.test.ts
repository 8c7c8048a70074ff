import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allocateAligned, BUFFER_ALIGN, BufferPool, MAX_BUFFER } from '../../../src/io/buffer-pool.ts';
import { native } from '../../../src/native/binding.ts';
import { randomFor } from '../../support/random.ts';

test('a buffer is as long as its size class, at least what was asked for', () => {
  const pool = new BufferPool({ budget: 64 << 20 });
  for (const [asked, size] of [
    [0, 4096],
    [1, 4096],
    [4096, 4096],
    [4097, 8192],
    [65_536, 65_536],
    [1_000_000, 1 << 20],
    [MAX_BUFFER, MAX_BUFFER],
  ] as const) {
    assert.equal(pool.tryAcquire(asked)?.length, size);
  }
  assert.throws(() => pool.tryAcquire(MAX_BUFFER + 1), RangeError);
  assert.throws(() => pool.tryAcquire(-1), RangeError);
  assert.throws(() => pool.tryAcquire(Number.NaN), RangeError);
});

test('buffers that are out never overlap, and what is in use never exceeds the budget', (t) => {
  const random = randomFor(t);
  const budget = 3 << 20;
  const pool = new BufferPool({ budget });
  const out: Uint8Array[] = [];
  let refused = 0;
  for (let i = 0; i < 5000; i++) {
    if (out.length > 0 && random.chance(0.45)) {
      const [buffer] = out.splice(random.below(out.length), 1) as [Uint8Array];
      const mark = buffer[0];
      assert.ok(
        buffer.every((byte) => byte === mark),
        'somebody else wrote into it',
      );
      pool.release(buffer);
    } else {
      const buffer = pool.tryAcquire(random.between(1, 200_000));
      if (buffer === undefined) refused++;
      else {
        buffer.fill(i);
        out.push(buffer);
      }
    }
    assert.equal(
      pool.inUse,
      out.reduce((sum, buffer) => sum + buffer.length, 0),
    );
    assert.ok(pool.inUse <= pool.allocated && pool.allocated <= budget);
  }
  assert.ok(refused > 0, 'the budget was never met');
});

test('a released buffer is the next one given, and nothing new is allocated', () => {
  const pool = new BufferPool({ budget: 1 << 20 });
  const first = pool.tryAcquire(10_000) as Uint8Array;
  const { allocated } = pool;
  pool.release(first);
  assert.equal(pool.tryAcquire(16_000), first);
  assert.equal(pool.allocated, allocated);
});

test('free buffers of one class make room for another', () => {
  const pool = new BufferPool({ budget: 260 * 1024 });
  const large = pool.tryAcquire(256 * 1024) as Uint8Array;
  assert.equal(pool.tryAcquire(8192), undefined);
  pool.release(large);
  assert.equal(pool.tryAcquire(1)?.length, 4096);
});

test('releasing twice, or what the pool never gave, is refused', () => {
  const pool = new BufferPool({ budget: 1 << 20 });
  const buffer = pool.tryAcquire(1) as Uint8Array;
  pool.release(buffer);
  assert.throws(() => pool.release(buffer), TypeError);
  assert.throws(() => pool.release(new Uint8Array(4096)), TypeError);
});

test('buffers start at a page', { skip: native === undefined ? 'only the addon knows addresses' : false }, () => {
  const pool = new BufferPool({ budget: 8 << 20 });
  for (const length of [1, 5000, 100_000, 1 << 20]) {
    const buffer = pool.tryAcquire(length) as Uint8Array;
    assert.equal((native?.addressOf(buffer) ?? 1) % BUFFER_ALIGN, 0);
  }
  assert.equal((native?.addressOf(allocateAligned(123)) ?? 1) % BUFFER_ALIGN, 0);
  assert.equal(allocateAligned(123).length, 123);
});
