import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { checkVdi } from '../../formats/vdi/check.ts';
import { createVdi } from '../../formats/vdi/create.ts';
import { vdi } from '../../formats/vdi/driver.ts';
import { parseVbox } from '../../formats/vdi/vbox.ts';
import { damage, exercise, survives } from '../support/hostile.ts';
import { openLayer } from '../support/layers.ts';
import { randomFor } from '../support/random.ts';

const ROUNDS = Number(process.env.LUNETTE_FLIPS ?? 10_000);

/** Map at 512, data at 1024: small, so that damage hits something. */
async function smallImage(): Promise<Uint8Array> {
  const storage = new MemoryStorage();
  await createVdi(storage, { size: 16 * 4096, blockSize: 4096 });
  const bytes = new Uint8Array(1024 + 5 * 4096).fill(0x5a);
  bytes.set(storage.toBytes().subarray(0, 512));
  bytes.fill(0xff, 512, 1024);
  const view = new DataView(bytes.buffer);
  view.setUint32(0x154, 512, true);
  view.setUint32(0x158, 1024, true);
  view.setUint32(0x184, 5, true);
  [3, 0xfffffffe, 0, 1, 4, 2].forEach((entry, i) => view.setUint32(512 + 4 * i, entry, true));
  return bytes;
}

test('damaged VDI images fail with an error or work, quickly; what was repaired is clean', async (t) => {
  const random = randomFor(t);
  const good = await smallImage();
  let opened = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const bytes = good.slice();
    damage(random, bytes, [
      { start: 0x40, end: 0x54 },
      { start: 0x154, end: 0x1c8 },
      { start: 512, end: 576 },
    ]);
    const readOnly = random.chance(0.5);
    await survives(async () => {
      const layer = await openLayer(vdi, new MemoryStorage({ bytes, maxSize: 2 ** 26 }), { readOnly });
      opened++;
      await exercise(random, new ChainImage([layer]));
    }, 'open');
    const storage = new MemoryStorage({ bytes, maxSize: 2 ** 26 });
    const cache = new SharedBlockCache(2 ** 20);
    if (!(await survives(() => checkVdi(storage, { cache, repair: 'all' }), 'repair'))) continue;
    const found = await checkVdi(storage, { cache });
    if (found.corruptions + found.leaks > 0 && bytes[0x44] !== 2) assert.fail(found.messages.join('\n'));
  }
  assert.ok(opened > ROUNDS / 10, `only ${opened} of ${ROUNDS} could be opened`);
});

test('damaged .vbox files are read or refused', async (t) => {
  const random = randomFor(t);
  const good = new TextEncoder().encode(
    `<?xml version="1.0"?><VirtualBox><Machine uuid="{}" name="a&amp;b"><MediaRegistry><HardDisks><HardDisk uuid="{1}" location="x">
    <HardDisk uuid="{2}"/></HardDisk></HardDisks></MediaRegistry><Snapshot name="s"><Description>d</Description></Snapshot></Machine></VirtualBox>`,
  );
  for (let round = 0; round < 2000; round++) {
    const bytes = good.slice();
    damage(random, bytes, [{ start: 20, end: bytes.length }]);
    if (random.chance(0.2)) bytes.copyWithin(random.below(100), random.below(100), 200);
    await survives(async () => parseVbox(new TextDecoder().decode(bytes), '/x'), 'parse');
  }
});
