import { appendZeros, IoVec } from '../core/iov.ts';
import { alignUp, MiB } from '../core/units.ts';
import type { FormatCreator } from '../driver.ts';
import type { Storage } from '../storage/storage.ts';

/** New raw disks: files of the disk's size. */
export const rawCreator: FormatCreator = {
  format: 'raw',
  options: [
    {
      name: 'preallocation',
      kind: 'choice',
      choices: ['off', 'falloc', 'full'],
      meaning: 'falloc: space is reserved; full: zeros are written',
    },
  ],
  sizeOf: (size) => alignUp(size, 512),
  async create(storage, { size, values }) {
    if (storage.growsZeroed) {
      await storage.resize(0);
      await storage.resize(size);
    }
    await preallocate(storage, 0, size, values.preallocation);
    await storage.sync();
  },
};

const ZERO_CHUNK = 4 * MiB;

/** Gives [start, end), which is a hole, its space. @param mode `falloc` or `full`; anything else does nothing */
export async function preallocate(storage: Storage, start: number, end: number, mode: unknown): Promise<void> {
  if (start >= end || (mode !== 'falloc' && mode !== 'full')) return;
  if (mode === 'falloc' && (await storage.writeZeroes(start, end - start, false))) return;
  const zeros = new IoVec();
  appendZeros(zeros, ZERO_CHUNK);
  for (let at = start; at < end; at += ZERO_CHUNK) {
    await storage.writev(at, end - at < ZERO_CHUNK ? zeros.slice(0, end - at) : zeros);
  }
}
