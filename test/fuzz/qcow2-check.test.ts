import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { checkQcow2 } from '../../formats/qcow2/check.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage } from '../support/qcow2-images.ts';
import { randomFor } from '../support/random.ts';

/** Damaged images in one run; LUNETTE_FLIPS asks for more. */
const FLIPS = Number(process.env.LUNETTE_FLIPS ?? 1000);
const MAX_STEP_MS = 5000;

async function seedImage(clusterSize: number, refcountBits: number): Promise<Uint8Array> {
  const storage = await createImage({ size: 200 * clusterSize, clusterSize, refcountBits });
  const image = await openImage(storage);
  for (let i = 0; i < 6; i++) {
    await image.writev(i * 30 * clusterSize, IoVec.of(new Uint8Array(2 * clusterSize).fill(i + 1)));
  }
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  if (refcountBits > 1) file.takeSnapshot('1', 'one');
  return file.bytes;
}

test('check and repair of damaged images end, with findings or with an error of ours, and what was made clean stays so', async (t) => {
  const random = randomFor(t);
  const seeds = await Promise.all([seedImage(512, 16), seedImage(4096, 1), seedImage(512, 64)]);
  for (let run = 0; run < FLIPS; run++) {
    const bytes = random.pick(seeds).slice();
    const file = new Qcow2File(bytes);
    const places = [0, 0, file.l1Offset, Number(file.u64(48)), Number(file.u64(Number(file.u64(48))))];
    places.push(Number(file.u64(file.l1Offset) & 0xfffffffffffe00n), Number(file.u64(64)));
    const view = new DataView(bytes.buffer);
    for (let flips = random.pick([1, 1, 2, 5]); flips > 0; flips--) {
      const at = Math.min(bytes.length - 8, random.pick(places) + 8 * random.below(18));
      if (random.chance(0.5)) bytes[at + random.below(8)] = random.next();
      else
        view.setBigUint64(
          at,
          BigInt(random.below(bytes.length / 512 + 4)) * 512n + (random.chance(0.5) ? 1n << 63n : 0n),
        );
    }
    const damaged = random.chance(0.1) ? bytes.subarray(0, random.below(bytes.length)) : bytes;
    const started = performance.now();
    try {
      await checkQcow2(new MemoryStorage({ bytes: damaged.slice() }), { deep: true });
      const storage = new MemoryStorage({ bytes: damaged.slice(), maxSize: 64 * 1024 * 1024 });
      const repair = random.pick(['leaks', 'all', 'all'] as const);
      const counterBytes = random.chance(0.3) ? 1 : undefined;
      const first = await checkQcow2(storage, { repair, counterBytes });
      const second = await checkQcow2(storage, { repair, counterBytes });
      if (first.corruptions + first.leaks + first.checkErrors > 0) continue;
      assert.equal(second.corruptions + second.leaks + second.checkErrors, 0, `run ${run}`);
      assert.equal(second.corruptionsFixed + second.leaksFixed, 0, `run ${run}: it was clean`);
    } catch (error) {
      if (!(error instanceof LunetteError) || error.code === 'INTERNAL') throw error;
    }
    const took = performance.now() - started;
    assert.ok(took < MAX_STEP_MS, `run ${run} took ${took} ms`);
  }
});
