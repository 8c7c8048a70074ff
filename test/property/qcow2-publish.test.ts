import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { CutModel } from '../support/cut-model.ts';
import { PowerCutStorage } from '../support/power-cut-storage.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../support/qcow2-images.ts';
import { randomFor } from '../support/random.ts';

const WORKLOADS = 80;
const CLUSTER = 512;
const CLUSTERS = 900;
/** Clusters that are written: those of two L2 tables. */
const AREA = 128;
const ONE = Uint8Array.of(1);

test('published writes are sound at any step: counted, in the file, and old or new', async (t) => {
  const random = randomFor(t);
  for (let i = 0; i < WORKLOADS; i++) {
    const size = CLUSTERS * CLUSTER;
    const file = await createImage({ size, clusterSize: CLUSTER, refcountBits: random.pick([1, 16, 64, 64]) });
    const storage = new PowerCutStorage(random, file.toBytes());
    const model = new CutModel(storage, new Uint8Array(size));
    const image = await openImage(storage);
    // The tables; a stock is laid in from now on.
    const tables = Array.from({ length: AREA / 64 }, (_, table) => table * 64 * CLUSTER);
    for (const offset of tables) await model.change(offset, ONE, () => image.writev(offset, IoVec.of(ONE)));
    await image.publish();
    const rounds = Array.from({ length: random.between(3, 8) }, () => random.between(1, 12));
    for (const writes of rounds) {
      const failing = random.chance(0.2);
      storage.failure = random.pick(['IO', 'NO_SPACE']); // after the second it is written on
      storage.failing = (call) => failing && call === 'write' && random.chance(0.1);
      const pending = Array.from({ length: writes }, async () => {
        const bytes = random.bytes(random.between(1, 2 * CLUSTER));
        const offset = random.below((AREA - 2) * CLUSTER);
        await model.change(offset, bytes, () => image.writev(offset, IoVec.of(bytes)));
        for (let turns = random.below(12); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
        await image.publish();
      });
      if (random.chance(0.5)) pending.push(model.flush(() => image.flush()));
      for (const result of await Promise.allSettled(pending)) {
        if (result.status === 'rejected') assert.match(String(result.reason), /injected failure|writing back failed/);
      }
    }
    for (let at = 0; at <= storage.now; at += random.between(1, 4)) {
      const context = `workload ${i}, cut at step ${at} of ${storage.now}`;
      const bytes = storage.cut(random, at, random.pick([0.2, 0.5, 0.8]));
      assert.deepEqual(new Qcow2File(bytes).inspect().corruptions, [], context);
      const left = await openImage(new MemoryStorage({ bytes }));
      assert.equal(model.judge(at, await readAll(left)), -1, context);
      await left.close();
    }
  }
});
