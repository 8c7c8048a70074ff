import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { ABSENT, DATA, ExtentBuffer, ZERO } from '../../../../formats/image/extent.ts';
import { vmdk } from '../../../../formats/vmdk/driver.ts';
import { openDisk, openLayer } from '../../../support/layers.ts';
import { seSparseFile, seSparseGrain } from '../../../support/vmdk-files.ts';

test('grains are absent, zero in two ways, or where their split number says', async () => {
  const layer = await openLayer(vmdk, seSparseFile([0n, 1n << 60n, 2n << 60n, seSparseGrain(0n), seSparseGrain(3n)]), {
    readOnly: true,
  });
  const out = new ExtentBuffer();
  const count = await layer.map(0, 5 * 4096, out);
  assert.deepEqual([...out.kinds.subarray(0, count)], [ABSENT, ZERO, DATA, DATA]);
  assert.deepEqual(
    [out.lengths[1], out.storageOffsets[2], out.storageOffsets[3]],
    [8192, 128 * 512, 128 * 512 + 3 * 4096],
  );
  assert.equal(layer.size, 16 * 4096);
  await layer.close();
});

test('the high bits of a grain’s number come from the low bits of its entry', async () => {
  const storage = seSparseFile([seSparseGrain(4097n)]);
  await storage.resize(128 * 512 + 4098 * 4096);
  await storage.writev(128 * 512 + 4097 * 4096, IoVec.of(new Uint8Array(4096).fill(0x77)));
  const disk = await openDisk(vmdk, storage, { readOnly: true });
  const bytes = new Uint8Array(4096);
  await disk.readv(0, IoVec.of(bytes));
  assert.equal(bytes[0], 0x77);
  await disk.close();
});

const CORRUPT: readonly [string, bigint][] = [
  ['an absent entry with other bits', 5n],
  ['an entry of a kind that there is not', 4n << 60n],
  ['a grain past the end of the file', seSparseGrain(8n)],
  ['a grain past any file', seSparseGrain(2n ** 59n)],
];
for (const [what, entry] of CORRUPT) {
  test(`${what} is corrupt`, async () => {
    const disk = await openDisk(vmdk, seSparseFile([entry]), { readOnly: true });
    await assert.rejects(disk.readv(0, IoVec.of(new Uint8Array(512))), { code: 'CORRUPT' });
    await disk.close();
  });
}

const REFUSED: readonly [string, string, (view: DataView) => void][] = [
  ['another version', 'UNSUPPORTED', (view) => view.setUint32(12, 3, true)],
  ['other grains', 'UNSUPPORTED', (view) => view.setUint32(24, 16, true)],
  ['a journal to replay', 'UNSUPPORTED', (view) => view.setUint32(512 + 24, 1, true)],
  ['no volatile header', 'CORRUPT', (view) => view.setUint32(512, 0, true)],
  ['a directory outside the file', 'TRUNCATED', (view) => view.setUint32(128, 0x7fffffff, true)],
  ['more than 64 TiB', 'UNSUPPORTED', (view) => view.setUint32(20, 0x100, true)],
];
for (const [what, code, change] of REFUSED) {
  test(`an seSparse extent with ${what} is refused: ${code}`, async () => {
    await assert.rejects(openLayer(vmdk, seSparseFile([], change), { readOnly: true }), { code });
  });
}

test('seSparse is read, not written', async () => {
  await assert.rejects(openLayer(vmdk, seSparseFile([])), { code: 'UNSUPPORTED' });
});
