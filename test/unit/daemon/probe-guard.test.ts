import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ChainImage, type Image, IoVec, MemoryStorage } from '../../../formats/index.ts';
import { raw } from '../../../formats/raw/raw.ts';
import { ProbeGuard } from '../../../src/daemon/probe-guard.ts';

const QFI = Buffer.from('QFI\xfb', 'latin1');
const SIZE = 64 * 1024;

async function guarded(): Promise<{ guard: ProbeGuard; image: Image; warnings: string[] }> {
  const storage = new MemoryStorage({ bytes: new Uint8Array(SIZE) });
  const context = { cache: undefined as never, openReferenced: () => Promise.reject(), warn: () => {} };
  const image = new ChainImage([await raw.open(storage, { readOnly: false, context })]);
  const warnings: string[] = [];
  return { guard: new ProbeGuard(image, (text) => warnings.push(text)), image, warnings };
}

async function bytesOf(image: Image, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  await image.readv(offset, IoVec.of(bytes));
  return bytes;
}

test('a write that would make the image look like another format is refused, and nothing is written', async () => {
  const { guard, image, warnings } = await guarded();
  const header = Buffer.concat([QFI, Buffer.alloc(508, 1)]);
  await assert.rejects(guard.writev(0, IoVec.of(header)), { code: 'READ_ONLY', message: /look like qcow2/ });
  assert.deepEqual(await bytesOf(image, 0, 512), Buffer.alloc(512));
  assert.equal(warnings.length, 1);
  await assert.rejects(guard.writev(0, IoVec.of(header)));
  assert.equal(warnings.length, 1, 'one warning is enough');
});

test('a magic that comes together from two writes is refused at the second', async () => {
  const { guard, image } = await guarded();
  await guard.writev(2, IoVec.of(QFI.subarray(2)));
  await assert.rejects(guard.writev(0, IoVec.of(QFI.subarray(0, 2))), { code: 'READ_ONLY' });
  assert.deepEqual(await bytesOf(image, 0, 4), Buffer.from('\0\0I\xfb', 'latin1'));
});

test('two writes at once are judged one after the other', async () => {
  const { guard, image } = await guarded();
  const results = await Promise.allSettled([
    guard.writev(0, IoVec.of(QFI.subarray(0, 2))),
    guard.writev(2, IoVec.of(QFI.subarray(2))),
  ]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  assert.notDeepEqual(await bytesOf(image, 0, 4), QFI);
});

test('a header behind the first bytes is found as well', async () => {
  const { guard } = await guarded();
  await assert.rejects(guard.writev(0x40, IoVec.of(Uint8Array.of(0x7f, 0x10, 0xda, 0xbe))), { message: /vdi/ });
});

test('COMPARE AND WRITE and zeroing get no further than a write', async () => {
  const { guard, image } = await guarded();
  await assert.rejects(
    guard.readModifyWrite(0, 512, (bytes) => {
      bytes.set(QFI);
      return true;
    }),
    { code: 'READ_ONLY' },
  );
  assert.deepEqual(await bytesOf(image, 0, 4), Buffer.alloc(4));
  // A magic that zeroing uncovers: none of the formats can, but the head is judged as it would be.
  await guard.writev(0, IoVec.of(Buffer.alloc(4096, 7)));
  await guard.writeZeroes(0, 4096, true);
  await guard.discard(0, 4096);
  assert.deepEqual(await bytesOf(image, 0, 4096), Buffer.alloc(4096));
});

test('ordinary writes go through, at the start and elsewhere', async () => {
  const { guard, image, warnings } = await guarded();
  const bootSector = Buffer.alloc(512, 0xaa);
  await guard.writev(0, IoVec.of(bootSector));
  await guard.writev(4096, IoVec.of(QFI));
  await guard.writev(4092, IoVec.of(QFI));
  assert.deepEqual(await bytesOf(image, 0, 512), bootSector);
  assert.deepEqual(await bytesOf(image, 4092, 4), QFI);
  await guard.readModifyWrite(8192, 4, (bytes) => bytes.set(QFI) === undefined);
  assert.deepEqual(await bytesOf(guard, 8192, 4), QFI);
  assert.deepEqual(warnings, []);
});

test('a read of the start comes after writes to it that still wait', async () => {
  const { guard } = await guarded();
  const iov = IoVec.of(Buffer.alloc(4));
  const written = guard.writev(0, IoVec.of(Buffer.from('abcd')));
  assert.equal(guard.tryReadv(0, iov), false);
  assert.equal(guard.tryWritev(0, IoVec.of(Buffer.from('efgh'))), false);
  await guard.readv(0, iov);
  assert.equal(Buffer.from(iov.contiguous()).toString(), 'abcd');
  await written;
});

test('what lies behind the first bytes does not pass an earlier call that reaches there', async () => {
  const { guard, image } = await guarded();
  const filled = (value: number, length: number) => IoVec.of(new Uint8Array(length).fill(value));
  await guard.writev(40960, filled(1, 1)); // from now on the image takes writes at once
  const first = guard.writev(0, filled(1, 16384));
  assert.equal(guard.tryWritev(4096, filled(2, 4096)), false);
  const second = guard.writev(4096, filled(2, 4096));
  const zeroes = guard.writeZeroes(8192, 4096, false);
  const seen = bytesOf(guard, 12288, 4096);
  // Nobody reaches that far: it need not wait.
  assert.equal(guard.tryWritev(32768, filled(3, 4096)), true);
  await Promise.all([first, second, zeroes]);
  assert.deepEqual(await seen, Buffer.alloc(4096, 1));
  const after = await bytesOf(image, 0, 16384);
  assert.deepEqual(
    [0, 4096, 8192, 12288].map((at) => after[at]),
    [1, 2, 0, 1],
  );
  assert.equal(guard.tryWritev(4096, filled(4, 4096)), true);
});
