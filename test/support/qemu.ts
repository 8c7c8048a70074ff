/** QEMU's programs as the witnesses of what an image holds. Sizes and offsets are bytes. */

import { join } from 'node:path';
import { type RunResult, run, runOk } from './process.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

export interface CreateOptions {
  readonly format?: string;
  readonly size?: number;
  readonly clusterSize?: number;
  readonly backing?: string;
  readonly backingFormat?: string;
  /** Further -o options: `{ compat: '0.10', lazy_refcounts: 'on' }`. */
  readonly options?: Readonly<Record<string, string | number>>;
  /** File name inside a temporary directory of its own, or a whole path. Default: `disk.FORMAT`. */
  readonly path?: string;
}

/** An entry of `qemu-img map --output=json`. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly compressed?: boolean;
  readonly offset?: number;
  readonly filename?: string;
}

/** What `qemu-img check --output=json` says; counts that it leaves out are 0 here. */
export interface CheckReport {
  readonly status: number;
  readonly corruptions: number;
  readonly leaks: number;
  readonly checkErrors: number;
  readonly json: Readonly<Record<string, unknown>>;
}

/** Runs qemu-img and gives its output. @throws when it fails */
export function qemuImg(...args: string[]): Promise<string> {
  return runOk('qemu-img', args);
}

/** Makes an image and gives its path. */
export async function create(t: Cleanup, options: CreateOptions = {}): Promise<string> {
  const { format = 'qcow2', size, clusterSize, backing, backingFormat = 'qcow2' } = options;
  const name = options.path ?? `disk.${format}`;
  const path = name.startsWith('/') ? name : join(await temporaryDirectory(t), name);
  const suboptions = Object.entries(options.options ?? {}).map(([key, value]) => `${key}=${value}`);
  if (clusterSize !== undefined) suboptions.push(`cluster_size=${clusterSize}`);
  const args = ['create', '-q', '-f', format];
  if (suboptions.length > 0) args.push('-o', suboptions.join(','));
  if (backing !== undefined) args.push('-b', backing, '-F', backingFormat);
  args.push(path);
  if (size !== undefined) args.push(String(size));
  await qemuImg(...args);
  return path;
}

/** `qemu-img info --output=json`. */
export async function info(path: string, ...args: string[]): Promise<Record<string, unknown>> {
  return JSON.parse(await qemuImg('info', '--output=json', ...args, path)) as Record<string, unknown>;
}

/** `qemu-img map --output=json`. */
export async function map(path: string, ...args: string[]): Promise<MapEntry[]> {
  return JSON.parse(await qemuImg('map', '--output=json', ...args, path)) as MapEntry[];
}

/** `qemu-img check`, whatever it finds. @throws when the check itself cannot be done */
export async function check(path: string, ...args: string[]): Promise<CheckReport> {
  const result = await run('qemu-img', ['check', '--output=json', ...args, path]);
  if (![0, 2, 3].includes(result.status)) {
    throw new Error(`qemu-img check ${path}: status ${result.status}\n${result.stdout}${result.stderr}`);
  }
  const json = JSON.parse(result.stdout) as Record<string, unknown>;
  const count = (key: string): number => (typeof json[key] === 'number' ? json[key] : 0);
  return {
    status: result.status,
    corruptions: count('corruptions'),
    leaks: count('leaks'),
    checkErrors: count('check-errors'),
    json,
  };
}

/** Fails unless `qemu-img check` finds no errors and no leaks. */
export async function assertClean(path: string): Promise<void> {
  const result = await run('qemu-img', ['check', path]);
  if (result.status !== 0)
    throw new Error(`qemu-img check ${path}: status ${result.status}\n${result.stdout}${result.stderr}`);
}

/** True when both hold the same bytes. Names of other formats than qcow2 and raw are probed. @throws when they can't be compared */
export async function compare(a: string, b: string, ...args: string[]): Promise<boolean> {
  const result = await run('qemu-img', ['compare', ...args, a, b]);
  if (result.status > 1 || result.status < 0) {
    throw new Error(`qemu-img compare ${a} ${b}: status ${result.status}\n${result.stdout}${result.stderr}`);
  }
  return result.status === 0;
}

/** `qemu-img convert`. @throws when it fails */
export async function convert(from: string, to: string, ...args: string[]): Promise<void> {
  await qemuImg('convert', ...args, from, to);
}

/** Runs qemu-io commands on an image. @throws when one of them fails, which qemu-io's exit status does not always tell */
export async function qemuIo(path: string, commands: readonly string[], ...args: string[]): Promise<string> {
  const result = await qemuIoResult(path, commands, ...args);
  const text = result.stdout + result.stderr;
  if (result.status !== 0 || /failed|verification|error/i.test(text)) {
    throw new Error(`qemu-io ${path} ${JSON.stringify(commands)}: status ${result.status}\n${text}`);
  }
  return text;
}

/** Runs qemu-io commands and gives what came of it. */
export function qemuIoResult(path: string, commands: readonly string[], ...args: string[]): Promise<RunResult> {
  return run('qemu-io', [...args, ...commands.flatMap((command) => ['-c', command]), path]);
}

/** The same under the short names that tests read best: `qemu.create(t, …)`, `qemu.io(path, 'write -P 1 0 64k')`. */
export const qemu = {
  img: qemuImg,
  create,
  info,
  map,
  check,
  assertClean,
  compare,
  convert,
  io: (path: string, ...commands: string[]): Promise<string> => qemuIo(path, commands),
} as const;
