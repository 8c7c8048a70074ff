import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { RangeDigest } from '../../../src/convert/range-digest.ts';
import { randomFor } from '../../support/random.ts';

function digestOf(...parts: readonly (readonly [offset: number, bytes: Uint8Array])[]): string {
  const digest = new RangeDigest();
  for (const [offset, bytes] of parts) digest.update(offset, bytes);
  return digest.finish();
}

test('the digest of a range does not depend on how its bytes were cut', (t) => {
  const random = randomFor(t);
  const bytes = new Uint8Array(3 * MiB + 5 * KiB);
  for (let i = 0; i < bytes.length; i++) bytes[i] = random.next();
  const start = 512 * 3;
  const pieces: [number, Uint8Array][] = [];
  for (let at = 0; at < bytes.length; ) {
    const take = 1 + Math.floor(random.fraction() * 1.2 * MiB);
    pieces.push([start + at, bytes.subarray(at, at + take)]);
    at += take;
  }
  assert.equal(digestOf(...pieces), digestOf([start, bytes]));
});

test('zeros count the same whether they are given or left out', () => {
  const data = new Uint8Array(4 * KiB).fill(7);
  const around = new Uint8Array(2 * MiB);
  around.set(data, MiB - 2 * KiB);
  assert.equal(digestOf([0, around], [2 * MiB, new Uint8Array(MiB)]), digestOf([MiB - 2 * KiB, data]));
});

test('a byte that is another one, or in another place, gives another digest', () => {
  const data = new Uint8Array(4 * KiB).fill(7);
  const other = data.slice();
  other[4095] = 8;
  const all = [digestOf([0, data]), digestOf([0, other]), digestOf([512, data]), digestOf([MiB, data])];
  assert.equal(new Set(all).size, all.length);
});
