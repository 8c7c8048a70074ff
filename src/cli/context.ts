import { fromSystemError } from '../../formats/core/errors.ts';
import { type Interrupts, processInterrupts } from './interrupts.ts';

/** Where a command's text goes. */
export interface Output {
  write(text: string): void;
  /** Takes bytes as they are; resolves when they are on their way. Absent where only text goes. */
  writeBytes?(bytes: Uint8Array): Promise<void>;
  readonly isTerminal: boolean;
  /** Width of the terminal, characters; undefined where it is none. */
  readonly columns?: number | undefined;
}

/**
 * What a command has of the world: output, environment, signals. Commands touch neither console nor process, so that tests run
 * them in-process.
 */
export interface CliContext {
  /** Human output and JSON. */
  readonly stdout: Output;
  /** Everything else: errors, warnings, logs, hints. */
  readonly stderr: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** SIGINT, SIGTERM and SIGHUP. */
  readonly interrupts: Interrupts;
  /** True for root: state goes to the system's directories. */
  readonly privileged: boolean;
}

/** The context of the real process. */
export function processContext(): CliContext {
  return {
    stdout: streamOutput(() => process.stdout, Number.POSITIVE_INFINITY),
    stderr: streamOutput(() => process.stderr, MAX_LOG_BACKLOG),
    env: process.env,
    interrupts: processInterrupts(),
    privileged: process.geteuid?.() === 0,
  };
}

/** Log lines that nobody reads are dropped above this, bytes: a full pipe must not cost memory without end. */
const MAX_LOG_BACKLOG = 1024 * 1024;

/** @param open gives the stream. Called when something of it is asked for: Node takes its time to make one, and many commands say nothing */
function streamOutput(open: () => NodeJS.WriteStream, maxBacklog: number): Output {
  let opened: NodeJS.WriteStream | undefined;
  const stream = (): NodeJS.WriteStream => {
    if (opened !== undefined) return opened;
    opened = open();
    // A reader that has gone away (lunette info … | head -1) is no reason for a stack trace.
    opened.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') throw error;
    });
    return opened;
  };
  return {
    write(text) {
      if (stream().writableLength < maxBacklog) stream().write(text);
    },
    writeBytes: (bytes) =>
      new Promise((resolve, reject) => {
        stream().write(bytes, (error) => (error ? reject(fromSystemError(error, 'writing to stdout')) : resolve()));
      }),
    get isTerminal() {
      return stream().isTTY === true;
    },
    get columns() {
      return stream().isTTY === true ? stream().columns : undefined;
    },
  };
}
