/** Runs the command line in this process, with output captured and signals at the test's will. */

import type { CliContext } from '../../src/cli/context.ts';
import { runCli } from '../../src/cli/program.ts';
import type { Cleanup } from './temporary.ts';

export interface CliResult {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A command that runs. */
export class RunningCli {
  stdout = '';
  stderr = '';
  /** The exit status. */
  readonly ended: Promise<number>;
  readonly #listeners = new Set<(signal: string) => void>();
  readonly #watchers = new Set<() => void>();
  #over = false;

  constructor(args: readonly string[], env: CliContext['env']) {
    const output = (name: 'stdout' | 'stderr') => ({
      isTerminal: false,
      write: (text: string) => {
        this[name] += text;
        this.#changed();
      },
    });
    const context: CliContext = {
      stdout: output('stdout'),
      stderr: output('stderr'),
      env,
      interrupts: {
        once: (listener) => {
          this.#listeners.add(listener);
          return () => void this.#listeners.delete(listener);
        },
      },
      privileged: false,
    };
    this.ended = runCli(args, context).finally(() => {
      this.#over = true;
      this.#changed();
    });
  }

  /** As SIGINT or SIGTERM does. */
  interrupt(signal = 'SIGTERM'): void {
    for (const listener of this.#listeners) listener(signal);
  }

  /** Whether the command listens to signals now. */
  get interruptible(): boolean {
    return this.#listeners.size > 0;
  }

  /** Waits for text on an output. @throws when the command ends without it */
  async waitFor(pattern: RegExp, name: 'stdout' | 'stderr' = 'stdout'): Promise<RegExpMatchArray> {
    for (;;) {
      const match = this[name].match(pattern);
      if (match !== null) return match;
      if (this.#over) throw new Error(`ended without ${pattern} on ${name}:\n${this.stdout}${this.stderr}`);
      await new Promise<void>((resolve) => {
        this.#watchers.add(resolve);
      });
    }
  }

  #changed(): void {
    for (const resolve of this.#watchers) resolve();
    this.#watchers.clear();
  }
}

/** Runs a command to its end. */
export async function cli(...args: string[]): Promise<CliResult> {
  const running = new RunningCli(args, process.env);
  const status = await running.ended;
  return { status, stdout: running.stdout, stderr: running.stderr };
}

/** Starts a command that runs until it is interrupted; it is when the test ends. */
export function startCli(t: Cleanup, args: readonly string[], env: CliContext['env'] = process.env): RunningCli {
  const running = new RunningCli(args, env);
  t.after(async () => {
    running.interrupt();
    await running.ended;
  });
  return running;
}

/** Starts `export` on a free port and waits until every image is ready. Persistent reservations are not kept. */
export async function startCliExport(t: Cleanup, args: readonly string[], images = 1): Promise<RunningCli> {
  const running = startCli(t, ['export', '--listen', '127.0.0.1:0', ...args]);
  await running.waitFor(new RegExp(`(?:^|\n)(?:(?:ready|\\{"event":"ready").*\n){${images}}`));
  return running;
}

/** The URLs of ready lines. */
export function readyUrls(stdout: string): string[] {
  return [...stdout.matchAll(/^ready (\S+)/gm)].map((match) => match[1] as string);
}
