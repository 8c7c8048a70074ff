import { IoVec } from '../core/iov.ts';
import type { Storage } from '../storage/storage.ts';

const ZEROS = new Uint8Array(64 * 1024);

/** Makes a range of a file read as zeros and own its space: a full disk shows here, not when the tables in it are written back. */
export async function zeroFill(storage: Storage, offset: number, length: number): Promise<void> {
  if (await storage.writeZeroes(offset, length, false)) return;
  for (let at = 0; at < length; at += ZEROS.length) {
    await storage.writev(offset + at, IoVec.of(ZEROS, 0, Math.min(ZEROS.length, length - at)));
  }
}
