import { ImageError } from './core/errors.ts';
import { IoVec } from './core/iov.ts';
import type { FormatDriver } from './driver.ts';
import { qcow2 } from './qcow2/driver.ts';
import { raw } from './raw/raw.ts';
import type { Storage } from './storage/storage.ts';
import { vdi } from './vdi/driver.ts';
import { vmdk } from './vmdk/driver.ts';
import { ova } from './vmdk/ova.ts';

/** All formats. Order settles ties of probing. */
export const DRIVERS: readonly FormatDriver[] = [qcow2, vmdk, vdi, ova, raw];

const PROBE_LENGTH = 4096;

/** The driver that says loudest that a file is its own. */
export async function probe(storage: Storage, drivers: readonly FormatDriver[]): Promise<FormatDriver> {
  const head = new Uint8Array(Math.min(PROBE_LENGTH, storage.size));
  if (head.length > 0) await storage.readv(0, IoVec.of(head));
  let best: FormatDriver | undefined;
  let bestScore = 0;
  for (const driver of drivers) {
    const score = driver.probe(head);
    if (score > bestScore) {
      best = driver;
      bestScore = score;
    }
  }
  if (best === undefined)
    throw new ImageError('BAD_MAGIC', 'is of no format that is known here', { path: storage.path });
  return best;
}

/** The driver of a name. @throws {ImageError} UNSUPPORTED naming those there are */
export function driverOf(name: string, drivers: readonly FormatDriver[], path: string): FormatDriver {
  const driver = drivers.find((candidate) => candidate.name === name);
  if (driver !== undefined) return driver;
  throw new ImageError('UNSUPPORTED', `there is no format ${name}`, {
    path,
    help: `Formats: ${drivers.map((candidate) => candidate.name).join(', ')}`,
  });
}
