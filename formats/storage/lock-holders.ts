/** Who holds byte-range locks on a file, as far as /proc shows it. */

import { fstatSync } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import { deviceNumbers, type FileIdentity, type OpenFile } from './open-file.ts';
import type { Storage } from './storage.ts';

/** An open file description with locks. */
export interface Holder {
  readonly pid: number;
  /** Name of the program. */
  readonly name: string;
  /** The bytes from 100 to 299 that it has locked: QEMU's. */
  readonly bytes: readonly number[];
}

/** A lock as a line of /proc/locks or /proc/PID/fdinfo/FD shows it. */
export interface LockLine {
  /** True for locks by open file description, which show no process. */
  readonly ofd: boolean;
  /** -1 for locks by open file description. */
  readonly pid: number;
  readonly major: bigint;
  readonly minor: bigint;
  readonly inode: bigint;
  readonly first: number;
  /** Infinity to the end of the file, however long it gets. */
  readonly last: number;
}

const LINE = /(OFDLCK|POSIX)\s+\S+\s+(?:READ|WRITE)\s+(-?\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s+(\d+)\s+(\d+|EOF)\s*$/;

/**
 * Reads a lock from a line like `1: OFDLCK ADVISORY  READ -1 fe:00:5242 100 101` (proc_locks(5)).
 * @returns undefined for other kinds of locks and for those that are waited for (`->`)
 */
export function parseLockLine(line: string): LockLine | undefined {
  if (line.includes('->')) return undefined;
  const match = LINE.exec(line);
  if (match === null) return undefined;
  const [, kind, pid, major, minor, inode, first, last] = match as unknown as string[];
  return {
    ofd: kind === 'OFDLCK',
    pid: Number(pid),
    major: BigInt(`0x${major}`),
    minor: BigInt(`0x${minor}`),
    inode: BigInt(inode as string),
    first: Number(first),
    last: last === 'EOF' ? Number.POSITIVE_INFINITY : Number(last),
  };
}

/**
 * The locks on a file in /proc/locks, without knowing whose they are.
 * @returns undefined where there is no /proc/locks
 */
export async function locksOnFile(identity: FileIdentity): Promise<LockLine[] | undefined> {
  let before = await readLocks(identity);
  for (let attempt = 1; before !== undefined && attempt < MAX_READS; attempt++) {
    const again = await readLocks(identity);
    if (again === undefined || isDeepStrictEqual(again, before)) return again;
    before = again;
  }
  return before;
}

/**
 * The kernel hands the list out a piece at a time: when other files' locks come and go in between, lines are missing or there twice. What
 * is read twice alike is so.
 */
const MAX_READS = 5;

async function readLocks(identity: FileIdentity): Promise<LockLine[] | undefined> {
  const text = await readFile('/proc/locks', 'latin1').catch(() => undefined);
  if (text === undefined) return undefined;
  const [major, minor] = deviceNumbers(identity.device);
  return text
    .split('\n')
    .map(parseLockLine)
    .filter((lock) => lock !== undefined)
    .filter((lock) => lock.inode === identity.inode && lock.major === major && lock.minor === minor);
}

/**
 * Finds who holds `byte` of a file, other than `file` itself; other processes before another open in this one. Processes of other
 * users show their files to root only.
 *
 * @param pid the process where the kernel said so (POSIX locks)
 */
export async function findHolder(file: OpenFile, byte: number, pid?: number): Promise<Holder | undefined> {
  if (pid !== undefined) return { pid, name: await programName(pid), bytes: await posixBytes(file.identity, pid) };
  let ours: Holder | undefined;
  for (const entry of await list('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    for (const fd of await list(`/proc/${entry}/fdinfo`)) {
      if (Number(entry) === process.pid && Number(fd) === file.fd) continue;
      const bytes = await ofdBytes(file.identity, entry, fd);
      if (!bytes.includes(byte)) continue;
      const holder = { pid: Number(entry), name: await programName(Number(entry)), bytes };
      if (holder.pid !== process.pid) return holder;
      ours ??= holder;
    }
  }
  return ours;
}

/** QEMU's lock byte of those who write. */
const WRITES = 101;

/** Who writes to a file, as far as its locks show: `qemu-nbd (pid 1234)`; undefined when nobody does. */
export async function writerOf(storage: Storage): Promise<string | undefined> {
  if (storage.fd === null) return undefined;
  const { dev: device, ino: inode } = fstatSync(storage.fd, { bigint: true });
  const identity = { device, inode };
  const locks = (await locksOnFile(identity)) ?? [];
  const lock = locks.find(({ first, last }) => first <= WRITES && WRITES <= last);
  if (lock === undefined) return undefined;
  const { fd, path, size, id, readOnly } = storage;
  const file = { fd, path, size, id, readOnly, isDevice: false, identity };
  const holder = await findHolder(file, WRITES, lock.pid > 0 ? lock.pid : undefined);
  return holder === undefined ? 'another program' : `${holder.name} (pid ${holder.pid})`;
}

/** What to say of a file that is read while somebody writes to it. */
export function writerNotice(writer: string): string {
  return `${writer} writes to it: this is what the file holds now, without what that program has not written yet`;
}

/** QEMU's bytes that one descriptor of a process has locked on this file. */
async function ofdBytes(identity: FileIdentity, pid: string, fd: string): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/fdinfo/${fd}`, 'latin1').catch(() => '');
  const locks = text
    .split('\n')
    .filter((line) => line.startsWith('lock:'))
    .map(parseLockLine)
    .filter((lock) => lock !== undefined && lock.inode === identity.inode);
  if (locks.length === 0) return [];
  // By what the descriptor is, not by the line's device: on btrfs the two differ.
  const stats = await stat(`/proc/${pid}/fd/${fd}`, { bigint: true }).catch(() => undefined);
  if (stats === undefined || stats.ino !== identity.inode || stats.dev !== identity.device) return [];
  return bytesOf(locks as LockLine[]);
}

async function posixBytes(identity: FileIdentity, pid: number): Promise<number[]> {
  return bytesOf(((await locksOnFile(identity)) ?? []).filter((lock) => lock.pid === pid));
}

function bytesOf(locks: readonly LockLine[]): number[] {
  const bytes: number[] = [];
  for (const lock of locks) {
    for (let byte = Math.max(100, lock.first); byte <= Math.min(lock.last, 299); byte++) bytes.push(byte);
  }
  return bytes;
}

async function programName(pid: number): Promise<string> {
  const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
  return name.trim() || 'a program';
}

async function list(folder: string): Promise<string[]> {
  return readdir(folder).catch(() => []);
}
