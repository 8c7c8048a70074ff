import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '../../formats/core/errors.ts';
import { type BackstoreName, parseBackstoreName } from './user-backstore.ts';

export const UIO_ROOT = '/sys/class/uio';

/** A TCMU device as UIO shows it. */
export interface TcmuUio {
  readonly backstore: BackstoreName;
  /** The device's file. */
  readonly node: string;
  /** Bytes to map: exactly these. */
  readonly regionSize: number;
}

/** All TCMU devices that there are. */
export async function listUioDevices(root = UIO_ROOT): Promise<TcmuUio[]> {
  let names: string[];
  try {
    names = await readdir(root);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
  const devices = await Promise.all(names.map((name) => uioDevice(Number(name.replace(/^uio/, '')), root)));
  return devices.filter((device) => device !== undefined);
}

/** The device of a minor number; undefined when it is gone, or no TCMU device. */
export async function uioDevice(minor: number, root = UIO_ROOT): Promise<TcmuUio | undefined> {
  const folder = join(root, `uio${minor}`);
  try {
    const [name, size] = await Promise.all([
      readFile(join(folder, 'name'), 'utf8'),
      readFile(join(folder, 'maps/map0/size'), 'utf8'),
    ]);
    const backstore = parseBackstoreName(name.replace(/\n$/, ''));
    return backstore === undefined
      ? undefined
      : { backstore, node: `/dev/uio${minor}`, regionSize: Number(size.trim()) };
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENODEV') return undefined;
    throw error;
  }
}
