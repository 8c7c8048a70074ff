import assert from 'node:assert/strict';
import { test } from 'node:test';
import { StorageError } from '../../../../formats/core/errors.ts';
import { scanTables } from '../../../../formats/qcow2/table-scan.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';

const SIZE = 4096;

function fileOf(tables: number): MemoryStorage {
  const bytes = new Uint8Array(tables * SIZE);
  for (let i = 0; i < tables; i++) bytes.fill(i, i * SIZE, (i + 1) * SIZE);
  return new MemoryStorage({ bytes });
}

/** A storage whose reads all wait, with the places that were read. */
function slow(storage: MemoryStorage, broken: (offset: number, length: number) => boolean = () => false): number[][] {
  const reads: number[][] = [];
  const { tryReadv } = storage;
  storage.tryReadv = () => false;
  storage.readv = async (offset, iov) => {
    reads.push([offset / SIZE, iov.byteLength / SIZE]);
    await new Promise((resolve) => setImmediate(resolve));
    if (broken(offset, iov.byteLength)) throw new StorageError('IO', 'a bad sector', { offset });
    tryReadv.call(storage, offset, iov);
  };
  return reads;
}

for (const kind of ['cached', 'slow'] as const) {
  test(`tables are seen in the order of the file, those behind its end as zeros (${kind})`, async () => {
    const storage = fileOf(200);
    if (kind === 'slow') slow(storage);
    const tables = [1, 2, 5, 90, 91, 199, 300];
    const seen: number[][] = [];
    const visit = (bytes: Uint8Array, offset: number, index: number) => {
      assert.equal(bytes.length, SIZE);
      assert.ok(bytes.every((byte) => byte === bytes[0]));
      seen.push([bytes[0] as number, offset / SIZE, index]);
      return index % 2 === 0 ? undefined : new Promise<void>((resolve) => setImmediate(resolve));
    };
    const offsets = tables.map((table) => table * SIZE);
    await scanTables(storage, offsets, SIZE, { visit });
    assert.deepEqual(
      seen,
      tables.map((table, i) => [table < 200 ? table : 0, table, i]),
    );
  });
}

test('neighbours are read together, what is far apart is not', async () => {
  const storage = fileOf(250);
  const reads = slow(storage);
  const offsets = [1, 2, 5, 90, 91, 199].map((table) => table * SIZE);
  await scanTables(storage, offsets, SIZE, { visit: () => undefined });
  assert.deepEqual(reads, [
    [1, 5],
    [90, 2],
    [199, 1],
  ]);
});

test('of tables that are read together the one that cannot be read is named, the others are seen', async () => {
  const storage = fileOf(20);
  slow(storage, (offset, length) => offset <= 6 * SIZE && offset + length > 6 * SIZE);
  const seen: number[] = [];
  const failed: number[] = [];
  await scanTables(
    storage,
    [5, 6, 7].map((table) => table * SIZE),
    SIZE,
    {
      visit: (bytes) => {
        seen.push(bytes[0] as number);
        return undefined;
      },
      unreadable: (_error, offset) => failed.push(offset / SIZE),
    },
  );
  assert.deepEqual([seen, failed], [[5, 7], [6]]);
});

test('without anybody to tell, a table that cannot be read ends the scan, and nothing is in flight then', async () => {
  const storage = fileOf(200);
  const reads = slow(storage, (offset) => offset === 50 * SIZE);
  const offsets = [10, 50, 100, 150].map((table) => table * SIZE);
  await assert.rejects(scanTables(storage, offsets, SIZE, { visit: () => undefined }), { code: 'IO' });
  assert.equal(reads.length, 4);
});
