/** One contract for all kinds of storage, on a disk's file system and on one in memory. */

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openFileStorage } from '../../../../formats/storage/file.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { StorageOpener } from '../../../../formats/storage/storage.ts';
import { openNativeStorage } from '../../../../src/io/native-storage.ts';
import { requireAddon } from '../../../support/addon.ts';
import { memoryFolder } from '../../../support/memory-folder.ts';
import { requireCondition } from '../../../support/requires.ts';
import { type StorageKind, testStorageContract } from '../../../support/storage-contract.ts';

function onFiles(name: string, folder: string, open: StorageOpener, rest: Partial<StorageKind> = {}): StorageKind {
  return {
    name,
    async make(t, bytes, options = {}) {
      const path = await mkdtemp(join(folder, 'lunette-test-'));
      t.after(() => rm(path, { recursive: true, force: true }));
      const file = join(path, 'disk.img');
      await writeFile(file, bytes);
      return open(file, { readOnly: options.readOnly ?? false });
    },
    ...rest,
  };
}

const noAddon = requireAddon();
const noMemory = requireCondition(memoryFolder !== undefined, 'no tmpfs on /dev/shm');
const memory = memoryFolder ?? tmpdir();
const full = { findsHoles: true, punches: true };

testStorageContract({
  name: 'MemoryStorage',
  make: async (_t, bytes, options = {}) => new MemoryStorage({ bytes, readOnly: options.readOnly ?? false }),
  ...full,
});
testStorageContract(onFiles('FileStorage on disk', tmpdir(), openFileStorage));
testStorageContract(onFiles('FileStorage in memory', memory, openFileStorage, { skip: noMemory }));
testStorageContract(onFiles('NativeStorage on disk', tmpdir(), openNativeStorage, { ...full, skip: noAddon }));
testStorageContract(
  onFiles('NativeStorage in memory', memory, openNativeStorage, { ...full, skip: noAddon || noMemory }),
);
