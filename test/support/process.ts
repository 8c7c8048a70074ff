/** Runs programs for tests: output captured, a line awaited, nothing left behind when the test ends. */

import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { findProgram } from './requires.ts';
import type { Cleanup } from './temporary.ts';

/** The root of the checkout. */
export const PROJECT_ROOT = fileURLToPath(new URL('../..', import.meta.url));

export interface RunOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  /** Bytes for standard input, which is empty otherwise. */
  readonly input?: Uint8Array | string;
  /** The program is killed after this time and the run rejects. Default: 60 s. */
  readonly timeoutMs?: number;
}

export interface RunResult {
  /** Exit status; -1 when a signal ended it. */
  readonly status: number;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end and gives what it printed, whatever its exit status. */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  for (let left = BUSY_ATTEMPTS; ; left--) {
    const result = await runOnce(program, args, options);
    if (left === 0 || result.status === 0 || !result.stderr.includes(BUSY)) return result;
  }
}

/** What QEMU says, and gives up, when it cannot measure how quick this machine derives keys for LUKS, because others use it, too. */
const BUSY = 'Unable to get accurate CPU usage';
const BUSY_ATTEMPTS = 20;

function runOnce(program: string, args: readonly string[], options: RunOptions): Promise<RunResult> {
  const { timeoutMs = 60_000 } = options;
  const child = spawn(findProgram(program) ?? program, args, { ...spawnOptions(options), stdio: 'pipe' });
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
  child.stdin.on('error', () => {}); // The program may end without reading its input.
  child.stdin.end(options.input);
  return new Promise((resolve, reject) => {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, timeoutMs);
    child.once('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.once('close', (status, signal) => {
      clearTimeout(timer);
      const stdout = Buffer.concat(out).toString();
      const stderr = Buffer.concat(err).toString();
      if (late)
        reject(new Error(`${program} ${args.join(' ')}: still running after ${timeoutMs} ms\n${stdout}${stderr}`));
      else resolve({ status: status ?? -1, signal, stdout, stderr });
    });
  });
}

/** Runs a program that must succeed. @returns its standard output @throws with all output when the status is not 0 */
export async function runOk(program: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const result = await run(program, args, options);
  if (result.status !== 0) {
    const end = result.signal ?? `status ${result.status}`;
    throw new Error(`${program} ${args.join(' ')}: ${end}\n${result.stdout}${result.stderr}`);
  }
  return result.stdout;
}

/** A program that runs beside the test. Killed with SIGKILL when the test ends, if it still runs. */
export class RunningProcess {
  readonly child: ChildProcess;
  /** Everything printed so far. */
  stdout = '';
  stderr = '';
  readonly #name: string;
  readonly #watchers = new Set<() => void>();
  readonly #ended: Promise<{ status: number; signal: NodeJS.Signals | null }>;
  #over = false;

  constructor(child: ChildProcess, name: string) {
    this.child = child;
    this.#name = name;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text;
      this.#changed();
    });
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
      this.#changed();
    });
    this.#ended = new Promise((resolve) => {
      const over = (status: number, signal: NodeJS.Signals | null): void => {
        this.#over = true;
        resolve({ status, signal });
        this.#changed();
      };
      child.once('close', (status, signal) => over(status ?? -1, signal));
      child.once('error', (error) => {
        this.stderr += `${error}\n`;
        over(-1, null);
      });
    });
  }

  get pid(): number {
    if (this.child.pid === undefined) throw new Error(`${this.#name} did not start: ${this.stderr}`);
    return this.child.pid;
  }

  /** True once the program is gone and all it printed has arrived. */
  get ended(): boolean {
    return this.#over;
  }

  /**
   * Waits for a whole line that matches, on standard output unless told, and gives the match.
   * @throws when the program ends, or `timeoutMs` (default 30 s) passes, without such a line; with all it printed
   */
  waitForLine(
    pattern: RegExp,
    { stream = 'stdout', timeoutMs = 30_000 }: { stream?: 'stdout' | 'stderr'; timeoutMs?: number } = {},
  ): Promise<RegExpMatchArray> {
    return new Promise((resolve, reject) => {
      const finish = (): void => {
        clearTimeout(timer);
        this.#watchers.delete(look);
      };
      const fail = (why: string): void => {
        finish();
        reject(
          new Error(`${this.#name}: no line matches ${pattern} on ${stream}: ${why}\n${this.stdout}${this.stderr}`),
        );
      };
      const look = (): void => {
        // The last piece is not a whole line yet, unless nothing more can come.
        const lines = this[stream].split('\n');
        const last = lines.pop() as string;
        if (this.#over) lines.push(last);
        for (const line of lines) {
          const match = line.match(pattern);
          if (match !== null) {
            finish();
            resolve(match);
            return;
          }
        }
        if (this.#over) fail('the program has ended');
      };
      const timer = setTimeout(() => fail(`waited ${timeoutMs} ms`), timeoutMs);
      this.#watchers.add(look);
      look();
    });
  }

  /** Waits for the end of the program. */
  wait(): Promise<{ status: number; signal: NodeJS.Signals | null }> {
    return this.#ended;
  }

  /** Sends a signal (default SIGTERM) and waits for the end; SIGKILL follows after `timeoutMs` (default 15 s). */
  async stop(
    signal: NodeJS.Signals = 'SIGTERM',
    timeoutMs = 15_000,
  ): Promise<{ status: number; signal: NodeJS.Signals | null }> {
    if (!this.#over) this.child.kill(signal);
    const timer = setTimeout(() => this.child.kill('SIGKILL'), timeoutMs);
    try {
      return await this.#ended;
    } finally {
      clearTimeout(timer);
    }
  }

  #changed(): void {
    for (const look of [...this.#watchers]) look();
  }
}

/** Starts a program that runs beside the test until the test ends. */
export function start(t: Cleanup, program: string, args: readonly string[], options: RunOptions = {}): RunningProcess {
  const child = spawn(findProgram(program) ?? program, args, {
    ...spawnOptions(options),
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
  });
  if (options.input !== undefined) child.stdin?.end(options.input);
  const running = new RunningProcess(child, program);
  t.after(async () => {
    await running.stop('SIGKILL');
  });
  return running;
}

function spawnOptions(options: RunOptions): SpawnOptions {
  return {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: options.env ?? process.env,
  };
}
