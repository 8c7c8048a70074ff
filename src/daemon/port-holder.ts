import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** A process, as far as /proc tells. */
export interface ProcessInfo {
  readonly pid: number;
  readonly name: string;
}

/** State LISTEN in /proc/net/tcp. */
const LISTEN = '0A';

/**
 * Who listens on a TCP port of this machine.
 *
 * @returns undefined when nobody does, or when the process belongs to another user, or without /proc
 */
export function portHolder(port: number): ProcessInfo | undefined {
  const inodes = new Set([...listeners('/proc/net/tcp', port), ...listeners('/proc/net/tcp6', port)]);
  if (inodes.size === 0) return undefined;
  for (const entry of list('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    for (const fd of list(`/proc/${entry}/fd`)) {
      const inode = /^socket:\[(\d+)\]$/.exec(link(`/proc/${entry}/fd/${fd}`))?.[1];
      if (inode !== undefined && inodes.has(inode)) {
        return { pid: Number(entry), name: read(`/proc/${entry}/comm`).trim() };
      }
    }
  }
  return undefined;
}

/** Inodes of the sockets that listen on the port. Columns: sl local_address rem_address st … uid timeout inode. */
function listeners(table: string, port: number): string[] {
  const end = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  return read(table)
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter((columns) => columns[3] === LISTEN && columns[1]?.endsWith(end))
    .map((columns) => columns[9] as string);
}

// What cannot be read belongs to somebody else, or has just ended: no answer is an answer here.
function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function link(file: string): string {
  try {
    return readlinkSync(file);
  } catch {
    return '';
  }
}
