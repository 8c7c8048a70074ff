/** What a running process takes, from /proc. Linux only. */

import { readdirSync, readFileSync } from 'node:fs';

/** Resident memory, bytes. */
export function residentBytes(pid: number): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'));
  if (match === null) throw new Error(`process ${pid} has no memory: it has ended`);
  return Number(match[1]) * 1024;
}

/** The most that was ever resident, bytes. */
export function peakResidentBytes(pid: number): number {
  const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'));
  if (match === null) throw new Error(`process ${pid} has no memory: it has ended`);
  return Number(match[1]) * 1024;
}

/** CPU time of all its threads, user and system, in seconds. The kernel counts in steps of 10 ms. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  // The name in parentheses may hold anything; utime and stime are fields 14 and 15, the name is field 2.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Bytes that it gave to write calls so far, to files, pipes and terminals; sends on sockets are not counted. */
export function bytesWritten(pid: number): number {
  return Number(/^wchar: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, 'latin1'))?.[1]);
}

/** How many file descriptors it holds. */
export function openDescriptors(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** Process ids of its children, by their program's name. */
export function childrenOf(pid: number): Map<string, number> {
  const found = new Map<string, number>();
  for (const child of readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim().split(' ')) {
    if (child !== '') found.set(readFileSync(`/proc/${child}/comm`, 'latin1').trim(), Number(child));
  }
  return found;
}

/** True while there is such a process, a zombie not counted. */
export function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}
