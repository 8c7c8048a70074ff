import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import type { KeySlotChange } from '../../../../formats/luks/amend.ts';
import { amendQcow2KeySlots } from '../../../../formats/qcow2/key-slots.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { Storage } from '../../../../formats/storage/storage.ts';
import { PowerCutStorage } from '../../../support/power-cut-storage.ts';
import { createImage, openImage, readAll } from '../../../support/qcow2-images.ts';
import { randomFor } from '../../../support/random.ts';

const FIRST = Buffer.from('the first');
const SECOND = Buffer.from('the second');
const encryption = { secret: FIRST, iterTimeMs: 1, cipherAlg: 'aes-128' };
const template = (await createImage({ size: 64 * 1024, clusterSize: 4096, encryption })).toBytes();

async function opens(storage: Storage, secret: Uint8Array): Promise<boolean> {
  try {
    await (await openImage(storage, { readOnly: true, secret })).close();
    return true;
  } catch (error) {
    if (codeOf(error) === 'ENCRYPTED') return false;
    throw error;
  }
}

const amend = (storage: Storage, change: KeySlotChange, secret: Uint8Array = FIRST): Promise<number[]> =>
  amendQcow2KeySlots(storage, { iterTimeMs: 1, ...change }, async () => [secret]);

test('a passphrase is added and another one taken away, and the data stays', async () => {
  const storage = new MemoryStorage({ bytes: template });
  const image = await openImage(storage, { secret: FIRST });
  await image.writev(1000, IoVec.of(new Uint8Array(9000).fill(7)));
  const shown = await readAll(image);
  await image.close();

  assert.deepEqual(await amend(storage, { state: 'active', newSecret: SECOND }), [1]);
  assert.deepEqual(await amend(storage, { state: 'active', newSecret: SECOND, keyslot: 6 }, SECOND), [6]);
  assert.deepEqual([await opens(storage, FIRST), await opens(storage, SECOND)], [true, true]);
  assert.deepEqual(await amend(storage, { state: 'inactive', oldSecret: FIRST }), [0]);
  assert.deepEqual([await opens(storage, FIRST), await opens(storage, SECOND)], [false, true]);
  assert.deepEqual(await amend(storage, { state: 'inactive', keyslot: 1 }), [1]);
  assert.equal(await opens(storage, SECOND), true);
  const again = await openImage(storage, { readOnly: true, secret: SECOND });
  assert.deepEqual(await readAll(again), shown);
  await again.close();
});

test('what would make no sense, or lose the data, is refused and changes nothing', async () => {
  const storage = new MemoryStorage({ bytes: template });
  for (const [change, code, secret] of [
    [{ state: 'active' }, 'INVALID'],
    [{ state: 'active', newSecret: SECOND, oldSecret: FIRST }, 'INVALID'],
    [{ state: 'active', newSecret: SECOND, keyslot: 0 }, 'INVALID'],
    [{ state: 'active', newSecret: SECOND, keyslot: 8 }, 'INVALID'],
    [{ state: 'active', newSecret: SECOND }, 'ENCRYPTED', SECOND],
    [{ state: 'inactive' }, 'INVALID'],
    [{ state: 'inactive', newSecret: SECOND, keyslot: 0 }, 'INVALID'],
    [{ state: 'inactive', keyslot: 0 }, 'INVALID'],
    [{ state: 'inactive', keyslot: 3 }, 'INVALID'],
    [{ state: 'inactive', oldSecret: FIRST }, 'INVALID'],
    [{ state: 'inactive', oldSecret: SECOND }, 'ENCRYPTED'],
  ] as const) {
    await assert.rejects(amend(storage, change, secret), { code }, JSON.stringify(change));
  }
  assert.deepEqual(storage.toBytes(), template);
  const plain = await createImage({ size: 65536 });
  await assert.rejects(amend(plain, { state: 'inactive', keyslot: 0 }), { code: 'UNSUPPORTED' });
});

test('a power cut while key slots change leaves a passphrase that opens the image', async (t) => {
  const random = randomFor(t);
  for (let i = 0; i < 4; i++) {
    const storage = new PowerCutStorage(random, template);
    // Slot 6 lies across two sectors.
    await amend(storage, { state: 'active', newSecret: SECOND, keyslot: random.pick([1, 6]) });
    const added = storage.now;
    await amend(storage, { state: 'inactive', keyslot: 0 });
    for (let cut = 0; cut < 12; cut++) {
      const at = random.between(0, storage.now);
      const left = new MemoryStorage({ bytes: storage.cut(random, at, random.pick([0, 0.5, 1])) });
      if (at < added) assert.equal(await opens(left, FIRST), true, `cut at ${at}: the first passphrase`);
      else assert.equal(await opens(left, SECOND), true, `cut at ${at}: the second passphrase`);
    }
  }
});
