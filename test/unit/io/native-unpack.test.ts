import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import zstd from 'zstd-napi';
import { IoVec } from '../../../formats/core/iov.ts';
import { PLACE_WORDS } from '../../../formats/core/unpack.ts';
import { unpackClusters } from '../../../formats/qcow2/cluster-codec.ts';
import { unpackOn } from '../../../src/io/native-unpack.ts';
import { native } from '../../../src/native/binding.ts';
import { IoQueue } from '../../../src/native/io-queue.ts';
import { requireAddon } from '../../support/addon.ts';
import { type Random, randomFor } from '../../support/random.ts';

const SIZE = 20_000;
const FORMS = { zlib: 'deflate', zstd: 'zstd' } as const;
const canUnpack = (type: keyof typeof FORMS): boolean => native?.canUnpack?.(type === 'zstd' ? 1 : 0) === true;

interface Stream {
  readonly bytes: Uint8Array;
  /** What comes of it does not depend on the version of a library: how much of a broken zstd frame is given out does. */
  readonly certain: boolean;
}

/** A stream of either kind: whole, cut, broken, or followed by something else. */
function someStream(random: Random, type: keyof typeof FORMS): Stream {
  const content = random.bytes(random.pick([1, SIZE - 1, SIZE, SIZE, SIZE, SIZE + 1, 3 * SIZE]));
  for (let at = 0; at < content.length; at++) content[at] = (content[at] as number) & 7;
  const stream = new Uint8Array(type === 'zlib' ? deflateRawSync(content) : zstd.compress(content));
  switch (random.below(4)) {
    case 0:
      return { bytes: stream.subarray(0, 1 + random.below(stream.length)), certain: type === 'zlib' };
    case 1:
      // Not behind the last byte of content: Node gives nothing out when that is met in the same call.
      stream[random.below(Math.max(1, stream.length - 8))]! ^= 1 << random.below(8);
      return { bytes: stream, certain: type === 'zlib' };
    case 2:
      return { bytes: new Uint8Array(Buffer.concat([stream, random.bytes(random.below(100))])), certain: true };
    default:
      return { bytes: stream, certain: true };
  }
}

for (const type of ['zlib', 'zstd'] as const) {
  const skip = requireAddon() || (!canUnpack(type) && `no library for ${type} here`);

  test(`${type}: streams that are unpacked together come to what each comes to in JavaScript`, { skip }, async (t) => {
    const random = randomFor(t);
    const queue = new IoQueue({ threads: 2 });
    t.after(() => queue.close());
    const unpack = unpackOn(queue);
    const seen = { nothing: 0, short: 0, full: 0 };
    for (let round = 0; round < 60; round++) {
      const streams = Array.from({ length: 1 + random.below(20) }, () => someStream(random, type));
      const packed = new Uint8Array(Buffer.concat(streams.map(({ bytes }) => bytes)));
      const places = new Int32Array(PLACE_WORDS * streams.length);
      let at = 0;
      streams.forEach(({ bytes }, i) => {
        places.set([at, bytes.length, 0], PLACE_WORDS * i);
        at += bytes.length;
      });
      // A gap behind each output shows writes past it.
      const room = SIZE + 8;
      const run = async (way: typeof unpack | undefined) => {
        const memory = new Uint8Array(room * streams.length).fill(0xa5);
        const outputs = new IoVec();
        streams.forEach((_, i) => {
          outputs.append(memory, room * i, SIZE);
        });
        const results = places.slice();
        if (way === undefined) await unpackClusters(type, packed, results, outputs);
        else assert.equal(await way(FORMS[type], packed, results, outputs), true);
        return streams.map((_, i) => {
          const done = results[PLACE_WORDS * i + 2] as number;
          const bytes = memory.subarray(room * i, room * (i + 1));
          assert.ok(
            bytes.subarray(SIZE).every((byte) => byte === 0xa5),
            'nothing behind an output is touched',
          );
          return { done, bytes: bytes.slice(0, Math.max(0, done)) };
        });
      };
      const results = await run(unpack);
      const expected = await run(undefined);
      streams.forEach(({ certain }, i) => {
        if (certain) assert.deepEqual(results[i], expected[i], `round ${round}, stream ${i}`);
      });
      for (const { done } of results) seen[done < 0 ? 'nothing' : done < SIZE ? 'short' : 'full']++;
    }
    assert.ok(seen.nothing > 0 && seen.short > 10 && seen.full > 100, JSON.stringify(seen));
  });
}

test('places outside of the packed bytes are refused', { skip: requireAddon() }, async (t) => {
  const queue = new IoQueue({ threads: 1 });
  t.after(() => queue.close());
  const unpack = unpackOn(queue);
  const packed = new Uint8Array(100);
  for (const place of [
    [0, 101, 0],
    [-1, 5, 0],
    [100, 1, 0],
    [0, -1, 0],
    [2 ** 31 - 1, 2 ** 31 - 1, 0],
  ]) {
    const outputs = IoVec.of(new Uint8Array(10));
    await assert.rejects(unpack('deflate', packed, Int32Array.from(place), outputs), { code: 'EINVAL' });
  }
});
