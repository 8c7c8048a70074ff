import { type ChildProcess, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { LunetteError } from '../../formats/core/errors.ts';
import type { ServerKeeper } from '../nbd/client.ts';
import { waitForGreeting } from './greeting.ts';
import { errorOfOutput } from './messages.ts';
import type { QemuNbd } from './program.ts';
import { removeSocketDirectory } from './socket-directory.ts';

export interface BridgeServerOptions {
  readonly qemuNbd: QemuNbd;
  /** Arguments that say what is served and how. */
  readonly args: readonly string[];
  /** File to hold a lock on while it runs, beside QEMU's own locks; absent: none. */
  readonly lock?: { readonly file: string; readonly exclusive: boolean } | undefined;
  /** In a directory of its own, which goes with it. */
  readonly socket: string;
  /** What the user calls the image. */
  readonly path: string;
  /** Hears what the program says, and that it has ended or started again. */
  readonly warn: (message: string) => void;
}

const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 10_000;
const MAX_DELAY_MS = 5000;
/** Having run for so long, it is well again. */
const STEADY_MS = 10_000;
/** How flock says that somebody else has the lock. */
const CONFLICT = 75;
const FLOCK = ['flock', '--no-fork', '--nonblock', `--conflict-exit-code=${CONFLICT}`] as const;
/** What is kept of its words, to explain its end. */
const MAX_OUTPUT = 16 * 1024;

/**
 * Ends the program when our end of its standard input closes: for systems where nothing signals a process whose parent is gone. The shell
 * gives the program's status on.
 */
const WATCHER = `exec 3<&0
"$@" </dev/null 3<&- &
pid=$!
{ while read -r _ <&3; do :; done; kill -TERM "$pid"; sleep 10; kill -KILL "$pid"; } >/dev/null 2>&1 &
watcher=$!
wait "$pid"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"`;

/**
 * A qemu-nbd that serves one image to us alone. It is started when a connection is about to be made and none runs; so one that was killed comes back
 * with the next request, later and later while that keeps happening.
 */
export class BridgeServer implements ServerKeeper {
  readonly #options: BridgeServerOptions;
  #child: ChildProcess | undefined;
  #ended: Promise<void> = Promise.resolve();
  #output = '';
  #starting: Promise<void> | undefined;
  #starts = 0;
  /** Ends that came too soon after their start, in a row. */
  #failures = 0;
  #startedMs = 0;
  #released: Promise<void> | undefined;

  constructor(options: BridgeServerOptions) {
    this.#options = options;
  }

  /** Process id of what runs now: qemu-nbd, or the shell that watches it. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Has it running. @throws {LunetteError} what it complains of; TIMEOUT; CLOSED */
  async ready(): Promise<void> {
    if (this.#child !== undefined && this.#starting === undefined) return;
    if (this.#released !== undefined)
      throw new LunetteError('CLOSED', 'the image is closed', { path: this.#options.path });
    this.#starting ??= this.#start().finally(() => {
      this.#starting = undefined;
    });
    await this.#starting;
  }

  /** Why it ended, in its own words, if it does so within a moment: for errors that came first by another way. */
  async lastWords(): Promise<LunetteError | undefined> {
    await Promise.race([this.#ended, sleep(200)]);
    return this.#child === undefined && this.#output !== ''
      ? errorOfOutput(this.#output, this.#options.path)
      : undefined;
  }

  /** Ends it in order, and removes its socket. Safe to call twice. */
  release(): Promise<void> {
    this.#released ??= this.#stop();
    return this.#released;
  }

  async #stop(): Promise<void> {
    await this.#starting?.catch(() => undefined);
    const child = this.#child;
    if (child !== undefined) {
      // It writes what the format keeps in memory before it goes.
      if (child.stdin === null) child.kill('SIGTERM');
      else child.stdin.end();
      const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
      await this.#ended;
      clearTimeout(timer);
    }
    await removeSocketDirectory(this.#options.socket);
  }

  async #start(): Promise<void> {
    const { socket, path, warn } = this.#options;
    const delay = this.#failures === 0 ? 0 : Math.min(MAX_DELAY_MS, 100 * 2 ** this.#failures);
    const wait = this.#startedMs + delay - performance.now();
    if (this.#starts > 0 && wait > 0) await sleep(wait);
    if (this.#released !== undefined) throw new LunetteError('CLOSED', 'the image is closed', { path });
    this.#startedMs = performance.now();
    const child = this.#spawn();
    const late = setTimeout(() => {
      this.#output = 'qemu-nbd: it does not get ready';
      child.kill('SIGKILL');
    }, START_TIMEOUT_MS);
    try {
      for (let pause = 5; !(await waitForGreeting(socket)); pause = Math.min(2 * pause, 50)) {
        await Promise.race([this.#ended, sleep(pause)]);
        if (this.#child !== child) throw errorOfOutput(this.#output, path);
      }
    } finally {
      clearTimeout(late);
    }
    if (this.#starts++ > 0) warn(`qemu-nbd was started again (pid ${child.pid})`);
  }

  #spawn(): ChildProcess {
    const { qemuNbd, args, socket, lock } = this.#options;
    const { program, tether } = qemuNbd;
    const holding = lock === undefined ? [] : [...FLOCK, lock.exclusive ? '--exclusive' : '--shared', lock.file];
    const command = [...holding, program, '--persistent', `--socket=${socket}`, '--shared=16', ...args];
    const [first = '', ...rest] =
      tether === undefined ? ['/bin/sh', '-c', WATCHER, 'lunette-bridge', ...command] : [...tether, ...command];
    const child = spawn(first, rest, {
      stdio: [tether === undefined ? 'pipe' : 'ignore', 'ignore', 'pipe'],
      env: { ...process.env, LC_ALL: 'C' },
      // A group of its own: Ctrl-C is for us, and it ends only when we have flushed.
      detached: true,
    });
    this.#child = child;
    this.#output = '';
    child.stdin?.on('error', () => undefined);
    let line = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#output = (this.#output + text).slice(-MAX_OUTPUT);
      const lines = (line + text).slice(-MAX_OUTPUT).split('\n');
      line = lines.pop() as string;
      // While it starts its words are an error's, which goes to whoever waits.
      if (this.#starting === undefined) for (const each of lines) this.#options.warn(each);
    });
    this.#ended = new Promise((resolve) => {
      child.once('error', (error) => {
        this.#output ||= `qemu-nbd: ${error.message}`;
        this.#gone(child, error.message);
        resolve();
      });
      // Not 'exit': its last words come before 'close'.
      child.once('close', (status, signal) => {
        this.#gone(child, signal === null ? `status ${status}` : `signal ${signal}`);
        resolve();
      });
    });
    return child;
  }

  #gone(child: ChildProcess, how: string): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    this.#output ||=
      how === `status ${CONFLICT}` ? 'qemu-nbd: another process is using the image' : `qemu-nbd: it ended (${how})`;
    child.stdin?.end();
    this.#failures = performance.now() - this.#startedMs < STEADY_MS ? this.#failures + 1 : 1;
    if (this.#released === undefined && this.#starting === undefined) this.#options.warn(`qemu-nbd has ended (${how})`);
  }
}
