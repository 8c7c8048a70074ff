/** What native code can do on this machine: for `doctor`, and for warnings. */

import { statfsSync } from 'node:fs';
import { loaded, native } from './binding.ts';
import { crc32cImplementation } from './crc32c.ts';
import { ioThreads } from './io-queue.ts';

/** What the file system of a directory can do, found by trying it on an unnamed file there. */
export interface DirectoryFacts {
  readonly path: string;
  /** Name of the file system (`ext4`), or its statfs type in hexadecimal. */
  readonly fileSystem: string;
  /**
   * How reads that need no device run on the event loop: `cached` (RWF_NOWAIT), `memory` (the file system is memory), or `pool` (they
   * do not: every read goes to a thread).
   */
  readonly reads: 'cached' | 'memory' | 'pool';
  /** RWF_NOWAIT on buffered writes: xfs has it, ext4 not. */
  readonly noWaitWrites: boolean;
  readonly seekData: boolean;
  readonly punchesHoles: boolean;
  readonly zeroesRanges: boolean;
  /** Locks by open file description, which QEMU honours. */
  readonly ofdLocks: boolean;
}

export interface NativeFacts {
  /** Where the addon was loaded from; undefined when it was not. */
  readonly addon: string | undefined;
  /** Why the addon is not in use. */
  readonly reason: string | undefined;
  /** `sse4.2`, `armv8-crc`, `table` or `javascript`. */
  readonly crc32c: string;
  /** Threads for file I/O: the addon's, or libuv's without it. */
  readonly ioThreads: number;
}

/** Facts about the addon in this process. */
export function nativeFacts(): NativeFacts {
  return {
    addon: loaded.path,
    reason: loaded.reason,
    crc32c: crc32cImplementation,
    ioThreads: loaded.binding === undefined ? Number(process.env.UV_THREADPOOL_SIZE ?? 4) : ioThreads(),
  };
}

/**
 * Tries a directory's file system.
 * @returns undefined without the addon
 * @throws the system's error when no file can be made there (`code` EACCES, ENOENT, EROFS, ENOSPC)
 */
export function directoryFacts(path: string): DirectoryFacts | undefined {
  if (native === undefined) return undefined;
  const flags = native.probeFlags;
  const found = native.probeDirectory(path);
  const { type } = statfsSync(path);
  const memory = MEMORY.has(type);
  const cached = (found & flags.cachedReads) !== 0;
  return {
    path,
    fileSystem: FILE_SYSTEMS.get(type) ?? `0x${type.toString(16)}`,
    reads: memory ? 'memory' : cached ? 'cached' : 'pool',
    noWaitWrites: (found & flags.noWaitWrites) !== 0,
    seekData: (found & flags.seekData) !== 0,
    punchesHoles: (found & flags.punchesHoles) !== 0,
    zeroesRanges: (found & flags.zeroesRanges) !== 0,
    ofdLocks: (found & flags.ofdLocks) !== 0,
  };
}

const TMPFS = 0x01021994;
const RAMFS = 0x858458f6;
const MEMORY: ReadonlySet<number> = new Set([TMPFS, RAMFS]);

/** f_type of statfs(2), from linux/magic.h and the manual page. */
const FILE_SYSTEMS: ReadonlyMap<number, string> = new Map([
  [TMPFS, 'tmpfs'],
  [RAMFS, 'ramfs'],
  [0xef53, 'ext4'],
  [0x58465342, 'xfs'],
  [0x9123683e, 'btrfs'],
  [0x2fc12fc1, 'zfs'],
  [0xca451a4e, 'bcachefs'],
  [0xf2f52010, 'f2fs'],
  [0x794c7630, 'overlayfs'],
  [0x6969, 'nfs'],
  [0xff534d42, 'cifs'],
  [0xfe534d42, 'smb2'],
  [0x65735546, 'fuse'],
  [0x01021997, '9p'],
  [0x00c36400, 'ceph'],
]);
