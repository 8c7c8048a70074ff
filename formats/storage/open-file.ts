/** Opening a regular file or block device for a storage, and what is known about it from then on. */

import { type BigIntStats, close, constants, fstat, open, readFileSync, stat } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { fromSystemError, StorageError } from '../core/errors.ts';
import type { StorageOpenOptions } from './storage.ts';

const openAsync = promisify(open);
const closeAsync = promisify(close);
const fstatAsync = promisify(fstat) as (fd: number, options: { bigint: true }) => Promise<BigIntStats>;
const statAsync = promisify(stat) as (path: string, options: { bigint: true }) => Promise<BigIntStats>;

export interface OpenFile {
  readonly fd: number;
  readonly path: string;
  readonly readOnly: boolean;
  readonly isDevice: boolean;
  /** `dev:inode`, or `major:minor` of a block device: the same for every open of one file. */
  readonly id: string;
  readonly identity: FileIdentity;
  /** Bytes. */
  readonly size: number;
}

/** A file as stat(2) and /proc/locks name it. */
export interface FileIdentity {
  readonly device: bigint;
  readonly inode: bigint;
}

/**
 * Opens a regular file or a block device. The descriptor is close-on-exec, so that locks end with this process.
 *
 * @throws {StorageError} NOT_FOUND, ACCESS, READ_ONLY; INVALID for directories, FIFOs, sockets and character devices
 */
export async function openFile(name: string, options: StorageOpenOptions): Promise<OpenFile> {
  let fd: number | undefined;
  try {
    // Looked at before it is opened: opening some devices does something, opening a FIFO waits.
    checkKind(await statAsync(name, { bigint: true }), name);
    // O_NONBLOCK: it may have become a FIFO in between. It has no effect on files. Node adds O_CLOEXEC.
    fd = await openAsync(name, (options.readOnly ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK);
    const stats = await fstatAsync(fd, { bigint: true });
    checkKind(stats, name);
    const isDevice = stats.isBlockDevice();
    return {
      fd,
      path: options.name ?? name,
      readOnly: options.readOnly,
      isDevice,
      id: isDevice ? `block:${deviceName(stats.rdev)}` : `${stats.dev}:${stats.ino}`,
      identity: { device: stats.dev, inode: stats.ino },
      size: isDevice ? deviceSize(stats.rdev, name) : Number(stats.size),
    };
  } catch (error) {
    if (fd !== undefined) await closeAsync(fd);
    const path = options.name ?? name;
    throw fromSystemError(error, `cannot open ${path}`, { path });
  }
}

/** Closes a descriptor of openFile. */
export function closeFile(fd: number): Promise<void> {
  return closeAsync(fd);
}

/** Where a file is that an image in `name` refers to: beside that image, unless the reference is absolute. */
export function resolveBeside(name: string, reference: string): string {
  return path.isAbsolute(reference) ? reference : path.join(path.dirname(name), reference);
}

/** f_type of statfs(2) of file systems that are memory: reading them never waits for a device. */
export const MEMORY_FILE_SYSTEMS: ReadonlySet<number> = new Set([
  0x01021994, // tmpfs
  0x858458f6, // ramfs
]);

function checkKind(stats: BigIntStats, name: string): void {
  if (stats.isFile() || stats.isBlockDevice()) return;
  const kind = stats.isDirectory()
    ? 'a directory'
    : stats.isFIFO()
      ? 'a FIFO'
      : stats.isSocket()
        ? 'a socket'
        : 'a character device';
  throw new StorageError('INVALID', `${name} is ${kind}, not a regular file or block device`, { path: name });
}

/** `major:minor` as sysfs has it. The numbers are split as glibc's gnu_dev_major and gnu_dev_minor do. */
function deviceName(device: bigint): string {
  const [major, minor] = deviceNumbers(device);
  return `${major}:${minor}`;
}

/** Major and minor number of a dev_t. */
export function deviceNumbers(device: bigint): [major: bigint, minor: bigint] {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn);
  const minor = (device & 0xffn) | ((device >> 12n) & ~0xffn);
  return [major, minor & 0xffffffffn];
}

/** From sysfs, which needs no ioctl. */
function deviceSize(device: bigint, name: string): number {
  try {
    return Number(readFileSync(`/sys/dev/block/${deviceName(device)}/size`, 'latin1')) * 512;
  } catch (error) {
    throw new StorageError('UNAVAILABLE', `the size of block device ${name} cannot be found`, {
      path: name,
      cause: error,
    });
  }
}
