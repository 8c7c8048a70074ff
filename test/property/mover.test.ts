import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import { ABSENT, ExtentBuffer, ZERO } from '../../formats/image/extent.ts';
import type { Layer } from '../../formats/image/layer.ts';
import { RawLayer } from '../../formats/raw/raw.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { ClusterLayer } from '../support/cluster-layer.ts';
import { type Random, randomFor } from '../support/random.ts';

/** A chain of one to four layers of differing sizes and cluster sizes, filled at random, and the bytes it must show. */
async function randomChain(random: Random): Promise<{ image: ChainImage; model: Uint8Array; layers: ClusterLayer[] }> {
  const layers: Layer[] = [];
  const clustered: ClusterLayer[] = [];
  let model: Uint8Array = new Uint8Array(0);
  const depth = random.between(1, 4);
  for (let i = 0; i < depth; i++) {
    const size = random.between(1, 200) * 256;
    const below = model;
    model = new Uint8Array(size);
    model.set(below.subarray(0, size));
    if (i === 0 && random.chance(0.4)) {
      random.fill(model);
      layers.unshift(new RawLayer(new MemoryStorage({ bytes: model.slice() }), depth > 1));
      continue;
    }
    const layer = new ClusterLayer({ size, clusterSize: random.pick([512, 1024, 4096, 16384]) });
    layer.metadataOnly = random.chance(0.8);
    layer.reservationLimit = random.between(1, 8);
    layers.unshift(layer);
    clustered.unshift(layer);
    const partial = new ChainImage([...layers]);
    for (let writes = random.below(6); writes > 0; writes--) await change(random, partial, model);
  }
  return { image: new ChainImage(layers), model, layers: clustered };
}

/** One random change of image and model alike. */
async function change(random: Random, image: ChainImage, model: Uint8Array): Promise<void> {
  const offset = random.below(model.length);
  const length = Math.min(model.length - offset, random.pick([1, 17, 512, 4096, 9000, 40000]));
  switch (random.below(4)) {
    case 0:
      model.fill(0, offset, offset + length);
      return image.writeZeroes(offset, length, random.chance(0.5));
    case 1:
      model[offset] = ((model[offset] as number) + 1) % 256;
      return image.readModifyWrite(offset, 1, (bytes) => {
        bytes[0] = ((bytes[0] as number) + 1) % 256;
        return true;
      });
    default: {
      const bytes = random.bytes(length);
      model.set(bytes, offset);
      const list = new IoVec();
      for (let at = 0; at < length; ) {
        const take = Math.min(length - at, random.between(1, 5000));
        list.append(bytes, at, take);
        at += take;
      }
      if (image.tryWritev(offset, list)) return;
      return image.writev(offset, list);
    }
  }
}

async function readBack(random: Random, image: ChainImage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length).fill(0xcc);
  const list = IoVec.of(bytes);
  if (!(random.chance(0.5) && image.tryReadv(offset, list))) await image.readv(offset, list);
  return bytes;
}

test('random chains show what a byte array shows, with any number of calls in flight', async (t) => {
  const random = randomFor(t);
  for (let round = 0; round < 60; round++) {
    const { image, model, layers } = await randomChain(random);
    for (let burst = 0; burst < 6; burst++) {
      // Calls of one burst overlap in time; they take effect in their order, so the model may run ahead.
      const calls: Promise<void>[] = [];
      for (let i = random.between(1, 12); i > 0; i--) calls.push(change(random, image, model));
      if (random.chance(0.3)) calls.push(image.flush());
      await Promise.all(calls);
      if (random.chance(0.2)) layers[0]?.share();
      if (random.chance(0.2)) await layers[0]?.conceal(random.below(8));
      for (let reads = 0; reads < 3; reads++) {
        const offset = random.below(model.length);
        const length = Math.min(model.length - offset, random.pick([1, 600, 5000, 100000]));
        checkBytes(await readBack(random, image, offset, length), model, offset, `round ${round}`);
      }
    }
    checkBytes(await readBack(random, image, 0, model.length), model, 0, `end of round ${round}`);
    await checkMap(image, model);
    await image.close();
  }
});

function checkBytes(actual: Uint8Array, model: Uint8Array, offset: number, when: string): void {
  const first = actual.findIndex((byte, i) => byte !== model[offset + i]);
  if (first < 0) return;
  assert.fail(
    `${when}: byte ${offset + first} (${first} of ${actual.length}) is ${actual[first]}, should be ${model[offset + first]}`,
  );
}

/** The map covers the image without gaps, and what it calls zero or absent is zero. */
async function checkMap(image: ChainImage, model: Uint8Array): Promise<void> {
  const out = new ExtentBuffer(3);
  for (let at = 0; at < image.size; at = out.end) {
    await image.map(at, image.size - at, out);
    assert.ok(out.count > 0);
    let expected = at;
    for (let i = 0; i < out.count; i++) {
      assert.equal(out.offsets[i], expected);
      expected += out.lengths[i] as number;
      if (out.kinds[i] !== ZERO && out.kinds[i] !== ABSENT) continue;
      assert.ok(model.subarray(out.offsets[i], expected).every((byte) => byte === 0));
    }
    assert.equal(out.end, expected);
  }
}
