/** NBD servers that we did not write, and our own as a program. */

import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { lunetteArgs } from './built.ts';
import { type RunningProcess, runOk, start } from './process.ts';
import { cpuSeconds } from './process-usage.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

export interface RunningNbd {
  readonly url: string;
  readonly process: RunningProcess;
  cpuSeconds(): number;
}

/** Runs `lunette export --transport nbd` on a unix socket, or where `args` says, and waits until it is ready. */
export async function startNbdExport(
  t: Cleanup,
  images: string | readonly string[],
  { args = ['--socket', ''] }: { args?: readonly string[] } = {},
): Promise<RunningNbd & { urls: readonly string[] }> {
  const socket = join(await temporaryDirectory(t), 's');
  const paths = typeof images === 'string' ? [images] : images;
  const where = args.map((arg) => (arg === '' ? socket : arg));
  const running = start(t, process.execPath, lunetteArgs('export', '--transport', 'nbd', ...where, ...paths));
  await running.waitForLine(/^ready /);
  // All ready lines are written in one tick; the hints behind them on the other stream.
  const urls: string[] = [];
  while (urls.length < paths.length) {
    urls.splice(
      0,
      urls.length,
      ...[...running.stdout.matchAll(/^ready (\S+) \(/gm)].map((match) => match[1] as string),
    );
    if (urls.length < paths.length) await sleep(5);
  }
  return { url: urls[0] as string, urls, process: running, cpuSeconds: () => cpuSeconds(running.pid) };
}

/** Runs qemu-nbd for a file. */
export async function startQemuNbd(t: Cleanup, file: string, format: string, ...args: string[]): Promise<RunningNbd> {
  return startQemuNbdAt(t, join(await temporaryDirectory(t), 'q'), file, format, ...args);
}

/** The same on a socket that another one may have left. */
export async function startQemuNbdAt(
  t: Cleanup,
  socket: string,
  file: string,
  format: string,
  ...args: string[]
): Promise<RunningNbd> {
  await rm(socket, { force: true });
  return started(
    start(t, 'qemu-nbd', ['-t', '-e', '8', '-k', socket, '-x', 'disk', '-f', format, ...args, file]),
    socket,
  );
}

/** Runs nbdkit with a plugin, in the foreground. */
export async function startNbdkit(t: Cleanup, ...args: string[]): Promise<RunningNbd> {
  return startNbdkitAt(t, join(await temporaryDirectory(t), 'k'), ...args);
}

/** The same on a socket that another one may have left. */
export async function startNbdkitAt(t: Cleanup, socket: string, ...args: string[]): Promise<RunningNbd> {
  await rm(socket, { force: true });
  return started(start(t, 'nbdkit', ['-f', '-U', socket, ...args]), socket);
}

async function started(running: RunningProcess, socket: string): Promise<RunningNbd> {
  for (let i = 0; !existsSync(socket); i++) {
    if (i === 2000 || running.ended) throw new Error(`no socket: ${running.stderr}`);
    await sleep(5);
  }
  return { url: `nbd+unix:///disk?socket=${socket}`, process: running, cpuSeconds: () => cpuSeconds(running.pid) };
}

/** An entry of `nbdinfo --map --json`. */
export interface NbdMapEntry {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

export async function nbdMap(url: string, context = 'base:allocation'): Promise<NbdMapEntry[]> {
  const text = await runOk('nbdinfo', [`--map=${context}`, '--json', url]);
  const entries: NbdMapEntry[] = [];
  for (const { offset, length, type } of JSON.parse(text) as NbdMapEntry[]) {
    const last = entries.at(-1);
    // Servers cut where they like; what is one thing counts as one.
    if (last?.type === type) entries[entries.length - 1] = { ...last, length: last.length + length };
    else entries.push({ offset, length, type });
  }
  return entries;
}
