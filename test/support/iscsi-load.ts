/** Load from initiators that are not ours, with what it cost the server. */

import { run, runOk } from './process.ts';

export interface Load {
  readonly name: string;
  readonly kind: 'read' | 'write';
  /** Bytes per request. */
  readonly block: number;
  readonly depth: number;
  readonly random: boolean;
}

export interface LoadResult {
  readonly iops: number;
  /** CPU of the serving process per request, all threads. */
  readonly cpuUs: number;
}

export interface Serving {
  readonly url: string;
  cpuSeconds(): number;
}

/**
 * Reads with iscsi-perf for some seconds, or writes with qemu-img bench a number of requests that takes about as long:
 * iscsi-perf cannot write.
 */
export async function applyLoad(load: Load, serving: Serving, seconds: number, writes: number): Promise<LoadResult> {
  const before = serving.cpuSeconds();
  const { requests, took } =
    load.kind === 'read' ? await read(load, serving.url, seconds) : await write(load, serving.url, writes);
  const cpu = serving.cpuSeconds() - before;
  return { iops: requests / took, cpuUs: (cpu / requests) * 1e6 };
}

async function read(load: Load, url: string, seconds: number): Promise<{ requests: number; took: number }> {
  const args = [
    '-m',
    String(load.depth),
    '-b',
    String(load.block / 512),
    '-t',
    String(seconds),
    ...(load.random ? ['-r'] : []),
  ];
  const text = await runOk('iscsi-perf', [...args, url], { timeoutMs: (seconds + 20) * 1000 });
  const averages = [...text.matchAll(/\riops average (\d+)/g)];
  const iops = Number(averages.at(-1)?.[1]);
  if (!(iops > 0)) throw new Error(`iscsi-perf says nothing:\n${text}`);
  return { requests: iops * seconds, took: seconds };
}

async function write(load: Load, url: string, count: number): Promise<{ requests: number; took: number }> {
  // A step that is no multiple of a cluster and far from the last place: as good as random to the server.
  const step = load.random ? 1028 * 1024 : load.block;
  const sizes = ['-c', String(count), '-d', String(load.depth), '-s', String(load.block), '-S', String(step)];
  const { status, stdout, stderr } = await run('qemu-img', ['bench', '-w', '-f', 'raw', '-t', 'none', ...sizes, url]);
  const took = Number(/completed in ([\d.]+) seconds/.exec(stdout)?.[1]);
  if (status !== 0 || !(took > 0)) throw new Error(`qemu-img bench: status ${status}\n${stdout}${stderr}`);
  return { requests: count, took };
}

/** Drops a file from the page cache, after it was written out. */
export async function dropFromPageCache(path: string): Promise<void> {
  await runOk('sync', [path]);
  await runOk('dd', [`of=${path}`, 'oflag=nocache', 'conv=notrunc', 'count=0', 'status=none']);
}
