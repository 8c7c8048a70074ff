/** Images that we make are what `qemu-img create` makes, as far as QEMU's programs can tell. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { GiB, KiB, MiB, TiB } from '../../formats/core/units.ts';
import { ImageHost } from '../../formats/open.ts';
import { type CreateQcow2Options, createQcow2 } from '../../formats/qcow2/create.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { readAll } from '../support/qcow2-images.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const CASES: readonly [string, CreateQcow2Options, readonly string[]][] = [
  ['the defaults', { size: GiB }, []],
  ['an odd size', { size: 1_000_001 }, []],
  ['no size at all', { size: 0 }, []],
  ['64 TiB', { size: 64 * TiB }, []],
  ['version 2', { size: GiB, version: 2 }, ['compat=0.10']],
  ['clusters of 512 bytes', { size: 100 * MiB, clusterSize: 512 }, ['cluster_size=512']],
  ['clusters of 2 MiB', { size: 10 * GiB, clusterSize: 2 * MiB }, ['cluster_size=2M']],
  ['refcounts of one bit', { size: GiB, refcountBits: 1 }, ['refcount_bits=1']],
  [
    'refcounts of 64 bits and lazy',
    { size: GiB, refcountBits: 64, lazyRefcounts: true },
    ['refcount_bits=64', 'lazy_refcounts=on'],
  ],
  ['zstd', { size: GiB, compressionType: 'zstd' }, ['compression_type=zstd']],
  [
    'zstd in small clusters',
    { size: GiB, compressionType: 'zstd', clusterSize: 4 * KiB },
    ['compression_type=zstd', 'cluster_size=4k'],
  ],
  [
    'a backing file',
    { size: GiB, backingFile: 'base.raw', backingFormat: 'raw' },
    ['backing_file=base.raw', 'backing_fmt=raw'],
  ],
  [
    'a backing file in clusters of 512 bytes',
    { size: GiB, backingFile: 'base.raw', backingFormat: 'raw', clusterSize: 512 },
    ['backing_file=base.raw', 'backing_fmt=raw', 'cluster_size=512'],
  ],
  ['extended L2 entries', { size: GiB, extendedL2: true }, ['extended_l2=on']],
  [
    'extended L2 entries in clusters of 16 KiB',
    { size: GiB + 512, extendedL2: true, clusterSize: 16 * KiB },
    ['extended_l2=on', 'cluster_size=16k'],
  ],
  ['preallocated metadata', { size: 100 * MiB, preallocation: 'metadata' }, ['preallocation=metadata']],
  [
    'preallocated metadata of version 2',
    { size: 10 * MiB, preallocation: 'metadata', version: 2 },
    ['preallocation=metadata', 'compat=0.10'],
  ],
  [
    'preallocated space in clusters of 512 bytes',
    { size: 2 * MiB + 512, preallocation: 'falloc', clusterSize: 512 },
    ['preallocation=falloc', 'cluster_size=512'],
  ],
  ['full preallocation', { size: 5 * MiB, preallocation: 'full' }, ['preallocation=full']],
  [
    'preallocated metadata with extended L2 entries over a backing file',
    { size: 5 * MiB, preallocation: 'metadata', extendedL2: true, backingFile: 'base.raw', backingFormat: 'raw' },
    ['preallocation=metadata', 'extended_l2=on', 'backing_file=base.raw', 'backing_fmt=raw'],
  ],
  ['a data file', { size: 5 * MiB, dataFile: 'data.raw' }, ['data_file=data.raw']],
  [
    'a raw data file',
    { size: 5 * MiB + 512, dataFile: 'data.raw', dataFileRaw: true },
    ['data_file=data.raw', 'data_file_raw=on'],
  ],
];

for (const [what, options, theirs] of CASES) {
  test(`createQcow2 with ${what}: info is as of qemu-img's own`, { skip: requires.qemuImg() }, async (t) => {
    const directory = await temporaryDirectory(t);
    await writeFile(join(directory, 'base.raw'), new Uint8Array(MiB));
    const ours = join(directory, 'disk.qcow2');
    const storage = new MemoryStorage();
    const dataStorage = options.dataFile === undefined ? undefined : new MemoryStorage();
    await createQcow2(storage, { ...options, dataStorage });
    await writeFile(ours, storage.toBytes());
    if (dataStorage !== undefined) await writeFile(join(directory, 'data.raw'), dataStorage.toBytes());
    // QEMU looks for data files in the directory that it runs in, and so does who makes them.
    const cwd = process.cwd();
    process.chdir(directory);
    t.after(() => process.chdir(cwd));
    await qemu.assertClean(ours);
    assert.deepEqual(new Qcow2File(storage.toBytes()).inspect(), { corruptions: [], leaks: [], missingCopied: [] });
    if (options.size > 0 && options.size < GiB) {
      const all = new ImageHost();
      const image = await all.open(ours, { readOnly: true });
      const shown = await readAll(image);
      await image.close();
      assert.ok(
        shown.every((byte) => byte === 0),
        'reads as zeros',
      );
      const length = Math.floor(options.size / 512) * 512;
      await qemu.io(ours, `read -q -P 0 0 ${length}`, `write -q -P 3 0 ${length}`);
      await qemu.assertClean(ours);
    }

    const other = join(directory, 'other.qcow2');
    const more = theirs.length > 0 ? ['-o', theirs.join(',')] : [];
    await qemu.img('create', '-q', '-f', 'qcow2', ...more, other, String(options.size));
    const found = await qemu.info(ours);
    const expected = await qemu.info(other);
    for (const info of [found, expected]) {
      delete info.filename;
      delete info.children; // newer QEMU: their names
      delete info['actual-size'];
    }
    assert.deepEqual(found, expected);
  });
}

test('createQcow2 refuses what cannot be', async () => {
  const refused: [CreateQcow2Options, string][] = [
    [{ size: -1 }, 'INVALID'],
    [{ size: Number.NaN }, 'INVALID'],
    [{ size: MiB, clusterSize: 256 }, 'INVALID'],
    [{ size: MiB, clusterSize: 3000 }, 'INVALID'],
    [{ size: MiB, clusterSize: 4 * MiB }, 'INVALID'],
    [{ size: MiB, refcountBits: 3 }, 'INVALID'],
    [{ size: MiB, version: 2, refcountBits: 8 }, 'INVALID'],
    [{ size: MiB, version: 2, compressionType: 'zstd' }, 'INVALID'],
    [{ size: MiB, version: 2, lazyRefcounts: true }, 'INVALID'],
    [{ size: MiB, backingFile: 'x'.repeat(1024) }, 'INVALID'],
    [{ size: MiB, clusterSize: 512, backingFile: 'x'.repeat(500) }, 'INVALID'],
    [{ size: MiB, backingFormat: 'raw' }, 'INVALID'],
    [{ size: 256 * GiB, clusterSize: 512 }, 'TOO_LARGE'],
    [{ size: MiB, extendedL2: true, clusterSize: 8 * KiB }, 'INVALID'],
    [{ size: MiB, extendedL2: true, version: 2 }, 'INVALID'],
    [{ size: MiB, backingFile: 'b', backingFormat: 'raw', preallocation: 'metadata' }, 'INVALID'],
    [{ size: MiB, dataFile: 'd' }, 'INVALID'],
    [{ size: MiB, dataFileRaw: true }, 'INVALID'],
    [{ size: MiB, dataFile: 'd', dataStorage: new MemoryStorage(), version: 2 }, 'INVALID'],
    [{ size: MiB, dataFile: 'd', dataStorage: new MemoryStorage(), dataFileRaw: true, backingFile: 'b' }, 'INVALID'],
  ];
  for (const [options, code] of refused) {
    const storage = new MemoryStorage();
    await assert.rejects(createQcow2(storage, options), { code }, JSON.stringify(options));
    assert.equal(storage.size, 0, 'nothing was written');
  }
});
