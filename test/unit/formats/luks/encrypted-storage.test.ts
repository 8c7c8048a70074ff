import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { parseCipher } from '../../../../formats/luks/cipher-spec.ts';
import { EncryptedStorage } from '../../../../formats/luks/encrypted-storage.ts';
import { makeSectorCipher } from '../../../../formats/luks/sector-cipher.ts';
import { PowerCutStorage } from '../../../support/power-cut-storage.ts';
import { type Random, randomFor } from '../../../support/random.ts';

const SIZE = 700 * 1024;

function makeStorage(random: Random): { below: PowerCutStorage; storage: EncryptedStorage } {
  const below = new PowerCutStorage(random, new Uint8Array(SIZE));
  const cipher = makeSectorCipher(parseCipher('aes', 'xts-plain64', 64), random.bytes(64));
  return { below, storage: new EncryptedStorage(below, cipher) };
}

test('bytes at any offset come back, whatever is written beside them at the same time', async (t) => {
  const random = randomFor(t);
  const { storage } = makeStorage(random);
  const model = new Uint8Array(SIZE);
  await storage.writev(0, IoVec.of(model));
  for (let round = 0; round < 60; round++) {
    // Neighbours that share sectors, in flight together.
    const pending: Promise<void>[] = [];
    let at = random.below(SIZE / 2);
    for (let i = 0; i < 12 && at < SIZE; i++) {
      const length = Math.min(SIZE - at, 1 + random.below(random.pick([40, 600, 5000, 300_000])));
      const bytes = random.bytes(length);
      model.set(bytes, at);
      const half = Math.floor(length / 2);
      const list = IoVec.of(bytes, 0, half).append(bytes, half);
      if (!random.chance(0.5) || !storage.tryWritev(at, list)) pending.push(storage.writev(at, list));
      at += length;
    }
    // Reads of what nobody writes, in the sectors of those who are written.
    const before = random.below(Math.max(1, Math.min(at, SIZE) - 1));
    const quiet = at < SIZE ? { at, length: Math.min(SIZE - at, 900) } : { at: before, length: 0 };
    const found = new Uint8Array(quiet.length);
    if (quiet.length > 0) pending.push(storage.readv(quiet.at, IoVec.of(found)));
    await Promise.all(pending);
    assert.deepEqual(found, model.slice(quiet.at, quiet.at + quiet.length));
    const from = random.below(SIZE);
    const part = new Uint8Array(1 + random.below(SIZE - from));
    if (!storage.tryReadv(from, IoVec.of(part))) await storage.readv(from, IoVec.of(part));
    assert.ok(Buffer.compare(part, model.subarray(from, from + part.length)) === 0, `round ${round}`);
  }
  const all = new Uint8Array(SIZE);
  await storage.readv(0, IoVec.of(all));
  assert.ok(Buffer.compare(all, model) === 0);
});

test('nothing that an encrypted storage offers shows or takes encrypted bytes', async (t) => {
  const random = randomFor(t);
  const { below, storage } = makeStorage(random);
  assert.equal(storage.fd, null);
  assert.equal(storage.growsZeroed, false);
  assert.equal(await storage.writeZeroes(), false);
  assert.equal(await storage.copyFrom(), 0);
  assert.equal(await storage.nextData(1000), 1000);
  assert.equal(await storage.nextHole(), SIZE);
  const zeros = new Uint8Array(4096);
  await storage.writev(8192, IoVec.of(zeros));
  const stored = new Uint8Array(4096);
  await below.readv(8192, IoVec.of(stored));
  assert.notDeepEqual(stored, zeros);
  assert.notDeepEqual(stored.slice(0, 512), stored.slice(512, 1024), 'equal sectors look different');
});
