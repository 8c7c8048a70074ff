import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decompress, PACKING } from '../../../formats/qcow2/cluster-codec.ts';
import { startEncoder, type UnitEncoder, WorkerEncoder } from '../../../src/convert/encoder.ts';
import { NativeEncoder } from '../../../src/convert/native-encoder.ts';
import { canPack, packUnits } from '../../../src/io/native-pack.ts';
import { requireAddon } from '../../support/addon.ts';
import { type Random, randomFor } from '../../support/random.ts';

const UNIT = 16 * 1024;

/** Units of which none is like another: that compress a little, well, not at all, or are zeros. */
function someUnits(random: Random, count: number): Uint8Array {
  const bytes = new Uint8Array(UNIT * count);
  for (let i = 0; i < count; i++) {
    const mask = random.pick([0, 3, 15, 255]);
    const one = random.bytes(UNIT).map((byte) => byte & mask);
    bytes.set(one, UNIT * i);
  }
  return bytes;
}

for (const type of ['zlib', 'zstd'] as const) {
  const compression = { type, unit: UNIT, packing: PACKING[type] };
  const native = requireAddon() || (!canPack(PACKING[type].form) && `no library for ${type} here`);
  const encoders: [string, string | false, () => UnitEncoder][] = [
    ['native code', native, () => new NativeEncoder(compression)],
    ['worker threads', false, () => new WorkerEncoder(compression, 2)],
  ];

  for (const [name, skip, make] of encoders) {
    test(`${type} by ${name}: every unit is a stream of its bytes, itself, or nothing for zeros`, {
      skip,
    }, async (t) => {
      const random = randomFor(t);
      const encoder = make();
      t.after(() => encoder.close());
      const seen = { streams: 0, plain: 0, zeros: 0 };
      const rounds = Array.from({ length: 6 }, (_, round) => {
        const count = 1 + random.below(20);
        const buffer = someUnits(random, count);
        // Behind the length is something else: the last unit is filled up with zeros.
        const length = round % 2 === 0 ? buffer.length : UNIT * (count - 1) + 1 + random.below(UNIT);
        return { buffer, length, encoding: encoder.encode(buffer.slice(), length) };
      });
      for (const { buffer, length, encoding } of rounds) {
        const whole = new Uint8Array(UNIT * Math.ceil(length / UNIT));
        whole.set(buffer.subarray(0, length));
        const { units, release } = await encoding;
        assert.equal(units.length, whole.length / UNIT);
        for (const [i, stream] of units.entries()) {
          const expected = whole.subarray(UNIT * i, UNIT * (i + 1));
          if (stream === null) {
            seen.zeros++;
            assert.ok(expected.every((byte) => byte === 0));
          } else if (stream.length === UNIT) {
            seen.plain++;
            assert.deepEqual(new Uint8Array(stream), expected);
          } else {
            seen.streams++;
            assert.ok(stream.length < UNIT);
            assert.deepEqual(await decompress(type, new Uint8Array(stream), UNIT), expected);
          }
        }
        release();
      }
      assert.ok(seen.streams > 5 && seen.plain > 0 && seen.zeros > 0, JSON.stringify(seen));
    });
  }

  test(`${type}: a unit's stream does not depend on what was packed before, or beside it`, {
    skip: native,
  }, async (t) => {
    const random = randomFor(t);
    const encoder = new NativeEncoder(compression);
    const buffer = someUnits(random, 16);
    const copied = async (bytes: Uint8Array) => {
      const { units, release } = await encoder.encode(bytes, bytes.length);
      const copies = units.map((each) => each && new Uint8Array(each));
      release();
      return copies;
    };
    const together = await copied(buffer);
    const order = random.shuffle(Array.from({ length: 16 }, (_, i) => i));
    const alone = await Promise.all(order.map((i) => copied(buffer.slice(UNIT * i, UNIT * (i + 1)))));
    order.forEach((i, k) => {
      assert.deepEqual(alone[k], [together[i]]);
    });
  });

  test(`${type}: memory that is not given back is not used again`, { skip: native }, async (t) => {
    const encoder = startEncoder({ ...compression, encode: async () => null });
    const [one, other] = [someUnits(randomFor(t), 4).fill(1), someUnits(randomFor(t), 4).fill(2)];
    const first = await encoder.encode(one, one.length);
    const kept = first.units.map((each) => each && new Uint8Array(each));
    await encoder.encode(other, other.length);
    assert.deepEqual(
      first.units.map((each) => each && new Uint8Array(each)),
      kept,
    );
  });
}

test('room that does not fit the units is refused', { skip: requireAddon() }, async () => {
  const { zlib } = PACKING;
  for (const [input, output, lengths] of [
    [UNIT, UNIT - 1, 1],
    [UNIT + 1, 2 * UNIT, 1],
    [UNIT, 2 * UNIT, 2],
  ] as const) {
    const packing = packUnits(zlib, UNIT, new Uint8Array(input), new Uint8Array(output), new Int32Array(lengths));
    await assert.rejects(packing, { code: 'EINVAL' });
  }
});
