/** Runs `lunette export` as a program, as a user would. */

import { basename } from 'node:path';
import { lunetteArgs } from './built.ts';
import { type RunningProcess, run, start } from './process.ts';
import { cpuSeconds, peakResidentBytes, residentBytes } from './process-usage.ts';
import type { Cleanup } from './temporary.ts';

export interface ExportOptions {
  /** Further arguments, before the images. */
  readonly args?: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
  readonly timeoutMs?: number;
}

const READY = /^ready (iscsi:\/\/(\S+):(\d+)\/(\S+)\/(\d+)) \(([^)]*)\)$/;

/** One exported image. */
export interface ReadyExport {
  readonly url: string;
  readonly host: string;
  readonly port: number;
  readonly iqn: string;
  readonly lun: number;
  /** What stands in parentheses: file name, format, size. */
  readonly what: string;
}

/** A running `lunette export`. */
export class LunetteExport {
  readonly process: RunningProcess;
  /** In the order of the images. */
  readonly exports: readonly ReadyExport[];

  constructor(process: RunningProcess, exports: readonly ReadyExport[]) {
    this.process = process;
    this.exports = exports;
  }

  /** The first image's. */
  get url(): string {
    return this.first.url;
  }

  get port(): number {
    return this.first.port;
  }

  get iqn(): string {
    return this.first.iqn;
  }

  get first(): ReadyExport {
    const [first] = this.exports;
    if (first === undefined) throw new Error('nothing is exported');
    return first;
  }

  get pid(): number {
    return this.process.pid;
  }

  get stderr(): string {
    return this.process.stderr;
  }

  residentBytes(): number {
    return residentBytes(this.pid);
  }

  peakResidentBytes(): number {
    return peakResidentBytes(this.pid);
  }

  cpuSeconds(): number {
    return cpuSeconds(this.pid);
  }

  /** Ends it as a user does, with SIGTERM. @throws unless it exits with 0 within 10 s, as promised */
  async stop(): Promise<void> {
    const began = Date.now();
    const { status, signal } = await this.process.stop('SIGTERM', 20_000);
    if (status !== 0) throw new Error(`export ended with ${signal ?? `status ${status}`}\n${this.stderr}`);
    if (Date.now() - began > 12_000) throw new Error(`export took ${Date.now() - began} ms to stop\n${this.stderr}`);
  }

  /** kill -9. */
  async kill(): Promise<void> {
    await this.process.stop('SIGKILL');
  }
}

/** Exports images on a free port of 127.0.0.1 and waits until each is ready. Killed when the test ends, unless stopped before. */
export async function startExport(
  t: Cleanup,
  images: string | readonly string[],
  options: ExportOptions = {},
): Promise<LunetteExport> {
  const paths = typeof images === 'string' ? [images] : images;
  const running = start(
    t,
    process.execPath,
    lunetteArgs('export', '--listen', '127.0.0.1:0', ...(options.args ?? []), ...paths),
    { ...(options.env && { env: options.env }), ...(options.cwd && { cwd: options.cwd }) },
  );
  const exports: ReadyExport[] = [];
  for (const path of paths) {
    const line = new RegExp(READY.source.replace('[^)]*', `${escapeRegExp(basename(path))}(?:, [^)]*)?`));
    const match = await running.waitForLine(line, { timeoutMs: options.timeoutMs ?? 60_000 });
    const [, url, host, port, iqn, lun, what] = match as unknown as [
      string,
      string,
      string,
      string,
      string,
      string,
      string,
    ];
    exports.push({ url, host, port: Number(port), iqn, lun: Number(lun), what });
  }
  return new LunetteExport(running, exports);
}

/** Runs `lunette …` to its end. */
export function runLunette(args: readonly string[], timeoutMs = 60_000): ReturnType<typeof run> {
  return run(process.execPath, lunetteArgs(...args), { timeoutMs });
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}
