/** What every Storage must do, as tests to run over each kind. */

import assert from 'node:assert/strict';
import { appendFile } from 'node:fs/promises';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { randomFor } from './random.ts';
import type { Cleanup } from './temporary.ts';

/** A storage of some kind on bytes that the maker provides. */
export interface StorageKind {
  readonly name: string;
  /** Opens a storage that holds `bytes`. Closed by the test. */
  make(t: Cleanup, bytes: Uint8Array, options?: { readOnly?: boolean }): Promise<Storage>;
  /** Why this kind cannot be tested here. */
  readonly skip?: string | false;
  /** It has holes that nextData and nextHole find. */
  readonly findsHoles?: boolean;
  readonly punches?: boolean;
}

/** Defines the contract's tests for one kind. */
export function testStorageContract(kind: StorageKind): void {
  const define = (name: string, body: (t: import('node:test').TestContext) => Promise<void>): void => {
    test(`${kind.name}: ${name}`, { skip: kind.skip ?? false }, body);
  };

  define('readv gives what is there, in segments of any size, and zeros past the end', async (t) => {
    const random = randomFor(t);
    const bytes = random.bytes(100_000);
    const storage = await kind.make(t, bytes);
    for (const offset of [0, 1, 511, 4096, 65_535, 99_999, 100_000, 250_000]) {
      const iov = new IoVec();
      let total = 0;
      for (const length of [1, 511, 4096, 3, 65_536]) {
        iov.append(random.bytes(length + 7), 5, length);
        total += length;
      }
      await storage.readv(offset, iov);
      assert.deepEqual(bytesOf(iov), padded(bytes, offset, total));
    }
    await storage.close();
  });

  define('writev lands where it says, grows the storage, and the gap reads as zeros', async (t) => {
    const storage = await kind.make(t, new Uint8Array(10).fill(1));
    const iov = IoVec.of(Uint8Array.of(1, 2, 3, 4), 1, 2).append(Uint8Array.of(9, 8, 7));
    await storage.writev(20_000, iov);
    assert.equal(storage.size, 20_005);
    assert.deepEqual(await read(storage, 19_998, 10), Uint8Array.of(0, 0, 2, 3, 9, 8, 7, 0, 0, 0));
    assert.deepEqual(await read(storage, 8, 4), Uint8Array.of(1, 1, 0, 0));
    await storage.close();
  });

  define('what another program appended before the lock was there belongs to the file', async (t) => {
    const storage = await kind.make(t, new Uint8Array(1000).fill(1));
    if (storage.fd !== null) await appendFile(storage.path, new Uint8Array(500).fill(2));
    else await storage.writev(1000, IoVec.of(new Uint8Array(500).fill(2)));
    await storage.lock('write');
    assert.equal(storage.size, 1500);
    assert.deepEqual(await read(storage, 999, 502), Uint8Array.of(1, ...new Array(500).fill(2), 0));
    await storage.close();
  });

  define('a list of more segments than one system call takes is read and written whole', async (t) => {
    const random = randomFor(t);
    const storage = await kind.make(t, new Uint8Array(0));
    const bytes = random.bytes(3000 * 5);
    const pieces = (): IoVec => {
      const iov = new IoVec();
      for (let i = 0; i < 3000; i++) iov.append(new Uint8Array(5));
      return iov;
    };
    const out = pieces();
    out.copyIn(0, bytes);
    await storage.writev(7, out);
    const back = pieces();
    await storage.readv(7, back);
    assert.deepEqual(bytesOf(back), bytes);
    if (storage.tryReadv(7, back)) assert.deepEqual(bytesOf(back), bytes);
    await storage.close();
  });

  define('tryReadv that says true has read the same as readv', async (t) => {
    const random = randomFor(t);
    const bytes = random.bytes(300_000);
    const storage = await kind.make(t, bytes);
    for (let i = 0; i < 200; i++) {
      const offset = random.below(310_000);
      const iov = IoVec.of(random.bytes(random.between(1, 5000))).append(random.bytes(random.between(1, 5000)));
      if (storage.tryReadv(offset, iov)) assert.deepEqual(bytesOf(iov), padded(bytes, offset, iov.byteLength));
    }
    await storage.close();
  });

  define(
    'tryWritev writes all and says true, or nothing and says false; it grows a storage as writev does, or says false',
    async (t) => {
      const random = randomFor(t);
      let model = random.bytes(300_000);
      const storage = await kind.make(t, model);
      for (let i = 0; i < 200; i++) {
        const length = random.chance(0.5) ? 4096 * random.between(1, 20) : random.between(1, 9000);
        const offset = random.chance(0.5) ? 4096 * random.below(80) : random.below(320_000);
        const bytes = random.bytes(length);
        if (storage.tryWritev(offset, IoVec.of(bytes))) {
          const larger = new Uint8Array(Math.max(model.length, offset + length));
          larger.set(model);
          larger.set(bytes, offset);
          model = larger;
        }
        assert.equal(storage.size, model.length);
      }
      assert.deepEqual(await read(storage, 0, model.length), model);
      await storage.close();
    },
  );

  define('a random sequence of writes, zeroes, discards and resizes agrees with a plain array', async (t) => {
    const random = randomFor(t);
    const limit = 1_000_000;
    const storage = await kind.make(t, new Uint8Array(0));
    let model = new Uint8Array(0);
    const grow = (end: number): void => {
      if (end <= model.length) return;
      const larger = new Uint8Array(end);
      larger.set(model);
      model = larger;
    };
    for (let i = 0; i < 150; i++) {
      const length = random.between(1, 70_000);
      const offset = random.below(limit - length);
      const what = random.below(10);
      if (what < 5) {
        const bytes = random.bytes(length);
        const iov = IoVec.of(bytes);
        if (!storage.tryWritev(offset, iov)) await storage.writev(offset, iov);
        grow(offset + length);
        model.set(bytes, offset);
      } else if (what < 7) {
        if (await storage.writeZeroes(offset, length, random.chance(0.5))) {
          grow(offset + length);
          model.fill(0, offset, offset + length);
        }
      } else if (what < 9) {
        if (await storage.discard(offset, length)) model.fill(0, offset, Math.min(model.length, offset + length));
      } else {
        const size = random.below(limit);
        await storage.resize(size);
        grow(size);
        model = model.slice(0, size);
      }
      assert.equal(storage.size, model.length, `after step ${i}`);
    }
    assert.deepEqual(await read(storage, 0, limit), padded(model, 0, limit));
    await storage.sync();
    await storage.close();
  });

  define('nextData and nextHole walk a sparse storage in order and never past its size', async (t) => {
    const storage = await kind.make(t, new Uint8Array(0));
    await storage.writev(1 << 20, IoVec.of(new Uint8Array(65_536).fill(1)));
    await storage.resize(4 << 20);
    if (kind.findsHoles === true) {
      assert.equal(await storage.nextData(0), 1 << 20);
      assert.equal(await storage.nextHole(0), 0);
      assert.equal(await storage.nextHole(1 << 20), (1 << 20) + 65_536);
      assert.equal(await storage.nextData((1 << 20) + 65_536), 4 << 20);
    } else {
      assert.equal(await storage.nextData(4096), 4096);
      assert.equal(await storage.nextHole(4096), 4 << 20);
    }
    assert.equal(await storage.nextData(4 << 20), 4 << 20);
    assert.equal(await storage.nextHole(5 << 20), 4 << 20);
    await storage.close();
  });

  define('writeZeroes and discard say whether they can', async (t) => {
    const storage = await kind.make(t, new Uint8Array(200_000).fill(7));
    const can = kind.punches === true;
    assert.equal(await storage.writeZeroes(65_536, 65_536, true), can);
    assert.equal(await storage.writeZeroes(0, 10, false), can);
    assert.equal(await storage.discard(196_608, 1_000_000), can);
    if (can) {
      const all = await read(storage, 0, 200_000);
      assert.deepEqual(all.subarray(0, 12), Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7));
      assert.ok(all.subarray(65_536, 131_072).every((byte) => byte === 0));
      assert.ok(all.subarray(131_072, 196_608).every((byte) => byte === 7));
      assert.ok(all.subarray(196_608).every((byte) => byte === 0));
    }
    assert.equal(storage.size, 200_000);
    await storage.close();
  });

  define('requests at the same time do not disturb each other', async (t) => {
    const random = randomFor(t);
    const storage = await kind.make(t, new Uint8Array(64 * 8192));
    await Promise.all(
      Array.from({ length: 64 }, async (_, i) => {
        await storage.writev(i * 8192, IoVec.of(new Uint8Array(8192).fill(i + 1)));
        if (random.chance(0.2)) await storage.sync();
        const back = await read(storage, i * 8192, 8192);
        assert.ok(back.every((byte) => byte === i + 1));
      }),
    );
    await storage.close();
  });

  define('a storage that is open for reading only refuses every change with READ_ONLY', async (t) => {
    const storage = await kind.make(t, Uint8Array.of(1, 2, 3), { readOnly: true });
    const code = { code: 'READ_ONLY' };
    await assert.rejects(async () => storage.writev(0, IoVec.of(new Uint8Array(1))), code);
    await assert.rejects(async () => storage.writeZeroes(0, 1, true), code);
    await assert.rejects(async () => storage.discard(0, 1), code);
    await assert.rejects(async () => storage.resize(1), code);
    assert.deepEqual(await read(storage, 0, 3), Uint8Array.of(1, 2, 3));
    await storage.close();
  });

  define('after close every call fails with CLOSED, and a second close does nothing', async (t) => {
    const storage = await kind.make(t, Uint8Array.of(1, 2, 3));
    await Promise.all([storage.close(), storage.close()]);
    const code = { code: 'CLOSED' };
    await assert.rejects(async () => storage.readv(0, IoVec.of(new Uint8Array(1))), code);
    await assert.rejects(async () => storage.writev(0, IoVec.of(new Uint8Array(1))), code);
    await assert.rejects(async () => storage.sync(), code);
    // Whether they throw or say false: they do nothing.
    for (const attempt of [
      () => storage.tryReadv(0, IoVec.of(new Uint8Array(1))),
      () => storage.tryWritev(0, IoVec.of(new Uint8Array(1))),
    ]) {
      try {
        assert.equal(attempt(), false);
      } catch (error) {
        assert.equal((error as { code?: string }).code, 'CLOSED');
      }
    }
    await storage.close();
  });

  define('close waits for what is in flight', async (t) => {
    const storage = await kind.make(t, new Uint8Array(1 << 20).fill(5));
    const memory = new Uint8Array(1 << 20);
    const reading = storage.readv(0, IoVec.of(memory));
    await storage.close();
    await reading;
    assert.ok(memory.every((byte) => byte === 5));
  });

  define('references resolve beside the image unless they are absolute', async (t) => {
    const storage = await kind.make(t, new Uint8Array(1));
    const folder = storage.path.slice(0, storage.path.lastIndexOf('/'));
    assert.equal(storage.resolve('base.qcow2'), `${folder}/base.qcow2`);
    assert.equal(storage.resolve('/images/base.qcow2'), '/images/base.qcow2');
    await storage.close();
  });
}

/** Bytes [offset, offset + length) of a storage. */
export async function read(storage: Storage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await storage.readv(offset, IoVec.of(bytes));
  return bytes;
}

function bytesOf(iov: IoVec): Uint8Array {
  const all = new Uint8Array(iov.byteLength);
  iov.copyOut(0, all);
  return all;
}

/** Bytes [offset, offset + length) of an array, zeros past its end. */
function padded(bytes: Uint8Array, offset: number, length: number): Uint8Array {
  const result = new Uint8Array(length);
  result.set(bytes.subarray(offset, offset + length));
  return result;
}
