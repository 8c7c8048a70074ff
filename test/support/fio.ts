/** fio as the client of an NBD server, and what that cost the server. */

import type { RunningNbd } from './nbd.ts';
import { runOk } from './process.ts';

export interface FioLoad {
  /** As fio names it. */
  readonly kind: 'randread' | 'read' | 'randwrite';
  /** Bytes per request. */
  readonly block: number;
  readonly depth: number;
}

export interface FioResult {
  readonly iops: number;
  /** Processor time of the server per request, microseconds. */
  readonly cpuUs: number;
}

/** Applies a load to the first `size` bytes of an export for some seconds. */
export async function applyFio(load: FioLoad, server: RunningNbd, size: number, seconds: number): Promise<FioResult> {
  const before = server.cpuSeconds();
  const text = await runOk('fio', [
    '--name=load',
    '--ioengine=nbd',
    `--uri=${server.url}`,
    `--rw=${load.kind}`,
    `--bs=${load.block}`,
    `--iodepth=${load.depth}`,
    `--size=${size}`,
    '--time_based',
    `--runtime=${seconds}`,
    '--output-format=json',
  ]);
  const cpu = server.cpuSeconds() - before;
  // fio says that it has connected before it prints JSON.
  const [job] = (
    JSON.parse(text.slice(text.indexOf('{'))) as { jobs: Record<'read' | 'write', { total_ios: number }>[] }
  ).jobs;
  const count = (job?.read.total_ios ?? 0) + (job?.write.total_ios ?? 0);
  return { iops: count / seconds, cpuUs: (cpu / count) * 1e6 };
}
