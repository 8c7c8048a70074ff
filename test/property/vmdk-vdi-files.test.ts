import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { ImageHost } from '../../formats/open.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { createVdi } from '../../formats/vdi/create.ts';
import { CREATE_TYPES, createVmdk } from '../../formats/vmdk/create.ts';
import { runModel } from '../support/disk-model.ts';
import { newFile } from '../support/new-file.ts';
import { randomFor } from '../support/random.ts';
import { temporaryDirectory } from '../support/temporary.ts';

/** Makers of disks of a size, by name; `create` makes further files. */
type Maker = (storage: Storage, size: number, create: (name: string) => Promise<Storage>) => Promise<unknown>;

const MAKERS: Readonly<Record<string, Maker>> = {
  'disk.vdi': (storage, size) => createVdi(storage, { size, blockSize: 65536 }),
  'fixed.vdi': (storage, size) => createVdi(storage, { size, blockSize: 65536, type: 'fixed' }),
  ...Object.fromEntries(
    CREATE_TYPES.map((type): [string, Maker] => [
      `${type}.vmdk`,
      (storage, size, createFile) => createVmdk(storage, { size, type, grainSize: 16384, createFile }),
    ]),
  ),
};

// In memory everything ends in the order in which it began; in files, on a pool of threads, it does not.
test('disks in files show what a byte array shows, with many calls in flight', async (t) => {
  const random = randomFor(t);
  const folder = await temporaryDirectory(t);
  const host = new ImageHost();
  t.after(() => host.close());
  for (const [name, make] of Object.entries(MAKERS)) {
    const path = join(folder, name);
    const model = new Uint8Array(random.between(1000, 8000) * 512);
    const storage = await newFile(path);
    await make(storage, model.length, (file) => newFile(join(folder, file)));
    await storage.close();
    const reopen = () => host.open(path);
    const image = await runModel(random, await reopen(), model, { reopen, changes: 150 });
    await image.close();
    for (const file of await readdir(folder)) await rm(join(folder, file));
  }
});
