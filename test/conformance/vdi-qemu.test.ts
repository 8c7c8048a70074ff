import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { MiB } from '../../formats/core/units.ts';
import { DATA, ExtentBuffer } from '../../formats/image/extent.ts';
import { ImageHost } from '../../formats/open.ts';
import { raw } from '../../formats/raw/raw.ts';
import { openFileStorage } from '../../formats/storage/file.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { checkVdi } from '../../formats/vdi/check.ts';
import { createVdi } from '../../formats/vdi/create.ts';
import { vdi } from '../../formats/vdi/driver.ts';
import { uuidText } from '../../formats/vdi/uuid.ts';
import { run } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../support/temporary.ts';

const SIZE = 12 * MiB + 512 * 3;
const skip = requires.qemuIo();

function hostFor(t: Cleanup): ImageHost {
  const host = new ImageHost({ drivers: [vdi, raw] });
  t.after(() => host.close());
  return host;
}

async function readAll(host: ImageHost, path: string): Promise<Uint8Array> {
  const image = await host.open(path, { readOnly: true });
  const bytes = new Uint8Array(image.size);
  await image.readv(0, IoVec.of(bytes));
  await image.close();
  return bytes;
}

/** Creates with our code, in a file. */
async function createFile(path: string, options: Parameters<typeof createVdi>[1]): Promise<void> {
  const storage = new MemoryStorage({ path });
  await createVdi(storage, options);
  await writeFile(path, storage.toBytes());
}

for (const type of ['dynamic', 'fixed'] as const) {
  test(`a ${type} image that QEMU made and wrote reads the same here, byte by byte and in its map`, {
    skip,
  }, async (t) => {
    const path = await qemu.create(t, {
      format: 'vdi',
      size: SIZE,
      options: { static: type === 'fixed' ? 'on' : 'off' },
    });
    await qemu.io(path, 'write -P 0xa5 1M 2M', 'write -P 0x11 5M 4k', 'write -P 0x22 12M 1k', 'write -z 1M 1M');
    const rawPath = `${path}.raw`;
    await qemu.convert(path, rawPath, '-O', 'raw');
    const host = hostFor(t);
    assert.equal(Buffer.compare(await readAll(host, path), await readFile(rawPath)), 0);
    const image = await host.open(path, { readOnly: true });
    const out = new ExtentBuffer();
    const data: [number, number, number][] = [];
    for (let at = 0; at < image.size; at = out.end) {
      await image.map(at, image.size - at, out);
      for (let i = 0; i < out.count; i++) {
        if (out.kinds[i] === DATA)
          data.push([out.offsets[i] as number, out.lengths[i] as number, out.storageOffsets[i] as number]);
      }
    }
    // QEMU looks into the file's holes as well: neighbours in the file are one extent for us.
    const theirs: [number, number, number][] = [];
    for (const { start, length, offset } of await qemu.map(path)) {
      const last = theirs.at(-1);
      if (offset === undefined) continue;
      if (last !== undefined && last[0] + last[1] === start && last[2] + last[1] === offset) last[1] += length;
      else theirs.push([start, length, offset]);
    }
    assert.deepEqual(data, theirs);
    await image.close();
  });

  test(`a ${type} image that we made and wrote is clean for QEMU and holds the same bytes`, { skip }, async (t) => {
    const random = randomFor(t);
    const path = join(await temporaryDirectory(t), 'ours.vdi');
    await createFile(path, { size: SIZE, type });
    const host = hostFor(t);
    const image = await host.open(path);
    const model = new Uint8Array(SIZE);
    for (let i = 0; i < 40; i++) {
      const length = random.pick([512, 5000, MiB, 2 * MiB]);
      const offset = random.below(SIZE - length);
      if (random.chance(0.3)) {
        model.fill(0, offset, offset + length);
        await image.writeZeroes(offset, length, true);
      } else {
        const bytes = random.bytes(length);
        model.set(bytes, offset);
        await image.writev(offset, IoVec.of(bytes));
      }
    }
    await image.close();
    await qemu.assertClean(path);
    const rawPath = `${path}.raw`;
    await writeFile(rawPath, model);
    assert.equal(await qemu.compare('-f', 'vdi', '-F', 'raw', path, rawPath), true);
    const { 'virtual-size': size, format } = await qemu.info(path);
    assert.deepEqual([size, format], [SIZE, 'vdi']);
    // And back: what QEMU then writes is read here.
    await qemu.io(path, 'write -P 0x77 3M 1M', 'write -P 0x78 12M 1k');
    model.fill(0x77, 3 * MiB, 4 * MiB).fill(0x78, 12 * MiB, 12 * MiB + 1024);
    await qemu.assertClean(path);
    assert.equal(Buffer.compare(await readAll(host, path), model), 0);
  });
}

test('check agrees with QEMU about a count that is wrong, and what we repair is clean for it', { skip }, async (t) => {
  const path = await qemu.create(t, { format: 'vdi', size: 8 * MiB });
  await qemu.io(path, 'write -P 1 0 3M');
  const bytes = await readFile(path);
  bytes.writeUInt32LE(2, 0x184);
  await writeFile(path, bytes);
  assert.ok((await qemu.check(path)).corruptions > 0);
  const storage = await openFileStorage(path, { readOnly: false });
  t.after(() => storage.close());
  const cache = new SharedBlockCache(2 ** 20);
  assert.equal((await checkVdi(storage, { cache })).corruptions, 1);
  assert.equal((await checkVdi(storage, { cache, repair: 'all' })).corruptionsFixed, 1);
  await qemu.assertClean(path);
});

test('an image that grew is clean for QEMU, also when its blocks had to move for a longer map', { skip }, async (t) => {
  const path = await qemu.create(t, { format: 'vdi', size: 100 * MiB });
  await qemu.io(path, 'write -P 1 0 3M', 'write -P 2 99M 1M');
  const host = hostFor(t);
  const image = await host.open(path);
  await image.resize(400 * MiB);
  await image.writev(399 * MiB, IoVec.of(new Uint8Array(MiB).fill(3)));
  await image.close();
  await qemu.assertClean(path);
  await qemu.io(
    path,
    'read -P 1 0 3M',
    'read -P 0 3M 96M',
    'read -P 2 99M 1M',
    'read -P 0 100M 299M',
    'read -P 3 399M 1M',
  );
});

test('7-Zip sees the ids that we write, of a base and of its child', { skip: requires.sevenZip() }, async (t) => {
  const folder = await temporaryDirectory(t);
  const base = new MemoryStorage();
  const header = await createVdi(base, { size: 4 * MiB });
  const child = new MemoryStorage();
  const childHeader = await createVdi(child, { parent: new MemoryStorage({ bytes: base.toBytes() }) });
  await writeFile(join(folder, 'child.vdi'), child.toBytes());
  const { stdout } = await run('7zz', ['l', join(folder, 'child.vdi')]);
  const text = stdout.toLowerCase().replaceAll('-', '');
  for (const id of [childHeader.uuidCreate, childHeader.uuidModify, header.uuidCreate, header.uuidModify]) {
    const plain = uuidText(id).replaceAll('-', '');
    const rawHex = Buffer.from(id).toString('hex');
    assert.ok(text.includes(plain) || text.includes(rawHex), `${plain} is not in\n${stdout}`);
  }
});
