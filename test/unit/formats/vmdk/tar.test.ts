import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../../formats/core/iov.ts';
import { GiB } from '../../../../formats/core/units.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { listTar } from '../../../../formats/vmdk/tar.ts';

interface Header {
  readonly name: string;
  readonly size: number | Uint8Array;
  readonly type?: string;
}

/** One header block with a right checksum. */
function block({ name, size, type = '0' }: Header): Uint8Array {
  const bytes = new Uint8Array(512);
  const put = (at: number, text: string) => bytes.set(Buffer.from(text), at);
  put(0, name);
  put(257, 'ustar\u000000');
  bytes[156] = type.charCodeAt(0);
  if (typeof size === 'number') put(124, `${size.toString(8).padStart(11, '0')}\0`);
  else bytes.set(size, 124);
  put(148, '        ');
  const sum = bytes.reduce((total, byte) => total + byte, 0);
  put(148, `${sum.toString(8).padStart(6, '0')}\0 `);
  return bytes;
}

const archive = (...blocks: Uint8Array[]) => new MemoryStorage({ bytes: Buffer.concat(blocks) });

test('members of 8 GiB and more have binary sizes, or sizes in a pax header', async () => {
  const binary = new Uint8Array(12);
  new DataView(binary.buffer).setUint32(4, 2);
  binary[0] = 0x80;
  new DataView(binary.buffer).setUint32(8, 5);
  const record = Buffer.alloc(512);
  record.write('20 size=8589934597\n18 path=long.vmdk\n');
  for (const blocks of [
    [block({ name: 'long.vmdk', size: binary })],
    [block({ name: 'pax', size: 19 + 18, type: 'x' }), record, block({ name: 'short', size: 0 })],
  ]) {
    if (blocks.length > 1) record.fill(0).write('19 size=8589934597\n18 path=long.vmdk\n');
    const storage = archive(...blocks);
    const start = storage.size;
    await storage.resize(start + 8 * GiB + 512);
    assert.deepEqual(await listTar(storage), [{ name: 'long.vmdk', offset: start, size: 8 * GiB + 5 }]);
  }
});

test('an archive that is cut or damaged is refused', async () => {
  await assert.rejects(listTar(archive(block({ name: 'a', size: 1000 }))), { code: 'TRUNCATED', offset: 0 });
  const wrong = block({ name: 'a', size: 0 });
  wrong[0] = 0x62;
  await assert.rejects(listTar(archive(wrong)), { code: 'CORRUPT' });
  await assert.rejects(listTar(archive(new Uint8Array(512).fill(1))), { code: 'BAD_MAGIC' });
  await assert.rejects(listTar(archive(block({ name: 'a', size: 0 }), new Uint8Array(512).fill(1))), {
    code: 'CORRUPT',
    offset: 512,
  });
  await assert.rejects(listTar(archive(block({ name: 'a', size: new Uint8Array(12).fill(0xff) }))), {
    code: 'CORRUPT',
  });
  await assert.rejects(listTar(archive(block({ name: 'a', size: 2 ** 20, type: 'x' }), new Uint8Array(2 ** 20))), {
    code: 'TOO_LARGE',
  });
});

test('folders and links are no members, and an empty archive has none', async () => {
  const storage = archive(
    block({ name: 'd/', size: 0, type: '5' }),
    block({ name: 'l', size: 0, type: '2' }),
    new Uint8Array(1024),
  );
  assert.deepEqual(await listTar(storage), []);
  assert.deepEqual(await listTar(new MemoryStorage()), []);
  await storage.writev(0, IoVec.of(block({ name: 'f', size: 0 })));
  assert.deepEqual(await listTar(storage), [{ name: 'f', offset: 512, size: 0 }]);
});
